"""``prepare --latents``: a target space's maps of every frame of prepared shards; going on where it was stopped."""

import fcntl
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from nextvid.data.latents import FACTS, FOLDER, FORMAT_VERSION
from nextvid.data.manifest import PREPARED_MANIFEST, explained_writing, read_facts
from nextvid.data.transforms import FixedCrop
from nextvid.errors import UserError, nearest
from nextvid.files import read_json, replace_json
from nextvid.footage.latent_shard import ClipRow, Encoding, LatentShard, encode, is_whole, make_latents
from nextvid.footage.progress import FramesDisplay
from nextvid.footage.shard import read_shard
from nextvid.signals import stoppable
from nextvid.targets.registry import PLACES, SPACES, build_space
from nextvid.targets.space import NetworkSpace, Space, SpaceConfig, digest_of

DECODER = "pyav"
"""What decodes the frames that are encoded."""
PRECISIONS = ("float32", "float16")
TUBELET = 2
"""Nothing that is stored depends on it."""
SpaceFacts = dict[str, Any]
_NAMED = 10


@dataclass(frozen=True)
class LatentSettings:
    """Latents of what, and of which frames; ``UserError`` where that is impossible.

    ``space``: the name of a space of single frames, or ``NAME:WEIGHTS``, and ``further`` settings of it as ``key=value``.
    ``size``: pixels a side that frames are cut to (None: the shards' short side) by ``crop``, as training does. ``patch``:
    pixels a side of a token, for a space whose stride follows from it. ``precision``: of what is stored.
    """

    space: str
    size: int | None = None
    crop: FixedCrop = "center"
    patch: int | None = None
    precision: Literal["float32", "float16"] = "float32"
    further: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.crop not in ("center", "none"):
            raise UserError(
                f"--latents-crop {self.crop}: it is center or none, as data.augmentation.crop will be; latents of random crops "
                "are not stored, as every draw has others"
            )
        if self.precision not in PRECISIONS:
            raise UserError(f"--latents-precision {self.precision}: it is {' or '.join(PRECISIONS)}")

    def config(self) -> SpaceConfig:
        """The space's settings. Raises ``UserError`` for a name or a setting that there is not."""
        name, colon, weights = self.space.partition(":")
        if name not in SPACES:
            raise UserError(f"there is no target space '{name}'{nearest(name, SPACES)}; there are {', '.join(SPACES)}")
        known = [key for key in SPACES[name].__dataclass_fields__ if key != "name"]
        given: dict[str, Any] = dict(_key_and_value(text) for text in self.further)
        if colon:
            given[next((key for key in PLACES if key in known), "weights")] = weights
        for key in given:
            if key not in known:
                raise UserError(
                    f"the space {name} has no setting '{key}'{nearest(key, known)}; it has {', '.join(known) or 'none'}"
                )
        return SPACES[name](**given)


