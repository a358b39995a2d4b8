"""``prepare``: footage re-encoded once to small clips that read fast, in shards; going on where it was stopped."""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from nextvid.data.manifest import (
    PREPARED_MANIFEST,
    SCHEMA,
    broken_rows,
    explained_writing,
    read_facts,
    write_manifest,
)
from nextvid.errors import UserError
from nextvid.files import read_json, replace_json
from nextvid.footage.cluster import LOCAL, make_shards_on_ray
from nextvid.footage.crew import PATIENCE, make_shards
from nextvid.footage.encode import check_encoder
from nextvid.footage.plan import FORMAT_VERSION, PrepareSettings, plan_digest, plan_shards
from nextvid.footage.progress import ShardsDisplay
from nextvid.footage.shard import ShardFacts, ShardTask, is_whole, read_shard
from nextvid.footage.summary import summarise
from nextvid.signals import stoppable

SUMMARY, SETTINGS = "prepare.json", "settings.json"
DEFAULT_SETTINGS = PrepareSettings()
_COUNTED = ("files", "usable", "too_short", "clips", "videos", "shots", "left_out", "seconds", "bytes_in", "bytes")
_NAMED = 10


def prepare_footage(
    manifest: Path,
    out: Path,
    settings: PrepareSettings = DEFAULT_SETTINGS,
    workers: int | None = None,
    ray: str | None = None,
    verify: bool = False,
    patience: float = PATIENCE,
    console: Console | None = None,
) -> dict[str, Any]:
    """Re-encode the usable files of ``manifest`` into shards in ``out``, with a manifest of their clips; returns its summary.

    The summary, ``prepare.json``, counts the broken files by reason; the manifest names them. Shards that are there are
    left alone, with ``verify`` only if their checksums are right; so the same call goes on after a stop, and once more
    makes nothing. ``ray``: the address of a cluster to do it on
    (:func:`nextvid.footage.cluster.make_shards_on_ray`). ``patience``: seconds without a new clip after which a file
    counts as ``timeout``. A script that calls this does so under ``if __name__ == "__main__"``: each worker is a fresh
    interpreter that imports it. Raises ``UserError``, and ``Stopped`` on a signal with all finished shards kept.
    """
    console = console or Console(stderr=True)
    if workers is not None and ray not in (None, LOCAL):
        raise UserError(
            f"workers is {workers}, which is for this machine or --ray {LOCAL}; the cluster at {ray} goes by the processors "
            "that it has: leave workers out"
        )
    manifest, out = manifest.absolute(), out.absolute()
    read_facts(manifest)
    check_encoder(settings)
    with _claimed(out, manifest, settings):
        tasks = _tasks(out, manifest, settings)
        left = [task for task in tasks if not is_whole(task, verify)]
        if left:
            (out / SUMMARY).unlink(missing_ok=True)
        started = time.monotonic()
        with (
            stoppable("the finished shards are kept"),
            ShardsDisplay(console, [task.shard for task in tasks], left) as display,
        ):
            for task, said in _made(left, ray, workers or os.cpu_count() or 1, patience):
                display.update(task, said)
        if left or not _is_combined(out):
            _combine(out, tasks, {task.shard.number for task in left}, time.monotonic() - started)
        summary = read_json(out / SUMMARY)
        _name_broken(out, sum(summary["broken"].values()), console)
        return summary


def table_of(summary: dict[str, Any]) -> Table:
    """The summary for people."""
    table = Table("prepared", "", title=None)
    hours, ratio = summary["hours"], summary["bytes_out"] / max(summary["bytes_in"], 1)
    broken = ", ".join(f"{count} {reason}" for reason, count in summary["broken"].items()) or "none"
    table.add_row(
        "files",
        f"{summary['found']} found, {summary['usable']} usable, {summary['too_short']} too short; broken: {broken}",
    )
    table.add_row("clips", f"{summary['clips']} ({summary['videos']} of video, {hours:.2f} h)")
    table.add_row("shots", f"{summary['shots']}, of which {summary['left_out']} too short")
    table.add_row("shards", f"{summary['shards']}, {summary['bytes_out'] / 1e6:.0f} MB ({ratio:.0%} of the footage)")
    return table


def _tasks(out: Path, manifest: Path, settings: PrepareSettings) -> list[ShardTask]:
    digest = plan_digest(manifest, settings)
    return [ShardTask(out, manifest, settings, digest, shard) for shard in plan_shards(manifest, settings)]


def _made(tasks: list[ShardTask], ray: str | None, workers: int, patience: float) -> Iterator[tuple[ShardTask, Any]]:
    if not tasks:
        return iter(())
    if ray is not None:
        return make_shards_on_ray(tasks, ray, workers, patience)
    return make_shards(tasks, workers, patience)


