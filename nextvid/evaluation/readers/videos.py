"""A user's videos as clips to measure on: which videos are used, where their clips lie, and the clips, decoded once to disk."""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int, Int64, UInt8
from rich.console import Console
from torch import Tensor

from nextvid.data.backends import Backend
from nextvid.data.clip import BrokenFile, ClipSpec, Frames
from nextvid.data.decode import decode_clip
from nextvid.data.film import cache_folder
from nextvid.data.footage import FootageSource
from nextvid.data.locations import Place
from nextvid.data.manifest import Manifest, broken_rows, read_rows
from nextvid.data.transforms import centre_crop, resized_crop
from nextvid.errors import UserError
from nextvid.evaluation.features import track
from nextvid.files import saying_where_disks_fail
from nextvid.randomness import generator
from nextvid.settings import DataConfig, SourceConfig
from nextvid.training.footage import SourceOpener

FEWEST_VIDEOS, FEWEST_CLIPS = 8, 2
NAMED = 100
"""Broken files that are named; all are counted."""
PREPARED_NAME = re.compile(r"(\d{9})_\d{5}\.\w+")
"""A clip of prepared shards: the number of the file that it was cut from, and its own."""


@dataclass(frozen=True)
class VideoClips:
    """Clips that do not overlap, of several videos, in the order of videos and then of time; the frames lie on disk.

    ``left_out``: how many files were not used, by reason; ``broken_files``: the first of the broken ones with their reasons.
    """

    frames: UInt8[np.ndarray, "clips frames 3 size size"]
    videos: Int64[Tensor, " clips"]
    """The number of the video that each clip is of, from 0."""
    names: list[str]
    left_out: dict[str, Any]
    broken_files: list[tuple[str, str]]

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.videos)

    def clips_of(self, fewest: int) -> list[Int64[Tensor, " clips_of_one"]]:
        """The clips of each video that has ``fewest`` or more."""
        counts = torch.bincount(self.videos).tolist()
        return [rows for rows in torch.arange(len(self)).split(counts) if len(rows) >= fewest]


@dataclass(frozen=True)
class _Chosen:
    """Rows of a manifest to take clips from, the first to be tried first, and how many files were left out by reason."""

    rows: list[int]
    left_out: dict[str, Any]


@contextmanager
def video_clips(
    source: str, spec: ClipSpec, *, clips: int, videos: int, seed: int = 0, progress: bool = True
) -> Iterator[VideoClips]:
    """Up to ``clips`` clips of each of up to ``videos`` videos of ``source``, on disk until the context ends.

    ``source`` is whatever ``data.sources`` takes a path of: a folder, file, glob, list, tar, URL, manifest or prepared shards;
    what is no manifest is scanned, and the scan kept in the cache folder. Pictures, duplicates and what is broken are left
    out. Which videos are taken where there are more is a function of ``seed``; those that hold three clips come first.
    A file is one video, however long, and of prepared shards so is all that was cut from one file: its longest piece
    is read. Frames are cropped in the middle; a clip lies in the middle of its part of the video. Raises ``UserError``
    where fewer than 8 videos hold two clips.
    """
    manifest, backend = _open(source, seed, progress)
    chosen = _choose(manifest, spec, clips, seed)
    _check_enough(source, len(chosen.rows), chosen.left_out, spec)
    folder = cache_folder()
    with saying_where_disks_fail(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="clips-", dir=folder) as beside:
            path = Path(beside) / "frames"
            found = _decode_all(manifest, backend, chosen, spec, clips, videos, path, progress)
            _check_enough(source, len(found.names), found.left_out, spec)
            yield found


def _open(source: str, seed: int, progress: bool) -> tuple[Manifest, Backend]:
    config = SourceConfig(path=source)
    console = Console(stderr=True, quiet=not progress)
    opened = SourceOpener(DataConfig(sources=[config]), 2, None, console).mixture([config], seed).sources[0]
    assert isinstance(opened, FootageSource)
    return opened.manifest, opened.backend


def _choose(manifest: Manifest, spec: ClipSpec, clips: int, seed: int) -> _Chosen:
    """Videos that two clips can be taken from, those of three first, else in an order by ``seed``."""
    status: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    fits, pictures = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    keys: dict[int, str] = {}
    usable = 0
    for batch in read_rows(manifest.path, ["path", "name", "length", "status", "reason", "kind", "seconds"]):
        status.update(batch["status"].to_pylist())
        broken.update(batch.filter(pc.equal(batch["status"], "broken"))["reason"].to_pylist())
        rows = batch.filter(pc.equal(batch["status"], "usable"))
        fits.append(fitting(pc.fill_null(rows["seconds"], 0.0).to_numpy(zero_copy_only=False), spec, clips))
        pictures.append(pc.equal(rows["kind"], "picture").to_numpy(zero_copy_only=False))
        if rows["length"].null_count < len(rows):
            keys |= {usable + place: video for place, video in enumerate(map(_video_of_row, rows.to_pylist())) if video}
        usable += len(rows)
    count, picture = np.concatenate(fits), np.concatenate(pictures)
    enough = ~picture & (count >= FEWEST_CLIPS)
    every = np.flatnonzero(enough)
    kept = _one_of_each(every, keys, count)
    mixed = generator("videos to measure on", seed).permutation(kept)
    mixed = mixed[np.argsort(-np.minimum(count[mixed], 3), kind="stable")]
    left_out = {
        "pictures": int(picture.sum()),
        "duplicates": status["duplicate"],
        "too_short": status["too_short"] + int((~picture & ~enough).sum()),
        "further_pieces": len(every) - len(kept),
        "broken": dict(sorted(broken.items())),
    }
    return _Chosen(mixed.tolist(), left_out)


