"""Near-duplicates between footage and the test split of a benchmark, by perceptual hashes of their frames.

Test videos are hashed ``FPS`` times a second, as they are and mirrored; the manifest has 12 to 64 hashes of every
video. A file and a test clip are near-duplicates where two frames of either lie within ``THRESHOLD_BITS`` bits, or one
within ``ALONE_BITS``: docs/contamination.md has the measurements.

Found: the same video re-encoded, scaled, lit otherwise, mirrored, faster or slower, trimmed or inside a longer one, if
hashes of the file happen to lie inside what it shares with the test clip. Not found for sure: a crop of more than a few
per cent, black bars, overlays, turned pictures; a short test clip inside a long file. Named although it is no copy: another
take by the same still camera.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int64, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nextvid.data import benchmarks
from nextvid.data.benchmarks import official
from nextvid.data.benchmarks.official.clips import shown_seconds
from nextvid.data.clip import BrokenFile, ClipSpec
from nextvid.data.decode import explained, opened, probe_file, video_stream
from nextvid.data.locations import Place
from nextvid.data.manifest import explained_writing, read_facts, read_rows
from nextvid.errors import UserError
from nextvid.files import replace_json
from nextvid.footage.hash_index import HashIndex
from nextvid.footage.hashing import perceptual_hash, thumbnail
from nextvid.footage.pool import Lost, in_processes
from nextvid.signals import stoppable

FORMAT_VERSION = 1
THRESHOLD_BITS, FRAMES_NEEDED = 8, 2
ALONE_BITS = 4
"""A single frame is enough where it is as near as this; so is that of a picture."""
FPS = 2.0
SPEC = ClipSpec(frames=8, fps=6.0, size=64)
"""The frames of a built-in benchmark's clip that are hashed: as many as the tiny recipe reads, twice as wide."""
SECONDS = 120.0
"""How long a test file may take before its process is replaced and it counts as ``timeout``."""
SHOWN = 20

Hashes = list[tuple[float, int, bool]]
"""Of one test clip: the time in seconds, the hash, and whether it is of the mirrored frame."""


class SplitFrames(NamedTuple):
    """The hashes of all frames of a test split, the number of the clip and the time in seconds of each."""

    hashes: Int64[np.ndarray, " frames"]
    clips: Int64[np.ndarray, " frames"]
    seconds: Float[np.ndarray, " frames"]
    mirrored: Bool[np.ndarray, " frames"]


@dataclass(frozen=True)
class HashedSplit:
    """The test split of a benchmark: what every clip is called, its frames, and the files that are broken or missing."""

    names: list[str]
    frames: SplitFrames
    broken: list[dict[str, str]]
    missing: list[str]


def find_contamination(
    manifest: Path, benchmark: str, level: str | None, console: Console, workers: int | None = None
) -> dict[str, Any]:
    """The near-duplicates between the usable files of ``manifest`` and the test split of ``benchmark``.

    ``benchmark`` is a built-in one, at ``level`` (by default its first), or ``NAME:ROOT``. Returns what it also writes to
    ``<manifest stem>_against_<benchmark>.json`` beside the manifest: ``{format_version, benchmark, level, split,
    test_clips, test_hashes, broken, missing, footage_files, hashes, near_duplicates, count, threshold_bits, alone_bits,
    frames_needed}``. Raises ``UserError`` for a wrong manifest, benchmark or level.
    """
    manifest = Path(manifest)
    files = read_facts(manifest)["rows"]
    if "hashes" not in pq.read_schema(manifest).names:
        raise UserError(f"{manifest} has no hashes of frames; scan the footage anew.")
    level = level or benchmarks.levels(benchmark)[0]
    with stoppable("nothing was written"):
        test = hash_test_split(benchmark, level, console, workers or os.cpu_count() or 1)
        found, usable, hashes = _search(manifest, files, test, console)
    result = {
        "format_version": FORMAT_VERSION,
        "benchmark": benchmark,
        "level": level,
        "split": "test",
        "test_clips": len(test.names),
        "test_hashes": len(test.frames.hashes),
        "broken": test.broken,
        "missing": test.missing,
        "footage_files": usable,
        "hashes": hashes,
        "near_duplicates": found,
        "count": len(found),
        "threshold_bits": THRESHOLD_BITS,
        "alone_bits": ALONE_BITS,
        "frames_needed": FRAMES_NEEDED,
    }
    with explained_writing(result_path(manifest, benchmark)):
        replace_json(result_path(manifest, benchmark), result)
    return result