@contextmanager
def _claimed(out: Path, manifest: Path, settings: PrepareSettings) -> Iterator[None]:
    """The folder is this call's alone, and what is in it was made with the same settings from the same manifest."""
    with explained_writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out} is being prepared by another process; wait for it or choose another.") from error
        facts = {
            "format_version": FORMAT_VERSION,
            "manifest": read_facts(manifest)["digest"],
            "made_from": str(manifest),
            "settings": asdict(settings),
        }
        _refuse_other(out, facts)
        _sweep(out)
        if not (out / SETTINGS).exists():
            with explained_writing(out / SETTINGS):
                replace_json(out / SETTINGS, facts)
        try:
            yield
        finally:
            _sweep(out)


def _sweep(out: Path) -> None:
    """Remove what was left half written."""
    for name in ("shard-*", f"{PREPARED_MANIFEST}*", SUMMARY, SETTINGS):
        for half in out.glob(f".{name}.*.tmp"):
            half.unlink(missing_ok=True)


def _refuse_other(out: Path, now: dict[str, Any]) -> None:
    if not (out / SETTINGS).exists():
        if any(out.glob("shard-*")):
            raise UserError(f"{out} holds shards but no {SETTINGS}; choose an empty folder.")
        return
    advice = "choose another folder, or remove this one"
    before = _readable(out / SETTINGS)
    version = before.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(f"{out} has format version {version}, not {FORMAT_VERSION}: {advice}.")
    if not before.keys() >= now.keys() or not isinstance(before["settings"], dict):
        raise UserError(f"{out / SETTINGS} is damaged, so nobody knows what the shards are made from: {advice}.")
    for name, value in now["settings"].items():
        if before["settings"].get(name) != value:
            raise UserError(f"{out} was prepared with {name} {before['settings'].get(name)}, not {value}: {advice}.")
    if before["manifest"] != now["manifest"]:
        raise UserError(
            f"{out} was prepared from {before['made_from']} when it held other rows than {now['made_from']}: {advice}."
        )


def _readable(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is damaged or missing."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_combined(out: Path) -> bool:
    """Whether the manifest and the summary are there and can be read."""
    try:
        read_facts(out / PREPARED_MANIFEST)
    except UserError:
        return False
    return _readable(out / SUMMARY).get("format_version") == FORMAT_VERSION


def _combine(out: Path, tasks: list[ShardTask], new: set[int], seconds: float) -> None:
    """Write the manifest of all clips, with a summary like a scan's, and the summary of the shards.

    ``new``: the numbers of those that this run has made, in ``seconds``.
    """
    made: list[ShardFacts] = []
    labels: set[str | None] = set()
    scanned = summarise(SCHEMA.empty_table())

    def batches() -> Iterator[pa.RecordBatch]:
        for task in tasks:
            facts, rows = read_shard(task.sidecar)
            made.append(facts)
            _add(scanned, summarise(rows))
            labels.update(rows["label"].unique().to_pylist())
            scanned["labels"] = len(labels - {None})
            yield from rows.combine_chunks().to_batches()

    write_manifest(out / PREPARED_MANIFEST, batches(), scanned)
    with explained_writing(out / SUMMARY):
        replace_json(out / SUMMARY, _summary(made, tasks[0].settings, new, seconds))


def _add(total: dict[str, Any], part: dict[str, Any]) -> None:
    """Add the counts of ``part`` to those of ``total``."""
    for name, value in part.items():
        if isinstance(value, dict):
            total[name] = dict(sorted((Counter(total[name]) + Counter(value)).items()))
        elif name != "format_version":
            total[name] += value


def _summary(made: list[ShardFacts], settings: PrepareSettings, new: set[int], seconds: float) -> dict[str, Any]:
    """``found = usable + broken + too_short`` files, ``clips = videos + pictures``; ``time``: of the run that ended it."""
    total: dict[str, Any] = {"broken": {}, **dict.fromkeys(_COUNTED, 0)}
    for facts in made:
        _add(total, {name: getattr(facts, name) for name in total})
    clips, just_made = total["clips"], sum(facts.clips for facts in made if facts.number in new)
    return {
        "format_version": FORMAT_VERSION,
        "found": total["files"],
        "usable": total["usable"],
        "broken": total["broken"],
        "too_short": total["too_short"],
        "clips": clips,
        "videos": total["videos"],
        "pictures": clips - total["videos"],
        "shots": total["shots"],
        "left_out": total["left_out"],
        "hours": total["seconds"] / 3600,
        "bytes_in": total["bytes_in"],
        "bytes_out": total["bytes"],
        "shards": len(made),
        "settings": asdict(settings),
        "time": {"seconds": seconds, "clips_per_second": just_made / seconds},
    }


def _name_broken(out: Path, count: int, console: Console) -> None:
    """Say which of the ``count`` broken files are broken: the first of them by name."""
    for name, reason in broken_rows(out / PREPARED_MANIFEST, _NAMED):
        console.print(f"{name}: {reason}", highlight=False, markup=False)
    if count > _NAMED:
        console.print(
            f"and {count - _NAMED} more, which {out / PREPARED_MANIFEST} names", highlight=False, markup=False
        )
