"""Probes on disk: a fit that can be stopped and goes on, and the chosen probe, which reads one encoder and no other."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save

from nextvid.errors import UserError
from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.encoders import FrozenEncoder
from nextvid.evaluation.features import Standardise
from nextvid.evaluation.fit import State
from nextvid.evaluation.probe import FittedProbe, GridMember
from nextvid.files import replace_file, saying_where_disks_fail
from nextvid.training.distributed import World
from nextvid.weights import read_metadata, read_tensors

FORMAT_VERSION = 1
EVERY_SECONDS = 120.0


@dataclass
class KeptFit:
    """A :class:`nextvid.evaluation.fitting.Keeper` in one file, written at most every two minutes by the first process."""

    file: Path
    world: World
    every: float = EVERY_SECONDS
    _last: float = field(default_factory=time.monotonic)

    def restore(self) -> tuple[int, State] | None:
        """See :class:`nextvid.evaluation.fitting.Keeper`. Raises ``UserError`` where the file is damaged."""
        if not self.file.is_file():
            return None
        return int(_described(self.file)["step"]), read_tensors(self.file)

    def keep(self, step: int, state: Callable[[], State], now: bool = False) -> None:
        """See :class:`nextvid.evaluation.fitting.Keeper`."""
        if not self.world.first or (not now and time.monotonic() - self._last < self.every):
            return
        tensors = {name: tensor.contiguous().cpu() for name, tensor in state().items()}
        described = {"format_version": FORMAT_VERSION, "step": step}
        with saying_where_disks_fail(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.file, save(tensors, metadata={"fit": json.dumps(described)}))
        self._last = time.monotonic()


def save_probe(file: Path, fitted: FittedProbe, encoder: FrozenEncoder, about: dict[str, Any]) -> None:
    """Write a chosen probe with what it belongs to; ``about``: its task, classes and protocol, as :func:`load_probe` has them."""
    tensors = {f"probe.{name}": tensor for name, tensor in fitted.probe.state_dict().items()}
    if fitted.standardise:
        tensors |= {"mean": fitted.standardise.mean, "deviation": fitted.standardise.deviation}
    described = {
        "format_version": FORMAT_VERSION,
        "encoder": {"name": encoder.name, "digest": encoder.digest},
        "depth": fitted.probe.depth,
        "heads": fitted.probe.heads,
        "held_out_clips": fitted.held_out_clips,
        "precision": fitted.precision,
        "best": fitted.best.model_dump(),
        **about,
    }
    with saying_where_disks_fail(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        replace_file(file, save(kept, metadata={"probe": json.dumps(described)}))


def load_probe(file: Path, encoder: FrozenEncoder, classes: tuple[str, ...]) -> tuple[FittedProbe, dict[str, Any]]:
    """A probe that :func:`save_probe` wrote, and what it is.

    Raises ``UserError`` where there is none, or it was trained on another encoder's features or for other classes.
    """
    if not file.is_file():
        raise UserError(f"there is no probe at {file}: give the probe.safetensors that nextvid probe has written")
    about = _described(file, "probe")
    if about["encoder"]["digest"] != encoder.digest:
        raise UserError(
            f"{file} was trained on the features of {about['encoder']['name']} (other weights or other preprocessing), not of "
            f"{encoder.name}: a probe reads one encoder alone; probe {encoder.name} anew"
        )
    if tuple(about["classes"]) != classes:
        raise UserError(
            f"{file} tells other classes apart ({_told(tuple(about['classes']), classes)}): use it on the benchmark and task "
            "that it was trained for"
        )
    tensors = read_tensors(file)
    weights = {name.removeprefix("probe."): tensor for name, tensor in tensors.items() if name.startswith("probe.")}
    width = weights["query"].shape[0]
    probe = AttentiveProbe(width, len(classes), about["heads"], depth=about["depth"])
    probe.load_state_dict(weights)
    standardise = Standardise(tensors["mean"], tensors["deviation"]) if "mean" in tensors else None
    best = GridMember(**about["best"])
    fitted = FittedProbe(
        probe=probe.eval(),
        standardise=standardise,
        best=best,
        grid=[best],
        held_out_clips=about["held_out_clips"],
        precision=about["precision"],
    )
    return fitted, about


def _told(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes, and here there are {len(ours)}"
    place = next(place for place, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    return f"class {place} is {theirs[place]!r} there and {ours[place]!r} here"


def _described(file: Path, key: str = "fit") -> dict[str, Any]:
    try:
        found = json.loads(read_metadata(file)[key])
        version = found["format_version"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} was not written by nextvid probe: remove it, or give another file") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{file} has format version {version}, and this nextvid reads {FORMAT_VERSION}: probe anew")
    return found