def result_path(manifest: Path, benchmark: str) -> Path:
    """Where the result lies: of ``NAME:ROOT`` the name alone is in the file's name."""
    name = re.sub(r"[^\w.-]", "_", benchmark.partition(":")[0])
    return manifest.with_name(f"{manifest.stem}_against_{name}.json")


def contamination_table(found: dict[str, Any]) -> Table:
    """The first near-duplicates of :func:`find_contamination` as a table; names are escaped, and never markup."""
    first = found["near_duplicates"][:SHOWN]
    shown = f", the first {len(first)}" if len(first) < found["count"] else ""
    table = Table(title=f"{found['count']} near-duplicates with the test split of {escaped(found['benchmark'])}{shown}")
    for heading in ("footage", "test clip", "frames", "bits", "seconds of the test clip"):
        table.add_column(heading, overflow="fold")
    for row in first:
        seconds = ", ".join(f"{value:.1f}" for value in row["seconds"])
        clip = escaped(row["clip"]) + (" (mirrored)" if row["mirrored"] else "")
        table.add_row(escaped(row["footage"]), clip, str(row["frames"]), str(row["distance"]), seconds)
    return table


def escaped(name: str) -> str:
    """``name`` without control characters and without what rich reads as markup."""
    return repr(name)[1:-1].replace("[", r"\[")


# The test split


def hash_test_split(benchmark: str, level: str, console: Console, workers: int) -> HashedSplit:
    """Hash every clip of the test split; files in parallel processes. Raises ``UserError``."""
    if official.is_official(benchmark):
        benchmarks.load(benchmark, level, "test", 1)
        split = official.read(benchmark, "test")
        names = [entry.path for entry in split.entries]
        clips, broken = _hash_files(split.entries, workers, console)
        missing = split.missing
    else:
        clips, broken, missing = _hash_built_in(benchmark, level, console), [], []
        names = [f"clip {number}" for number in range(len(clips))]
    return HashedSplit(names, _flat(clips), broken, missing)


def _flat(clips: Sequence[Hashes]) -> SplitFrames:
    """All hashes of all clips, a hash that a clip repeats only once."""
    rows = []
    for number, clip in enumerate(clips):
        distinct = {(value, mirrored): seconds for seconds, value, mirrored in reversed(clip)}
        rows += [(value, number, seconds, mirrored) for (value, mirrored), seconds in distinct.items()]
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    kinds = (np.int64, np.int64, np.float64, np.bool_)
    return SplitFrames(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def _hash_built_in(benchmark: str, level: str, console: Console) -> list[Hashes]:
    split = benchmarks.load(benchmark, level, "test")
    clips: list[Hashes] = []
    with _bar("test clips", console) as bar:
        for number in bar.track(range(len(split))):
            frames = enumerate(split.clip(number, SPEC))
            clips.append([found for at, frame in frames for found in _hashes(at / SPEC.fps, _scaled(frame))])
    return clips


def _scaled(frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "32 32 3"]:
    return thumbnail(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))


def _hashes(seconds: float, picture: UInt8[np.ndarray, "32 32 3"]) -> Hashes:
    """The hash of a frame and of its mirror image; nothing of a flat one."""
    grey = picture.mean(axis=-1)
    both = ((perceptual_hash(grey), False), (perceptual_hash(grey[:, ::-1]), True))
    return [(seconds, value, mirrored) for value, mirrored in both if value is not None]


def hash_file(entry: official.Listed) -> Hashes:
    """The hashes of a test file ``FPS`` times a second of what the benchmark shows of it, decoded from its start.

    Raises ``BrokenFile``.
    """
    place = Place(entry.archive or entry.path, entry.offset, entry.length, entry.path)
    info = probe_file(place)
    due, end = (0.0, 0.0) if info.kind == "picture" else shown_seconds(entry, info)
    end = math.inf if entry.end is None else end
    half = 0.5 / info.fps if info.fps else 0.0
    found: Hashes = []
    with explained(place), opened(place) as container:
        stream = video_stream(place, container)
        for number, frame in enumerate(container.decode(stream)):
            seconds = _seconds(frame, stream, number / (info.fps or 1.0))
            if seconds > end + half:
                break
            if seconds + half >= due:
                found += _hashes(seconds, thumbnail(frame))
                due = max(due + 1 / FPS, seconds)
    return found


def _seconds(frame: Any, stream: Any, otherwise: float) -> float:
    """Seconds from the file's first frame."""
    return otherwise if frame.pts is None else float((frame.pts - (stream.start_time or 0)) * stream.time_base)


