"""The manifest: a Parquet file with a row a file of footage, and its usable rows as a memory-mapped Arrow file.

``scan`` writes it, ``prepare`` writes another of what it made, and training draws from it: ten million rows cost a
process no more memory, and a row no more time, than a thousand.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nextvid.data.decode import FileInfo
from nextvid.data.film import cache_folder
from nextvid.data.locations import Place, is_remote
from nextvid.errors import UserError
from nextvid.files import replacing

FORMAT_VERSION = 1
PREPARED_MANIFEST = "manifest.parquet"
"""The manifest in a folder of prepared shards."""
BATCH_ROWS = 32768
"""Rows that are kept together: a row group of the Parquet file, a record batch of the Arrow file."""

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("name", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("kind", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int32()),
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("seconds", pa.float64()),
        ("keyframe_seconds", pa.float64()),
        ("decoded", pa.string()),
        ("shots", pa.list_(pa.float64())),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("modified", pa.float64()),
        ("content", pa.string()),
        ("hashes", pa.list_(pa.int64())),
    ]
)
"""The columns of a manifest; docs/data.md says what each holds."""

_INDEX = ("path", "offset", "length", "name", "kind", "width", "height", "fps", "frames", "seconds", "decoded", "shots")
_REQUIRED = (*_INDEX, "status")
_FACTS = b"nextvid"


@dataclass(frozen=True)
class UsableFile:
    """A file that clips can be drawn from; ``shots``: when each begins, in seconds, or nothing where that is not known."""

    place: Place
    info: FileInfo
    shots: tuple[float, ...] = ()


class Manifest:
    """The usable rows of a manifest, memory-mapped; as cheap to send to another process as its path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the manifest at ``path``; makes its Arrow file where there is none yet.

        Raises ``UserError`` where it is not a manifest, or one of another version.
        """
        self.path = Path(path)
        self.facts = read_facts(self.path)
        self._open(index_of(self.path, self.facts))

    def _open(self, index: Path) -> None:
        self._index = index
        self._reader = pa.ipc.open_file(pa.memory_map(str(index)))
        self._batches: dict[int, dict[str, pa.Array]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "facts": self.facts, "index": self._index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.facts = state["path"], state["facts"]
        self._open(state["index"])

    def __len__(self) -> int:
        return int(self.facts["usable"])

    def __getitem__(self, number: int) -> UsableFile:
        """Usable row ``number``; a relative path is relative to the manifest's folder."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        batch, place = divmod(number, BATCH_ROWS)
        if batch not in self._batches:
            read = self._reader.get_batch(batch)
            self._batches[batch] = dict(zip(_INDEX, read.columns, strict=True))
        row = {name: column[place].as_py() for name, column in self._batches[batch].items()}
        return UsableFile(
            Place(self._absolute(row["path"]), row["offset"] or 0, row["length"], self._absolute(row["name"] or "")),
            FileInfo(row["kind"], row["width"], row["height"], row["fps"], row["frames"], row["seconds"]),
            tuple(row["shots"] or ()) if row["decoded"] == "all" else (),
        )

    def _absolute(self, path: str) -> str:
        return (
            path if not path or is_remote(path) or path.startswith("file://") else os.path.join(self.path.parent, path)
        )

    @property
    def summary(self) -> dict[str, Any]:
        """What the scan found: see :func:`nextvid.footage.summary.summarise`."""
        return self.facts["summary"]

    @property
    def digest(self) -> str:
        """Changes with any row."""
        return str(self.facts["digest"])


