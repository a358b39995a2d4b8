"""``scan``: open every file of some footage and write down what it is, in parallel, and going on where a scan was stopped."""

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nextvid.data.clip import BrokenFile
from nextvid.data.manifest import BATCH_ROWS, SCHEMA, is_manifest, read_facts, read_rows, write_manifest
from nextvid.errors import UserError
from nextvid.footage.duplicates import mark_duplicates
from nextvid.footage.inspect import content_of, inspect_file
from nextvid.footage.journal import Journal
from nextvid.footage.known import Key, Known, key_of
from nextvid.footage.listing import Entry, list_sources
from nextvid.footage.pool import SECONDS, Lost, in_processes
from nextvid.footage.summary import summarise
from nextvid.signals import stoppable

_SHOW_AFTER = 200
_WIDER = {pa.string(): pa.large_string(), **{pa.list_(t): pa.large_list(t) for t in (pa.int64(), pa.float64())}}
_LARGE = pa.schema([field.with_type(_WIDER.get(field.type, field.type)) for field in SCHEMA])
"""The columns while rows are put in order: millions of paths are more than two gigabytes of text."""


@dataclass(frozen=True)
class ScanSettings:
    """What makes two scans of the same file differ: how much is decoded, and how short a video may be."""

    everything: bool = False
    min_frames: int = 2


def scan(
    sources: Sequence[str],
    out: Path,
    settings: ScanSettings = ScanSettings(),
    workers: int | None = None,
    seconds: float = SECONDS,
    console: Console | None = None,
    wait: bool = False,
) -> dict[str, Any]:
    """Write the manifest ``out`` of ``sources``; returns its summary (:func:`nextvid.footage.summary.summarise`).

    Files that an earlier manifest at ``out`` holds, unchanged since by size and time, are not opened again; nor are those
    that a scan had done that was stopped. ``wait``: for another scan of the same manifest to end.

    Raises ``UserError``, and ``Stopped`` on a signal with all that was found kept.
    """
    console = console or Console(stderr=True)
    journal = Journal(out, asdict(settings), wait)
    try:
        entries = list(list_sources(sources))
        known = Known(pa.concat_tables([_rows_before(out, settings), journal.rows()]))
        with stoppable("what was scanned is kept"):
            order, fresh = _look_at(entries, known, journal, settings, workers or os.cpu_count() or 1, seconds, console)
        found = journal.rows()
        rows = pa.concat_tables([known.rows, found.slice(found.num_rows - fresh)])
        rows = mark_duplicates(_in_order(rows, order, entries))
        summary = {**summarise(rows), "settings": asdict(settings)}
        write_manifest(out, (batch.cast(SCHEMA) for batch in rows.to_batches(BATCH_ROWS)), summary)
        journal.remove()
        return summary
    finally:
        journal.close()


def _rows_before(out: Path, settings: ScanSettings) -> pa.Table:
    """The rows of an earlier manifest at ``out`` that need not be found again; broken files may have been mended."""
    if not out.exists():
        return SCHEMA.empty_table()
    if not is_manifest(out):
        raise UserError(f"{out} exists and is not a manifest; choose another name for the manifest.")
    try:
        facts = read_facts(out)
    except UserError:  # of another version, or without a column: it is made anew
        return SCHEMA.empty_table()
    if facts["summary"].get("settings") != asdict(settings) or pq.read_schema(out).names != SCHEMA.names:
        return SCHEMA.empty_table()
    rows = pa.Table.from_batches(read_rows(out), SCHEMA)
    return rows.filter(pa.compute.not_equal(rows["status"], "broken"))


def _in_order(rows: pa.Table, order: "array[int]", entries: Sequence[Entry]) -> pa.Table:
    """A row for every entry, with the label that this listing gives it."""
    rows = rows.cast(_LARGE).take(pa.array(order, pa.int64()))
    place = SCHEMA.get_field_index("label")
    return rows.set_column(place, _LARGE.field(place), pa.array([entry.label for entry in entries], pa.large_string()))


