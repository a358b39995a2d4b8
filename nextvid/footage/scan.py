"""``scan``: open every file of some footage and write down what it is, in parallel, and going on where a scan was stopped."""

import multiprocessing
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av.logging
import pyarrow as pa
from pebble import ProcessExpired, ProcessPool
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
from nextvid.footage.summary import summarise
from nextvid.processes import follow
from nextvid.signals import stoppable

SECONDS = 60.0
"""How long a file may take before its process is replaced and it counts as ``timeout``."""
_AHEAD = 8
_SHOW_AFTER = 200


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
) -> dict[str, Any]:
    """Write the manifest ``out`` of ``sources``; returns its summary (:func:`nextvid.footage.summary.summarise`).

    Files that an earlier manifest at ``out`` holds, unchanged since by size and time, are not opened again; nor are those
    that a scan had done that was stopped. Raises ``UserError``, and ``Stopped`` on a signal with all that was found kept.
    """
    console = console or Console(stderr=True)
    journal = Journal(out, asdict(settings))
    try:
        entries = list(list_sources(sources))
        known = Known(pa.concat_tables([_rows_before(out, settings), journal.rows()]))
        with stoppable("what was scanned is kept"):
            order, fresh = _look_at(entries, known, journal, settings, workers or os.cpu_count() or 1, seconds, console)
        rows = pa.concat_tables([known.rows, journal.rows().slice(journal.rows().num_rows - fresh)])
        rows = mark_duplicates(_in_order(rows, order, entries))
        summary = {**summarise(rows), "settings": asdict(settings)}
        write_manifest(out, rows.to_batches(BATCH_ROWS), summary)
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
    if read_facts(out)["summary"].get("settings") != asdict(settings):
        return SCHEMA.empty_table()
    rows = pa.Table.from_batches(read_rows(out), SCHEMA)
    return rows.filter(pa.compute.not_equal(rows["status"], "broken"))


def _in_order(rows: pa.Table, order: "array[int]", entries: Sequence[Entry]) -> pa.Table:
    """A row for every entry, with the label that this listing gives it."""
    rows = rows.take(pa.array(order, pa.int64()))
    place = SCHEMA.get_field_index("label")
    return rows.set_column(place, SCHEMA.field(place), pa.array([entry.label for entry in entries], pa.string()))


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
    keys: dict[int, Key] = {}
    for number, entry in enumerate(entries):
        key = key_of(entry.place)
        order[number] = known.find(key)
        if order[number] < 0 and first.setdefault(key.place, number) == number:
            waiting.append(number)
            keys[number] = key
        elif order[number] < 0:
            again.append(number)
    fresh = 0
    work = ((number, entries[number], settings) for number in waiting)
    with _progress(console, len(entries) - len(again), len(waiting)) as advance:
        for number, row in _looked_at(work, workers, seconds, journal.fileno()):
            key = keys.pop(number)
            row["modified"] = key.modified
            row["bytes"] = row["bytes"] if key.bytes is None else key.bytes
            journal.append(row)
            order[number] = known.rows.num_rows + fresh
            fresh += 1
            advance(row)
    for number in again:
        order[number] = order[first[key_of(entries[number].place).place]]
    return order, fresh


Work = tuple[int, Entry, ScanSettings]


def _looked_at(
    work: Iterator[Work], workers: int, seconds: float, journal: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The row of every file, as each is done; a process that hangs or dies over one is replaced."""
    running: dict[Future, tuple[int, Entry]] = {}
    context = multiprocessing.get_context("fork")
    pool = ProcessPool(workers, context=context, initializer=_set_up, initargs=(os.getpid(), journal))
    try:
        while True:
            for number, entry, settings in _some(work, workers * _AHEAD - len(running)):
                running[pool.schedule(row_of, args=[entry, settings], timeout=seconds)] = (number, entry)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, entry = running.pop(future)
                yield number, _result(future, entry)
        pool.close()
    finally:
        pool.stop()
        pool.join()


def _some(work: Iterator[Work], count: int) -> Iterable[Work]:
    return [item for _, item in zip(range(count), work, strict=False)]


def _result(future: Future, entry: Entry) -> dict[str, Any]:
    try:
        return future.result()
    except TimeoutError:
        return _broken_row(entry, "timeout")
    except ProcessExpired:
        return _broken_row(entry, "unreadable")


def _set_up(parent: int, journal: int) -> None:
    """What a decoder says of a damaged file is no news. The journal's lock goes with the main process, not with this one."""
    follow(parent)
    os.close(journal)
    av.logging.set_libav_level(av.logging.PANIC)


def row_of(entry: Entry, settings: ScanSettings) -> dict[str, Any]:
    """The manifest's row of one file; whatever is wrong with the file becomes its reason."""
    try:
        if entry.reason:
            raise BrokenFile(str(entry.place), entry.reason)
        found = inspect_file(entry.place, settings.everything)
        content, size = content_of(entry.place)
    except (BrokenFile, OSError) as error:
        return _broken_row(entry, getattr(error, "reason", "unreadable"))
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