def is_manifest(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a Parquet file that says it is a manifest, of whatever version."""
    try:
        return _FACTS in (pq.read_metadata(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


def read_facts(path: Path) -> dict[str, Any]:
    """A manifest's own facts: format_version, rows, usable, digest, summary. Raises ``UserError``."""
    if not path.is_file():
        raise UserError(f"There is no manifest at {path}; nextvid scan SOURCE -o {path} makes one.")
    try:
        schema = pq.read_schema(path)
        facts = json.loads((pq.read_metadata(path).metadata or {})[_FACTS])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a manifest of nextvid; nextvid scan {path} -o NEW.parquet makes one."
        ) from error
    if facts.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {facts.get('format_version')}; this nextvid reads {FORMAT_VERSION}. Scan the "
            "footage anew."
        )
    missing = [name for name in _REQUIRED if name not in schema.names]
    if missing:
        raise UserError(f"{path} is a manifest without the column {', '.join(missing)}. Scan the footage anew.")
    return facts


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a manifest, some ten thousand at a time. Raises ``UserError`` where it is none."""
    read_facts(path)
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH_ROWS, columns=columns)


def broken_rows(path: Path, limit: int) -> list[tuple[str, str]]:
    """The first ``limit`` broken files of a manifest, each with its reason."""
    found: list[tuple[str, str]] = []
    for batch in read_rows(path, ["path", "name", "status", "reason"]):
        broken = batch.filter(pc.equal(batch["status"], "broken")).slice(0, limit - len(found))
        found += [(row["name"] or row["path"], row["reason"]) for row in broken.to_pylist()]
        if len(found) >= limit:
            break
    return found


def write_manifest(path: Path, batches: Iterable[pa.RecordBatch], summary: dict[str, Any]) -> None:
    """Write rows of :data:`SCHEMA` and ``summary`` as a manifest with its Arrow file; whole or not at all.

    ``summary`` may be filled in while the rows are drawn. Raises ``UserError`` where the disk cannot take it.
    """
    digest, rows, usable = hashlib.blake2b(digest_size=16), 0, 0
    with explained_writing(path), replacing(path) as beside:
        with pq.ParquetWriter(beside, SCHEMA, compression="zstd") as writer:
            for batch in batches:
                digest.update(batch.serialize())
                writer.write_batch(batch, row_group_size=BATCH_ROWS)
                rows += batch.num_rows
                usable += pc.sum(pc.equal(batch["status"], "usable")).as_py() or 0
            facts = {"rows": rows, "usable": usable, "digest": digest.hexdigest(), "summary": summary}
            writer.add_key_value_metadata({_FACTS: json.dumps({"format_version": FORMAT_VERSION, **facts})})
        with pq.ParquetFile(beside) as written:
            _write_index(_index_beside(path), written, facts)


def index_of(path: Path, facts: dict[str, Any]) -> Path:
    """The Arrow file of a manifest: beside it, else in the cache folder, where it is made if need be."""
    cached = cache_folder() / "manifests" / f"{facts['digest']}.arrow"
    for index in (_index_beside(path), cached):
        if _belongs(index, facts):
            return index
    with explained_writing(cached):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetFile(path) as file:
            _write_index(cached, file, facts)
    return cached


@contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Turn a disk that is full, or a folder that may not be written to, into a ``UserError``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); nothing half-written was left. Free some space, or "
            "choose another place."
        ) from error


def _index_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.arrow")


def _belongs(index: Path, facts: dict[str, Any]) -> bool:
    try:
        with pa.memory_map(str(index)) as file:
            return (pa.ipc.open_file(file).schema.metadata or {}).get(_FACTS) == facts["digest"].encode()
    except (OSError, pa.ArrowInvalid):
        return False


def _write_index(index: Path, manifest: pq.ParquetFile, facts: dict[str, Any]) -> None:
    """The usable rows in batches of :data:`BATCH_ROWS`, so that a row's batch is known from its number."""
    schema = pa.schema([SCHEMA.field(name) for name in _INDEX], metadata={_FACTS: facts["digest"]})
    waiting = schema.empty_table()
    with replacing(index) as beside, pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in manifest.iter_batches(BATCH_ROWS, columns=[*_INDEX, "status"]):
            usable = batch.filter(pc.equal(batch["status"], "usable")).select(list(_INDEX))
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([usable]).cast(schema)])
            while waiting.num_rows >= BATCH_ROWS:
                writer.write_batch(waiting.slice(0, BATCH_ROWS).combine_chunks().to_batches()[0])
                waiting = waiting.slice(BATCH_ROWS)
        for rest in waiting.combine_chunks().to_batches():
            writer.write_batch(rest)
