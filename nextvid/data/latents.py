"""Latents beside prepared shards: a target space's maps of every frame, stored once and read where a clip is drawn.

A cache is a folder in ``SHARDS/latents``: ``latents.json`` says what it is of, and for each shard there are the maps of all
frames, one after the other (``shard-000000.npy``), and an index (``shard-000000.safetensors``) of which frames are whose and
when each is shown. Both are memory-mapped: a clip reads its own frames.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from nextvid.data.decode import Clock
from nextvid.errors import UserError

FORMAT_VERSION = 1
FOLDER, FACTS = "latents", "latents.json"
INDEX_FACTS = "nextvid"
Maps = Float[np.ndarray, "frames map_channels map_rows map_columns"]
_KINDS = {"I64": np.dtype("<i8"), "F64": np.dtype("<f8")}


@dataclass(frozen=True)
class ShardIndex:
    """What a shard's maps are of: clip *i* has the frames from ``first[i]`` up to ``first[i + 1]``.

    ``stamps``: when each frame is shown, in ticks of its clip's clock: ``start[i]``, ``tick[i]``
    (:class:`nextvid.data.decode.Clock`). ``facts``: what it says of itself, such as the ``broken`` clips, by number.
    """

    first: Int64[np.ndarray, " clips_and_end"]
    start: Int64[np.ndarray, " clips"]
    tick: Float64[np.ndarray, " clips"]
    stamps: Int64[np.ndarray, " all_frames"]
    facts: dict[str, Any]


def read_index(path: Path) -> ShardIndex:
    """The memory-mapped index at ``path``. Raises ``OSError`` or ``ValueError`` where it cannot be read."""
    content = np.memmap(path, np.uint8, "r")
    end = 8 + int.from_bytes(content[:8].tobytes(), "little")
    if not 8 < end <= len(content):
        raise ValueError(f"{path} ends inside its header")
    header = json.loads(content[8:end].tobytes())
    try:
        facts = json.loads(header.pop("__metadata__")[INDEX_FACTS])
        tensors = {
            name: content[end + about["data_offsets"][0] : end + about["data_offsets"][1]].view(_KINDS[about["dtype"]])
            for name, about in header.items()
        }
        return ShardIndex(**tensors, facts=facts)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no index of latents") from error


@dataclass(frozen=True)
class _Shard:
    """A shard's index and maps, memory-mapped."""

    index: ShardIndex
    maps: Maps


class LatentCache:
    """The latents of all clips of a folder of prepared shards, of one space, size and crop."""

    def __init__(self, folder: Path) -> None:
        """Raises ``UserError`` where the cache in ``folder`` is not whole: unfinished, missing in part, or damaged."""
        self.folder = folder
        self.facts = read_facts(folder)
        if self.facts["shards"] is None:
            raise UserError(f"{folder} is not finished; the same nextvid prepare --latents goes on")
        for shard in self.facts["shards"]:
            _check_shard(folder, shard)
        self._ends = np.cumsum([shard["clips"] for shard in self.facts["shards"]])
        self._open: dict[int, _Shard] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped, which another process maps anew."""
        return {**self.__dict__, "_open": {}}

    def broken(self, number: int) -> str | None:
        """Why clip ``number``, a usable row of the shards' manifest, could not be decoded; None where it could."""
        shard, place = self._find(number)
        return shard.index.facts["broken"].get(str(place))

    def maps(self, number: int, times: Float[np.ndarray, " frames"] | None, frames: int) -> Maps:
        """The maps of the ``frames`` frames that clip ``number`` shows at ``times``; of a picture its one map, repeated.

        Raises ``UserError`` where they cannot be read.
        """
        shard, place = self._find(number)
        begin, end = shard.index.first[place : place + 2]
        if times is None:
            return np.repeat(shard.maps[begin : begin + 1], frames, axis=0)
        clock = Clock(int(shard.index.start[place]), float(shard.index.tick[place]))
        return np.asarray(shard.maps[begin + clock.shown(shard.index.stamps[begin:end], times)])

    def _find(self, number: int) -> tuple[_Shard, int]:
        """The shard of a clip, and its place there."""
        at = int(np.searchsorted(self._ends, number, side="right"))
        if at not in self._open:
            self._open[at] = self._opened(self.facts["shards"][at]["name"])
        return self._open[at], number - (int(self._ends[at - 1]) if at else 0)

    def _opened(self, name: str) -> _Shard:
        try:
            return _Shard(read_index(self.folder / f"{name}.safetensors"), np.load(self.folder / f"{name}.npy", "r"))
        except (OSError, ValueError) as error:
            raise UserError(_damaged(self.folder, name, str(error))) from error


def read_facts(folder: Path) -> dict[str, Any]:
    """What a cache says of itself. Raises ``UserError`` where it is none, or one of another version."""
    path = folder / FACTS
    try:
        facts = json.loads(path.read_bytes())
        version = facts["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); remove {folder}, and prepare the latents anew"
        ) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this nextvid reads {FORMAT_VERSION}; remove {folder}, and prepare the "
            "latents anew"
        )
    return facts


def _check_shard(folder: Path, shard: dict[str, Any]) -> None:
    for suffix, size in ((".npy", shard["bytes"]), (".safetensors", shard["index_bytes"])):
        path = folder / f"{shard['name']}{suffix}"
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            wrong = f"{path.name} is missing" if found is None else f"{path.name} has {found} bytes, not {size}"
            raise UserError(_damaged(folder, shard["name"], wrong))


def _damaged(folder: Path, name: str, wrong: str) -> str:
    return (
        f"the latents of {name} in {folder} are damaged ({wrong}); the nextvid prepare --latents that made them makes these "
        "anew"
    )
