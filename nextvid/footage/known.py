"""What an earlier scan has found, by the file that each row is of."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nextvid.data.locations import Place, is_remote, local_path
from nextvid.data.manifest import BATCH_ROWS

_COLUMNS = ("path", "offset", "bytes", "modified")


@dataclass(frozen=True)
class Key:
    """What says that a file is the one that was looked at before: where it is, its size, and when it was written."""

    path: str
    offset: int
    bytes: int | None
    modified: float | None

    @property
    def place(self) -> tuple[str, int]:
        """Where the file is."""
        return self.path, self.offset


def key_of(place: Place) -> Key:
    """The key of a file as it is now; of a remote one only where it is: it is taken to stay as it was."""
    if is_remote(place.path):
        return Key(place.path, place.offset, None, None)
    try:
        found = os.stat(local_path(place.path))
    except (OSError, ValueError):
        found = None
    size = place.length if place.length is not None else found.st_size if found else None
    return Key(place.path, place.offset, size, found.st_mtime if found else None)


def _key(path: str, offset: int, size: int | None, modified: float | None) -> Key:
    """The key of a row: what :func:`key_of` says of its file if that has not changed."""
    return Key(path, offset, None, None) if is_remote(path) else Key(path, offset, size, modified)


class Known:
    """Rows to look up by key, in 16 bytes a row beside the rows themselves."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self._columns = {name: rows[name] for name in _COLUMNS}
        hashes = np.array(array("q", (hash(key) for key in self._keys())), dtype=np.int64)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def _keys(self) -> Iterator[Key]:
        for batch in self.rows.select(list(_COLUMNS)).to_batches(BATCH_ROWS):
            yield from map(_key, *(column.to_pylist() for column in batch.columns))

    def find(self, key: Key) -> int:
        """The number of the last row that is of this file; -1 where there is none."""
        first, after = np.searchsorted(self._hashes, [hash(key), hash(key) + 1])
        for number in reversed(self._order[first:after].tolist()):
            if _key(*(column[number].as_py() for column in self._columns.values())) == key:
                return number
        return -1
