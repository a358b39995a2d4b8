"""The latents of one prepared shard: the maps of all frames in one file, and beside it the index that says whose they are."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.lib import format as npy
from safetensors.numpy import save_file

from nextvid.data.clip import BrokenFile, Frames
from nextvid.data.decode import Clock, FileInfo, decode_all, decode_clip
from nextvid.data.footage import cut, decoded_side
from nextvid.data.latents import INDEX_FACTS, Maps, ShardIndex, read_index
from nextvid.data.locations import Place
from nextvid.data.manifest import explained_writing
from nextvid.data.transforms import Crop, FixedCrop, fixed_crop, normalise
from nextvid.errors import UserError
from nextvid.files import replacing
from nextvid.targets.space import NetworkSpace

FRAMES_AT_ONCE = 64
"""Decoded frames of a clip that are held in memory."""
Report = Callable[[int], None]
"""Is told how many more frames are done."""


class Encoding(NamedTuple):
    """How frames become what is stored: the space, on its device, and the form of frames and maps."""

    space: NetworkSpace
    size: int
    crop: FixedCrop
    precision: Literal["float32", "float16"]
    map_shape: tuple[int, int, int]

    @property
    def frame_bytes(self) -> int:
        """What a frame takes on the disk, with its tick."""
        return int(np.prod(self.map_shape)) * np.dtype(self.precision).itemsize + 8


class ClipRow(NamedTuple):
    """A clip of a shard."""

    place: Place
    info: FileInfo
    called: str

    @classmethod
    def of(cls, row: dict[str, Any], shards: Path) -> "ClipRow":
        """From its row in the shard's Parquet file."""
        info = FileInfo(row["kind"], row["width"], row["height"], row["fps"], row["frames"], row["seconds"])
        place = Place(str(shards / row["path"]), row["offset"], row["length"], str(shards / row["name"]))
        return cls(place, info, row["name"])


@dataclass(frozen=True)
class LatentShard:
    """What is to be made in ``folder`` of a shard's ``clips``; ``source``: changes with the shard, and with how it is encoded."""

    folder: Path
    name: str
    source: str
    clips: list[ClipRow]
    seconds: float

    @property
    def maps(self) -> Path:
        """The maps, ``(frames, channels, rows, columns)``."""
        return self.folder / f"{self.name}.npy"

    @property
    def index_file(self) -> Path:
        """The index; there once the maps are whole."""
        return self.folder / f"{self.name}.safetensors"

    @cached_property
    def index(self) -> ShardIndex:
        """The index, once it is there."""
        return read_index(self.index_file)

    @property
    def frames(self) -> int:
        """As many as its rows say."""
        return sum(clip.info.frames for clip in self.clips)


def is_whole(task: LatentShard, verify: bool = False) -> bool:
    """Whether the latents are there as :func:`make_latents` would make them, by size, or with ``verify`` by checksum."""
    try:
        facts = read_index(task.index_file).facts
        if facts["source"] != task.source or task.maps.stat().st_size != facts["bytes"]:
            return False
        return not verify or _checksum(task.maps) == facts["sha256"]
    except (OSError, ValueError, KeyError):
        return False


def make_latents(task: LatentShard, encoding: Encoding, report: Report) -> None:
    """Encode every frame of a shard's clips and write both files, each whole or not at all, the index last.

    A clip that cannot be decoded to its end is noted in the index with its reason, and has no frames. Raises ``UserError``
    where the disk cannot take it.
    """
    task.index_file.unlink(missing_ok=True)
    with explained_writing(task.maps), replacing(task.maps) as beside:
        with beside.open("w+b") as file:
            contents = _Contents(file, encoding, report)
            for number, clip in enumerate(task.clips):
                contents.add(number, clip)
            contents.close()
        facts = {
            "source": task.source,
            "bytes": beside.stat().st_size,
            "sha256": _checksum(beside),
            "broken": contents.broken,
        }
    with explained_writing(task.index_file), replacing(task.index_file) as beside:
        save_file(contents.tensors(), beside, metadata={INDEX_FACTS: json.dumps(facts)})


