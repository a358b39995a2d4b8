"""WebDataset tars as footage: where each member's bytes are, so that none is ever unpacked."""

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import IO, cast

from nextvid.data.locations import Bytes, Place, open_place, written
from nextvid.footage.listing import MEDIA_SUFFIXES, Entry

_SIDECAR_BYTES = 1 << 20


def read_tar(path: str) -> Iterator[Entry]:
    """The videos and pictures of a tar, with the labels that stand beside them (``KEY.cls``, ``KEY.json``: "label").

    A member that is a link, or whose name would climb out of the tar's folder, is not opened (``denied``); a tar that
    ends early, or is none, is an entry of its own with the reason.
    """
    place = Place(written(path))
    try:
        with open_place(place) as file:
            if not file.read(1):
                yield Entry(place, reason="empty")
                return
            file.seek(0)
            with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as archive:
                yield from _members(path, archive)
                if _ends_early(file, archive.offset):
                    yield Entry(place, reason="truncated")
    except tarfile.ReadError as error:
        yield Entry(place, reason="truncated" if "unexpected end" in str(error) else "not_media")
    except OSError as error:
        yield Entry(place, reason="denied" if isinstance(error, PermissionError) else "unreadable")


def _members(path: str, archive: tarfile.TarFile) -> Iterator[Entry]:
    """Members that follow each other and share a key are one sample."""
    waiting: list[Place] = []
    key, label = None, None
    for member in _until_it_ends(archive):
        if member is None or _key(member.name) != key:
            yield from (Entry(place, label) for place in waiting)
            waiting, key, label = [], member and _key(member.name), None
        if member is None:
            break
        label = _label(archive, member) or label
        entry = _entry(path, member)
        if entry is not None and entry.reason is None:
            waiting.append(entry.place)
        elif entry is not None:
            yield entry
    archive.next()


def _until_it_ends(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo | None]:
    """The members but folders, and then None; also where the tar breaks off, which asking for the next will tell."""
    with suppress(tarfile.ReadError):
        yield from (member for member in archive if not member.isdir())
    yield None


def _entry(path: str, member: tarfile.TarInfo) -> Entry | None:
    """A member as footage; None for what is neither a video nor a picture."""
    if os.path.splitext(member.name)[1].lower() not in MEDIA_SUFFIXES:
        return None
    name = f"{written(path)}/{_printable(member.name)}"
    if not member.isreg() or _climbs(member.name):
        return Entry(Place(written(path), name=name), reason="denied")
    return Entry(Place(written(path), member.offset_data, member.size, name))


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.')[0]}"


def _climbs(name: str) -> bool:
    return name.startswith("/") or ".." in PurePosixPath(name).parts


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _ends_early(file: Bytes, end: int) -> bool:
    """Whether what follows the last member is neither nothing nor the zeros that close a tar."""
    file.seek(end)
    rest = file.read(tarfile.BLOCKSIZE)
    return bool(rest) and rest != bytes(tarfile.BLOCKSIZE)


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    if os.path.splitext(member.name)[1].lower() not in (".cls", ".json") or not member.isreg():
        return None
    if member.size > _SIDECAR_BYTES:
        return None
    try:
        file = archive.extractfile(member)
        text = file.read().decode("utf-8", "replace").strip() if file else ""
        value = text if member.name.lower().endswith(".cls") else json.loads(text).get("label")
    except (OSError, tarfile.ReadError, ValueError, AttributeError, RecursionError):
        return None
    return None if value in (None, "") else str(value).encode("utf-8", "backslashreplace").decode()