def _one_of_each(
    rows: Int[np.ndarray, " rows"], keys: dict[int, str], count: Int[np.ndarray, " usable"]
) -> Int[np.ndarray, " kept"]:
    """Of rows of one key the first of those that hold the most clips; rows without a key all stay."""
    if not keys:
        return rows
    best: dict[str | int, int] = {}
    for row in rows.tolist():
        key = keys.get(row, row)
        if key not in best or count[row] > count[best[key]]:
            best[key] = row
    return np.array(sorted(best.values()), np.int64)


def _video_of_row(row: dict[str, Any]) -> str | None:
    return video_of(row["path"], row["name"], row["length"])


def video_of(path: str, name: str | None, length: int | None) -> str | None:
    """What tells the file that a clip of prepared shards was cut from; None where the file is a video of its own."""
    found = PREPARED_NAME.fullmatch(os.path.basename(name or "")) if length is not None else None
    return f"{os.path.dirname(path)}/{found.group(1)}" if found else None


def fitting(seconds: Float[np.ndarray, " videos"], spec: ClipSpec, most: int) -> Int[np.ndarray, " videos"]:
    """How many clips, one after the other, videos of ``seconds`` hold, up to ``most``."""
    return np.minimum(most, (seconds * spec.fps / spec.frames + 1e-6).astype(np.int64))


def spread_times(seconds: float, spec: ClipSpec, clips: int) -> Float[np.ndarray, "clips frames"]:
    """When the frames of ``clips`` clips are shown, in seconds: each clip in the middle of its equal part of the video."""
    part, lasts = seconds / clips, spec.frames / spec.fps
    starts = np.arange(clips) * part + max(0.0, part - lasts) / 2
    return starts[:, None] + np.arange(spec.frames) / spec.fps


def _check_enough(source: str, videos: int, left_out: dict[str, Any], spec: ClipSpec) -> None:
    if videos >= FEWEST_VIDEOS:
        return
    lasts = spec.frames / spec.fps
    reasons = {**left_out, "broken": sum(left_out["broken"].values())}
    words = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items() if count) or "nothing"
    raise UserError(
        f"{source} holds {videos} usable videos of at least {FEWEST_CLIPS * lasts:.3g} s ({FEWEST_CLIPS} clips of "
        f"{spec.frames} frames at {spec.fps:g} a second that do not overlap), and {FEWEST_VIDEOS} are needed (left out: "
        f"{words}). Add videos, or take shorter clips. Clips of one file count as one video, since they resemble one another "
        "whatever the encoder: cut few long recordings into a file for each scene"
    )


def _decode_all(
    manifest: Manifest,
    backend: Backend,
    chosen: _Chosen,
    spec: ClipSpec,
    clips: int,
    videos: int,
    path: Path,
    progress: bool,
) -> VideoClips:
    """Clips of the first ``videos`` rows that can be decoded; another row stands in for one that cannot."""
    names: list[str] = []
    counts: list[int] = []
    broken: list[tuple[str, str]] = []
    wanted = min(videos, len(chosen.rows))
    with path.open("wb") as file:
        for row in track(_until(chosen.rows, names, wanted), wanted, "decoding videos", progress):
            item = manifest[row]
            fits = int(fitting(np.array([item.info.seconds]), spec, clips)[0])
            times = spread_times(item.info.seconds, spec, fits)
            try:
                decoded = [_decode(item.place, part, spec.size, backend) for part in times]
            except BrokenFile as error:
                broken.append((str(item.place), error.reason))
                continue
            _append(file, decoded)
            names.append(str(item.place))
            counts.append(len(decoded))
    reasons = Counter(chosen.left_out["broken"]) + Counter(reason for _, reason in broken)
    not_needed = len(chosen.rows) - len(names) - len(broken)
    left_out = {**chosen.left_out, "not_needed": not_needed, "broken": dict(sorted(reasons.items()))}
    shape = (sum(counts), spec.frames, 3, spec.size, spec.size)
    frames = np.memmap(path, np.uint8, "r", shape=shape) if counts else np.zeros(shape, np.uint8)
    named = [*broken_rows(manifest.path, NAMED), *broken][:NAMED]
    return VideoClips(frames, _numbered(counts), names, left_out, named)


def _until(rows: list[int], names: list[str], wanted: int) -> Iterator[int]:
    for row in rows:
        if len(names) == wanted:
            return
        yield row


def _numbered(counts: list[int]) -> Int64[Tensor, " clips"]:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


def _decode(place: Place, times: Float[np.ndarray, " frames"], size: int, backend: Backend) -> Frames:
    frames = decode_clip(place, times, size, backend)
    return resized_crop(frames, centre_crop(*frames.shape[1:3]), size)


def _append(file: BinaryIO, clips: list[Frames]) -> None:
    for clip in clips:
        file.write(np.ascontiguousarray(np.moveaxis(clip, -1, 1)).tobytes())