def _hash_safely(entry: official.Listed) -> Hashes | str:
    """The hashes, or why the file is broken."""
    try:
        return hash_file(entry)
    except (BrokenFile, OSError) as error:
        return str(getattr(error, "reason", "unreadable"))


def _hash_files(
    entries: Sequence[official.Listed], workers: int, console: Console
) -> tuple[list[Hashes], list[dict[str, str]]]:
    """The hashes of every file, none of a broken one; and the broken ones by ``path`` and ``reason``."""
    clips: list[Hashes] = [[] for _ in entries]
    broken: dict[int, str] = {}
    with _bar("test files", console) as bar:
        for number, result in bar.track(in_processes(_hash_safely, entries, workers, SECONDS), total=len(entries)):
            if isinstance(result, Lost):
                broken[number] = result.reason
            elif isinstance(result, str):
                broken[number] = result
            else:
                clips[number] = result
    return clips, [{"path": entries[number].path, "reason": broken[number]} for number in sorted(broken)]


# Search


def _search(manifest: Path, files: int, split: HashedSplit, console: Console) -> tuple[list[dict[str, Any]], int, int]:
    """The near-duplicates, nearest first, and how many files and hashes were compared."""
    index = HashIndex(split.frames.hashes, THRESHOLD_BITS)
    found: list[dict[str, Any]] = []
    usable = hashes = 0
    with _bar("footage", console) as bar:
        task = bar.add_task("", total=files)
        for batch in read_rows(manifest, ["path", "name", "status", "hashes"]):
            rows = batch.filter(pc.equal(batch["status"], "usable"))
            usable += rows.num_rows
            hashes += pc.sum(pc.list_value_length(rows["hashes"])).as_py() or 0
            found += _near_duplicates(rows, split, index)
            bar.advance(task, batch.num_rows)
    return sorted(found, key=lambda row: (-row["frames"], row["distance"])), usable, hashes


def _near_duplicates(rows: pa.RecordBatch, split: HashedSplit, index: HashIndex) -> list[dict[str, Any]]:
    """Those of one batch of rows of the manifest."""
    near = index.near(rows["hashes"].flatten().to_numpy(zero_copy_only=False).astype(np.int64))
    owners = pc.list_parent_indices(rows["hashes"]).to_numpy()[near.query]
    pairs = np.stack([owners, split.frames.clips[near.hash]], axis=1)
    best: dict[tuple[int, int], dict[str, Any]] = {}
    for mirrored in (False, True):
        these = np.flatnonzero(split.frames.mirrored[near.hash] == mirrored)
        for chosen in _groups(pairs, these):
            row, clip = pairs[chosen[0]].tolist()
            evidence = _evidence(near.query[chosen], near.hash[chosen], near.bits[chosen], split.frames.seconds)
            if evidence is not None and _better(evidence, best.get((row, clip))):
                path, name = rows["path"][row].as_py(), rows["name"][row].as_py()
                names = {"footage": name or path, "path": path, "clip": split.names[clip]}
                best[row, clip] = {**names, **evidence, "mirrored": mirrored}
    return list(best.values())


def _groups(
    pairs: Int64[np.ndarray, "matches 2"], these: Int64[np.ndarray, " some"]
) -> list[Int64[np.ndarray, " group"]]:
    """Those of ``these`` matches that are of the same file and clip, together."""
    order = these[np.lexsort(pairs[these].T)]
    edges = np.flatnonzero(np.any(np.diff(pairs[order], axis=0), axis=1)) + 1
    return [group for group in np.split(order, edges) if len(group)]


def _evidence(
    query: Int64[np.ndarray, " matches"],
    frame: Int64[np.ndarray, " matches"],
    bits: UInt8[np.ndarray, " matches"],
    seconds: Float[np.ndarray, " frames"],
) -> dict[str, Any] | None:
    """What speaks for a file and a clip being the same; None where it is too little."""
    frames = min(len(np.unique(query)), len(np.unique(frame)))
    nearest = int(bits.min())
    if frames < FRAMES_NEEDED and nearest > ALONE_BITS:
        return None
    order = np.argsort(bits, kind="stable")
    _, first = np.unique(query[order], return_index=True)
    times = sorted({round(float(value), 3) for value in seconds[frame[order[first]]]})
    return {"frames": frames, "distance": nearest, "seconds": times}


def _better(one: dict[str, Any], other: dict[str, Any] | None) -> bool:
    return other is None or (one["frames"], -one["distance"]) > (other["frames"], -other["distance"])


def _bar(words: str, console: Console) -> Progress:
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
