"""Files that are either whole or absent."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextvid.errors import UserError

DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def saying_where_disks_fail(folder: Path) -> Iterator[None]:
    """A disk that is full or does not take what is written to ``folder`` is something that the user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAILS:
            raise
        raise UserError(
            f"{error.filename or folder} could not be written ({error.strerror}); what was complete before still is. Make room "
            "or mend the disk, and the same command goes on"
        ) from error


def sync(path: Path) -> None:
    """Have the disk hold ``path`` (a file or a folder's entries) before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, renamed into place at the end: readers see the old file or the new one.

    Where writing fails nothing is left of it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        sync(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def replace_json(path: Path, value: Any) -> None:
    """:func:`replace_file` of a value as indented JSON."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
