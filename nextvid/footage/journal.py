"""What a scan has found so far, a line a file, on disk the moment it is found: a scan that was killed goes on from it."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from nextvid.data.manifest import SCHEMA, explained_writing
from nextvid.errors import UserError

FORMAT_VERSION = 1


class Journal:
    """The journal of the scan that will write ``manifest``; held by one process at a time."""

    def __init__(self, manifest: Path, settings: dict[str, Any], wait: bool = False) -> None:
        """Open it, empty unless the scan before had the same ``settings``; ``wait`` for whoever holds it.

        Raises ``UserError`` where that fails.
        """
        self.path = manifest.with_name(f"{manifest.name}.journal")
        heading = json.dumps({"format_version": FORMAT_VERSION, **settings}) + "\n"
        with explained_writing(manifest):
            manifest.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._locked(manifest, wait)
            self._file.seek(0)
            content_start = len(heading.encode())
            same = self._file.read(content_start) == heading.encode()
            self._file.truncate(self._whole_lines() if same else 0)
            if not same:
                self._file.write(heading.encode())
                self._file.flush()
        self._start = content_start

    def _locked(self, manifest: Path, wait: bool) -> Any:
        """The file, held; once more where the one that was waited for has been removed by its holder."""
        while True:
            file = self.path.open("a+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                file.close()
                raise UserError(
                    f"{manifest} is being written by another scan; wait for it or choose another."
                ) from error
            if self.path.exists() and os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                return file
            file.close()

    def _whole_lines(self) -> int:
        """The bytes up to the last line that was written to its end."""
        end = self._file.seek(0, 2)
        while end:
            begin = max(0, end - (1 << 16))
            self._file.seek(begin)
            place = self._file.read(end - begin).rfind(b"\n")
            if place >= 0:
                return begin + place + 1
            end = begin
        return 0

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row of :data:`nextvid.data.manifest.SCHEMA`."""
        with explained_writing(self.path):
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()

    def rows(self) -> pa.Table:
        """All rows so far, in the order in which they were found."""
        self._file.seek(0, 2)
        if self._file.tell() <= self._start:
            return SCHEMA.empty_table()
        self._file.seek(self._start)
        options = pa.json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error")
        return pa.json.read_json(self._file, parse_options=options).select(SCHEMA.names).cast(SCHEMA)

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        return self._file.fileno()

    def close(self) -> None:
        """Let another scan have it."""
        self._file.close()

    def remove(self) -> None:
        """The manifest is written: the journal is no longer needed."""
        self.path.unlink(missing_ok=True)
        self.close()