def prepare_latents(
    shards: Path, settings: LatentSettings, verify: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Encode every frame of the prepared shards in ``shards``; returns what ``latents.json`` then says.

    They go to a folder of their own in ``shards/latents``, a file a shard, each whole or absent. Those that are there are left
    alone, with ``verify`` only if their checksums are right. Broken clips are counted, and named. Raises ``UserError``, and
    ``Stopped`` on a signal with all finished files kept.
    """
    console = console or Console(stderr=True)
    shards = shards.absolute()
    encoding = _encoding(shards, settings)
    made = {
        "space": facts_of_space(settings.config(), encoding.space),
        "size": encoding.size,
        "crop": encoding.crop,
        "decoder": DECODER,
        "precision": encoding.precision,
        "manifest": read_facts(shards / PREPARED_MANIFEST)["digest"],
    }
    folder = shards / FOLDER / folder_name(made)
    tasks = list(_tasks(shards, folder, made))
    with _claimed(folder, made):
        left = [task for task in tasks if not is_whole(task, verify)]
        facts = read_json(folder / FACTS)
        if not left and facts["shards"] is not None:
            return facts
        replace_json(folder / FACTS, {"format_version": FORMAT_VERSION, "made": made, "shards": None})
        _check_room(folder, left, encoding, console)
        started = time.monotonic()
        with stoppable("the finished shards' latents are kept"), FramesDisplay(console, tasks, left) as display:
            for task in left:
                make_latents(task, encoding, display.add)
        facts = _facts(made, settings, tasks, encoding, _spent(left, time.monotonic() - started))
        replace_json(folder / FACTS, facts)
    _name_broken(facts, console)
    return facts


def space_of(settings: LatentSettings) -> NetworkSpace:
    """The space that latents are to be of. Raises ``UserError`` where there is none, or its latents are not stored."""
    config = settings.config()
    space = build_space(config, settings.patch, tubelet=TUBELET)
    facts_of_space(config, space)
    assert isinstance(space, NetworkSpace)
    return space


def facts_of_space(config: SpaceConfig, space: Space) -> SpaceFacts:
    """What makes a space's maps those that they are: its name and settings, weights by checksum, and cells.

    Raises ``UserError`` for a space whose latents are not of single frames, or not worth storing.
    """
    name = str(getattr(config, "name", ""))
    if not isinstance(space, NetworkSpace):
        raise UserError(
            f"latents of {name} are not stored: "
            + (
                "pixels are as fast to compute as to read; leave out latents"
                if name == "pixels"
                else "one of them is of several frames, and which these are depends on the clip; choose a space of single "
                "frames (vae, vavae, autoencoder_kl, features)"
            )
        )
    own = {key: getattr(config, key) for key in type(config).__dataclass_fields__ if key not in (*PLACES, "name")}
    stride = space.patch // space.fold
    return {"name": name, "checksum": space.checksum, "stride": stride, "channels": space.map_channels, **own}


def folder_name(made: dict[str, Any]) -> str:
    """Of a cache: another space, size or crop has another."""
    digest = digest_of(json.dumps(made["space"], sort_keys=True))
    return f"{made['space']['name']}-{digest[:8]}-{made['size']}-{made['crop']}"


def words_of(facts: dict[str, Any]) -> str:
    """What was stored, for people."""
    made, hours = facts["made"], facts["hours"]
    an_hour = f", {facts['bytes'] / hours / 1e9:.2f} GB an hour" if hours else ""
    broken = ", ".join(f"{count} {reason}" for reason, count in facts["broken"].items()) or "none"
    return (
        f"{made['space']['name']}, {made['size']} px, crop {made['crop']}, {made['precision']}: {facts['frames']} frames of "
        f"{facts['clips']} clips, {facts['bytes'] / 1e6:.0f} MB{an_hour}; broken: {broken}"
    )


def _key_and_value(text: str) -> tuple[str, Any]:
    import yaml  # noqa: PLC0415

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--latents-with '{text}' is not key=value, such as statistics=latents_stats.pt")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"the value in --latents-with '{text}' is not valid YAML: {error}") from error


def _encoding(shards: Path, settings: LatentSettings) -> Encoding:
    """The space on the device, and the shape of its maps. Raises ``UserError``."""
    space = space_of(settings)
    space.to("cuda" if torch.cuda.is_available() else "cpu")
    size = settings.size or int(read_json(shards / "prepare.json")["settings"]["short_side"])
    stride = space.patch // space.fold
    if size % stride:
        raise UserError(
            f"--latents-size {size} is not a multiple of the {stride} pixels of a latent of {settings.space}; try "
            f"{max(1, round(size / stride)) * stride}"
        )
    _, channels, rows, columns = encode(space, np.zeros((1, size, size, 3), np.uint8)).shape
    return Encoding(space, size, settings.crop, settings.precision, (channels, rows, columns))


def _tasks(shards: Path, folder: Path, made: dict[str, Any]) -> Iterator[LatentShard]:
    digest = digest_of(json.dumps(made, sort_keys=True))
    for sidecar in sorted(shards.glob("shard-*.parquet")):
        facts, table = read_shard(sidecar)
        rows = [row for row in table.to_pylist() if row["status"] == "usable"]
        clips = [ClipRow.of(row, shards) for row in rows]
        yield LatentShard(folder, sidecar.stem, f"{digest} {facts.sha256}", clips, facts.seconds)


@contextmanager
def _claimed(folder: Path, made: dict[str, Any]) -> Iterator[None]:
    """The folder is this call's alone, and what is in it was made alike."""
    with explained_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder} is being written by another process; wait for it.") from error
        for half in folder.glob(".*.tmp"):
            half.unlink(missing_ok=True)
        before = _made_before(folder)
        if before is None:
            replace_json(folder / FACTS, {"format_version": FORMAT_VERSION, "made": made, "shards": None})
        elif before != made:
            other = [f"{name} {before.get(name)}, not {made[name]}" for name in made if before.get(name) != made[name]]
            raise UserError(f"{folder} holds latents of {'; '.join(other)}: remove that folder for these.")
        yield


def _made_before(folder: Path) -> dict[str, Any] | None:
    """What a cache that has been begun is of; None where there is none, or nobody knows any more."""
    try:
        facts = read_json(folder / FACTS)
        return facts["made"] if facts["format_version"] == FORMAT_VERSION else None
    except (ValueError, KeyError, TypeError):
        return None


def _check_room(folder: Path, left: Sequence[LatentShard], encoding: Encoding, console: Console) -> None:
    frames = sum(task.frames for task in left)
    needed, free = frames * encoding.frame_bytes, shutil.disk_usage(folder).free
    console.print(f"latents of {frames} frames take {needed / 1e6:.0f} MB in {folder}", highlight=False, markup=False)
    if needed > free:
        raise UserError(
            f"the latents take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB of room: make some, or halve what is "
            "needed with --latents-precision float16"
        )


def _spent(left: Sequence[LatentShard], seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "frames_per_second": sum(task.frames for task in left) / seconds}


def _facts(
    made: dict[str, Any],
    settings: LatentSettings,
    tasks: Sequence[LatentShard],
    encoding: Encoding,
    spent: dict[str, float],
) -> dict[str, Any]:
    """``time``: of the call that ended it."""
    shards: list[dict[str, Any]] = []
    reasons, named = Counter[str](), list[list[str]]()
    for task in tasks:
        broken = task.index.facts["broken"]
        reasons.update(broken.values())
        named += [[task.clips[int(place)].called, reason] for place, reason in broken.items()]
        sizes = {"bytes": task.maps.stat().st_size, "index_bytes": task.index_file.stat().st_size}
        shards.append({"name": task.name, "clips": len(task.clips), "frames": len(task.index.stamps), **sizes})
    return {
        "format_version": FORMAT_VERSION,
        "made": made,
        "weights": settings.space,
        "map": list(encoding.map_shape),
        "clips": sum(shard["clips"] for shard in shards),
        "frames": sum(shard["frames"] for shard in shards),
        "hours": sum(task.seconds for task in tasks) / 3600,
        "bytes": sum(shard["bytes"] + shard["index_bytes"] for shard in shards),
        "broken": dict(sorted(reasons.items())),
        "broken_clips": named[:100],
        "shards": shards,
        "time": spent,
    }


def _name_broken(facts: dict[str, Any], console: Console) -> None:
    for called, reason in facts["broken_clips"][:_NAMED]:
        console.print(f"{called}: {reason}", highlight=False, markup=False)
    more = sum(facts["broken"].values()) - _NAMED
    if more > 0:
        console.print(f"and {more} more clips without latents", highlight=False)