@torch.no_grad()
def encode(space: NetworkSpace, frames: UInt8[np.ndarray, "frames size size 3"]) -> Maps:
    """The maps of frames, as :meth:`nextvid.targets.space.MapSpace.encode` has them before it normalises them."""
    device = next(space.buffers()).device
    clip = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))[None].to(device)
    return space.maps_of(normalise(clip))[0].float().cpu().numpy()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Contents:
    """What has gone into a shard's files so far."""

    def __init__(self, file: BinaryIO, encoding: Encoding, report: Report) -> None:
        self.file, self.encoding, self.report = file, encoding, report
        self.first, self.stamps = [0], list[int]()
        self.clocks: list[Clock] = []
        self.broken: dict[int, str] = {}
        self._write_header()

    def add(self, number: int, clip: ClipRow) -> None:
        """Encode a clip; one that breaks leaves nothing but its reason."""
        begin, frames = self.file.tell(), len(self.stamps)
        try:
            clock = self._picture(clip) if clip.info.kind == "picture" else self._video(clip)
        except BrokenFile as error:
            self.file.seek(begin)
            self.file.truncate()
            del self.stamps[frames:]
            self.broken[number], clock = error.reason, Clock(0, 1.0)
            self.report(clip.info.frames)
        self.clocks.append(clock)
        self.first.append(len(self.stamps))

    def close(self) -> None:
        """Say at the beginning how many frames there are."""
        self.file.seek(0)
        self._write_header()

    def tensors(self) -> dict[str, np.ndarray]:
        """The index's."""
        return {
            "first": np.array(self.first, np.int64),
            "start": np.array([clock.start for clock in self.clocks], np.int64),
            "tick": np.array([clock.tick for clock in self.clocks], np.float64),
            "stamps": np.array(self.stamps, np.int64),
        }

    def _write_header(self) -> None:
        """It has room for any number of frames, so that it can be written over."""
        shape = (len(self.stamps), *self.encoding.map_shape)
        kind = npy.dtype_to_descr(np.dtype(self.encoding.precision))
        npy.write_array_header_1_0(self.file, {"descr": kind, "fortran_order": False, "shape": shape})

    def _picture(self, clip: ClipRow) -> Clock:
        self._write(clip, decode_clip(clip.place, np.zeros(1), self._side(clip)), [0])
        self.report(1)
        return Clock(0, 1.0)

    def _video(self, clip: ClipRow) -> Clock:
        begin, clocks = len(self.stamps), set[Clock]()
        for pictures, stamps, clock in _in_chunks(clip, self._side(clip)):
            self._write(clip, pictures, stamps)
            clocks.add(clock)
        shown = self.stamps[begin:]
        if len(shown) < clip.info.frames:
            raise BrokenFile(str(clip.place), "truncated")
        if len(shown) > clip.info.frames or min(np.diff(shown), default=1) <= 0:
            raise BrokenFile(str(clip.place), "unreadable")
        self.report(len(shown))
        return clocks.pop()

    def _side(self, clip: ClipRow) -> int:
        return decoded_side(clip.info, self._crop(clip), self.encoding.size)

    def _crop(self, clip: ClipRow) -> Crop:
        return fixed_crop(self.encoding.crop, clip.info.height, clip.info.width)

    def _write(self, clip: ClipRow, pictures: Frames, stamps: list[int]) -> None:
        frames = cut(pictures, clip.info, self._crop(clip), self.encoding.size)
        self.file.write(self._stored(encode(self.encoding.space, frames), clip).tobytes())
        self.stamps += stamps

    def _stored(self, maps: Maps, clip: ClipRow) -> Float[np.ndarray, "frames map_channels map_rows map_columns"]:
        with np.errstate(over="ignore"):
            stored = maps.astype(self.encoding.precision)
        if not np.isfinite(stored).all():
            raise UserError(
                f"{clip.called}: its latents are not finite numbers in {self.encoding.precision}"
                + ("; use --latents-precision float32" if np.isfinite(maps).all() else ": the weights are damaged")
            )
        return stored


def _in_chunks(clip: ClipRow, short_side: int) -> Iterator[tuple[Frames, list[int], Clock]]:
    """All frames of a video, some at once, with their ticks. Raises ``BrokenFile``."""
    pictures: list[UInt8[np.ndarray, "height width 3"]] = []
    stamps: list[int] = []
    for picture, stamp, clock in decode_all(clip.place, short_side):
        pictures.append(picture)
        stamps.append(stamp)
        if len(stamps) == FRAMES_AT_ONCE:
            yield np.stack(pictures), stamps, clock
            pictures, stamps = [], []
    if stamps:
        yield np.stack(pictures), stamps, clock
