"""Where a file's bytes are: a path, a URL, or a range inside an archive; opened for reading without being copied."""

import io
import os
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote, unquote_to_bytes


@runtime_checkable
class Bytes(Protocol):
    """A file opened for reading bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes, by default all."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place; returns it."""
        ...

    def close(self) -> None:
        """Be done with it."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...


@dataclass(frozen=True)
class Place:
    """``length`` bytes (None: all that follow) from ``offset`` of the file or fsspec URL ``path``.

    ``name`` is what the file is called in messages, and its suffix tells pictures from videos; by default ``path``.
    """

    path: str
    offset: int = 0
    length: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.path

    @property
    def suffix(self) -> str:
        """The name's suffix with its dot, in small letters."""
        return os.path.splitext(str(self))[1].lower()

    @property
    def local_file(self) -> str | None:
        """The path on this machine of a whole file; None for a URL or a part of a file."""
        return None if self.offset or self.length is not None or is_remote(self.path) else local_path(self.path)


def place_of(where: "str | Place") -> Place:
    """A path or URL as a place."""
    return where if isinstance(where, Place) else Place(where)


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL that fsspec opens; ``file://`` is not."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
    """The path that a ``file://`` URL stands for, else ``path`` itself."""
    return os.fsdecode(unquote_to_bytes(path.removeprefix("file://"))) if path.startswith("file://") else path


def written(path: str) -> str:
    """``path`` as text that any file format can hold: a name that is not UTF-8 becomes a ``file://`` URL."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(os.path.abspath(path)))
    return path


def open_place(place: Place) -> Bytes:
    """The bytes of ``place`` as a file that can seek; read only. Raises ``OSError``."""
    if is_remote(place.path):
        import fsspec  # noqa: PLC0415

        file: Bytes = fsspec.open(place.path, "rb").open()
    else:
        file = open(local_path(place.path), "rb")  # noqa: SIM115
    if place.offset == 0 and place.length is None:
        return file
    return io.BufferedReader(_Part(file, place.offset, place.length))


class _Part(io.RawIOBase):
    """A range of a file as a file of its own."""

    def __init__(self, file: Bytes, offset: int, length: int | None) -> None:
        self._file, self._offset, self._position = file, offset, 0
        left = max(0, file.seek(0, os.SEEK_END) - offset)
        self._length = left if length is None else min(length, left)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        wanted = max(0, min(len(view), self._length - self._position))
        self._file.seek(self._offset + self._position)
        content = self._file.read(wanted)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