def _look_at(
    entries: Sequence[Entry],
    known: Known,
    journal: Journal,
    settings: ScanSettings,
    workers: int,
    seconds: float,
    console: Console,
) -> tuple["array[int]", int]:
    """The number of every entry's row among the known rows and then the new ones; and how many are new."""
    order = array("q", [-1]) * len(entries)
    waiting: list[int] = []
    first: dict[tuple[str, int], int] = {}
    again: list[int] = []
    refused: list[int] = []
    keys: dict[int, Key] = {}
    for number, entry in enumerate(entries):
        if entry.reason:  # of a tar's members that are not opened many may share a place
            refused.append(number)
            continue
        key = key_of(entry.place)
        order[number] = known.find(key)
        if order[number] < 0 and first.setdefault(key.place, number) == number:
            waiting.append(number)
            keys[number] = key
        elif order[number] < 0:
            again.append(number)
    fresh = 0
    for number in refused:
        journal.append(_broken_row(entries[number], entries[number].reason or ""))
        order[number] = known.rows.num_rows + fresh
        fresh += 1
    work = [(entries[number], settings) for number in waiting]
    with _progress(console, len(entries) - len(again) - len(refused), len(waiting)) as advance:
        for place, found in _looked_at(work, workers, seconds, [journal.fileno()]):
            number = waiting[place]
            key = keys.pop(number)
            row = _broken_row(entries[number], found.reason) if isinstance(found, Lost) else found
            row["modified"] = key.modified
            row["bytes"] = row["bytes"] if key.bytes is None else key.bytes
            journal.append(row)
            order[number] = known.rows.num_rows + fresh
            fresh += 1
            advance(row)
    for number in again:
        order[number] = order[first[key_of(entries[number].place).place]]
    return order, fresh


Work = tuple[Entry, ScanSettings]


def _looked_at(
    work: Sequence[Work], workers: int, seconds: float, descriptors: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any] | Lost]]:
    """The row of every file, as each is done."""
    return in_processes(_row_of, work, workers, seconds, descriptors)


def _row_of(work: Work) -> dict[str, Any]:
    return row_of(*work)


def row_of(entry: Entry, settings: ScanSettings) -> dict[str, Any]:
    """The manifest's row of one file; whatever is wrong with the file becomes its reason."""
    try:
        found = inspect_file(entry.place, settings.everything)
        content, size = content_of(entry.place)
    except Exception as error:  # whatever a decoder makes of damage: one file must not end the scan of a million
        return _broken_row(entry, error.reason if isinstance(error, BrokenFile) else "unreadable")
    short = found.info.kind == "video" and found.info.frames < settings.min_frames
    return {
        **_empty_row(entry),
        **asdict(found.info),
        "status": "too_short" if short else "usable",
        "codec": found.codec,
        "rotation": found.rotation,
        "keyframe_seconds": found.keyframe_seconds,
        "decoded": found.decoded,
        "shots": found.shots,
        "hashes": found.hashes,
        "content": content,
        "bytes": size,
    }


def _broken_row(entry: Entry, reason: str) -> dict[str, Any]:
    return {**_empty_row(entry), "status": "broken", "reason": reason}


def _empty_row(entry: Entry) -> dict[str, Any]:
    place = asdict(entry.place)
    return {**dict.fromkeys(SCHEMA.names), **place, "name": place["name"] or None}


class _progress:
    """A bar over the files, with those known from before as done; nothing where there are few."""

    def __init__(self, console: Console, files: int, left: int) -> None:
        columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"))
        self.bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=left < _SHOW_AFTER
        )
        self.task = self.bar.add_task("", total=files, completed=files - left, words="")
        self.broken = 0

    def __enter__(self) -> Any:
        self.bar.start()
        return self.advance

    def advance(self, row: dict[str, Any]) -> None:
        self.broken += row["status"] == "broken"
        self.bar.update(self.task, advance=1, words=f"{self.broken} broken")

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
