"""What ``prepare`` is to make: its settings, and which rows of a manifest go into which shard."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextvid.data.backends import scaled_size
from nextvid.data.decode import Kind
from nextvid.data.locations import Place, is_remote
from nextvid.data.manifest import read_facts, read_rows
from nextvid.errors import UserError

FORMAT_VERSION = 1
PICTURE_SECONDS = 0.05
"""What a picture counts for where the rest of the work is counted in seconds of footage."""

_VIDEO_BITS, _PICTURE_BITS = 0.16, 1.8
"""Bits a pixel of a video at crf 23 and of a picture at quality 95, measured on the built-in film at 256 pixels."""
_COLUMNS = ["path", "offset", "length", "name", "status", "kind", "width", "height", "fps", "seconds", "label", "bytes"]


@dataclass(frozen=True)
class PrepareSettings:
    """What the clips are to be like; ``UserError`` where that is impossible.

    ``short_side``: their short side in pixels, where the footage has as many. ``seconds``: the longest clip;
    ``min_seconds``: shots that are shorter are left out, unless a video has no other. ``keyframes``: frames from one key
    frame to the next. ``crf``, ``codec``: the encoder's quality and name. ``fps``: frames a second at most, None for all.
    ``shard_mb``: about how many million bytes make a shard. ``quality``: of the JPEGs that pictures become.
    """

    short_side: int = 256
    seconds: float = 10.0
    min_seconds: float = 0.5
    keyframes: int = 12
    crf: int = 23
    codec: str = "libx264"
    fps: float | None = None
    shard_mb: float = 128.0
    quality: int = 95

    def __post_init__(self) -> None:
        for name in ("seconds", "min_seconds", "fps", "shard_mb"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"{name} is {value}; it must be a finite number")
        for name in ("short_side", "seconds", "keyframes", "shard_mb"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps is {self.fps}; it must be above 0, or left out to keep every frame")
        if not 0 <= self.min_seconds <= self.seconds / 2:
            raise UserError(
                f"min_seconds is {self.min_seconds}; it must lie between 0 and half of seconds ({self.seconds / 2:g}), "
                "since a longer shot may be split in halves"
            )
        if not 0 <= self.crf <= 51 or not 1 <= self.quality <= 100:
            raise UserError(f"crf is {self.crf} (0 to 51) and quality {self.quality} (1 to 100)")


@dataclass(frozen=True)
class SourceFile:
    """A usable row of a manifest, the ``number``-th of all rows; ``called``: its name or path as the manifest has it."""

    number: int
    called: str
    place: Place
    kind: Kind
    seconds: float
    label: str | None
    bytes: int

    @property
    def work(self) -> float:
        """What it counts for: its seconds of footage."""
        return self.seconds if self.kind == "video" else PICTURE_SECONDS


@dataclass(frozen=True)
class Shard:
    """The usable ones among the rows ``[first, last)`` of the manifest; ``work``: their seconds of footage."""

    number: int
    first: int
    last: int
    work: float

    @property
    def stem(self) -> str:
        """Its files' name without suffix."""
        return f"shard-{self.number:06d}"


def plan_shards(manifest: Path, settings: PrepareSettings) -> list[Shard]:
    """Shards that hold every usable row once and in order, of about ``shard_mb`` each by estimate.

    A function of the manifest and the settings alone. Raises ``UserError`` where no row is usable.
    """
    shards: list[Shard] = []
    first = number = 0
    size = work = 0.0
    for row in _rows(read_rows(manifest, _COLUMNS)):
        if row["status"] == "usable":
            more = _estimated_bytes(row, settings)
            if work and size + more > settings.shard_mb * 1e6:
                shards.append(Shard(len(shards), first, number, work))
                first, size, work = number, 0.0, 0.0
            size += more
            work += _source(number, row, manifest.parent).work or PICTURE_SECONDS
        number += 1
    if not work:
        raise UserError(f"{manifest} has no usable row, so there is nothing to prepare.")
    return [*shards, Shard(len(shards), first, number, work)]


def plan_digest(manifest: Path, settings: PrepareSettings) -> str:
    """Changes with any row of the manifest and with any setting."""
    facts = {"format_version": FORMAT_VERSION, "manifest": read_facts(manifest)["digest"], "settings": asdict(settings)}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def files_of(manifest: Path, shard: Shard) -> list[SourceFile]:
    """The shard's files; nothing but the row groups that hold them is read."""
    found = []
    with pq.ParquetFile(manifest) as file:
        begin = 0
        for group in range(file.metadata.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if begin < shard.last and end > shard.first:
                wanted = slice(max(shard.first, begin) - begin, min(shard.last, end) - begin)
                table = file.read_row_group(group, columns=_COLUMNS).slice(wanted.start, wanted.stop - wanted.start)
                found += [
                    _source(begin + wanted.start + place, row, manifest.parent)
                    for place, row in enumerate(_rows(table.to_batches()))
                    if row["status"] == "usable"
                ]
            begin = end
    return found


def _rows(batches: "Iterator[pa.RecordBatch] | list[pa.RecordBatch]") -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _source(number: int, row: dict[str, Any], folder: Path) -> SourceFile:
    path = row["path"]
    absolute = path if is_remote(path) or path.startswith("file://") else os.path.join(folder, path)
    place = Place(absolute, row["offset"] or 0, row["length"], row["name"] or "")
    return SourceFile(
        number, row["name"] or path, place, row["kind"], row["seconds"] or 0.0, row["label"], row["bytes"] or 0
    )


def _estimated_bytes(row: dict[str, Any], settings: PrepareSettings) -> float:
    height, width = scaled_size(row["height"], row["width"], settings.short_side)
    if row["kind"] == "picture":
        return height * width * _PICTURE_BITS / 8
    fps = min(row["fps"] or 25.0, settings.fps or float("inf"))
    return height * width * fps * row["seconds"] * _VIDEO_BITS / 8 * 2 ** ((23 - settings.crf) / 6)
