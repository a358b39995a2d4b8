"""The plain files inside an uncompressed tar: where their bytes lie. Nothing is unpacked."""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from nextvid.data.locations import Place, open_place
from nextvid.errors import UserError


def members(archive: Place) -> Iterator[Place]:
    """Every plain file of the tar at ``archive``, in its order, under its own name.

    Links, devices, sparse files, and names that are absolute or climb out of the archive are left out. Raises
    ``UserError`` where the tar cannot be opened, is compressed, is damaged, or ends before its last file does.
    """
    try:
        with open_place(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = file.seek(0, 2)
            for member in tar:
                if member.offset_data + member.size > size:
                    raise UserError(f"{archive} is cut short inside {member.name!r}; download it anew.")
                if member.isreg() and not member.issparse() and _is_safe(member.name):
                    offset = archive.offset + member.offset_data
                    yield Place(archive.path, offset, member.size, member.name.removeprefix("./"))
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{archive} cannot be read as an uncompressed tar ({error}); download it anew.") from error


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts
