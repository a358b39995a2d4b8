"""What a run takes along from where it starts: every tensor of it is known by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.files import replace_json
from nextvid.objectives.protocol import Objective
from nextvid.settings import InitConfig
from nextvid.training import tensors as stored
from nextvid.training.checkpoint import (
    OPTIMISER,
    copy_whole,
    damage,
    list_checkpoints,
    read_part,
    step_of,
    tensor_shapes,
)
from nextvid.training.distributed import World
from nextvid.training.optim import MOMENTS, moments_to_fill
from nextvid.weights import Fit, fit_of

FORMAT_VERSION = 1
SHOWN = 3
"""Names that the console shows of each kind; ``init.json`` has them all."""


@dataclass(frozen=True)
class Whole:
    """A checkpoint that is whole, and newer ones that are damaged, each with what is wrong."""

    path: Path
    damaged: list[str]


@dataclass(frozen=True)
class InitReport:
    """What was taken along from ``source`` (a checkpoint or a file), and everything that was not.

    ``moments``: AdamW's, by parameter, where they were asked for. ``settings``: in what its recipe says that it computes
    something else (there → here); ``recipe_known`` is whether it has one. ``same_clips``: the first clips are those that it
    began with. ``measures``: what an objective measures before its first step was not among the weights.
    """

    init: InitConfig
    source: Path
    step: int | None
    weights: Fit
    moments: Fit | None
    settings: list[str]
    recipe_known: bool
    same_clips: bool
    measures: bool
    damaged: list[str]

    def write(self, run: Path) -> None:
        """All of it to ``init.json`` in a run's folder."""
        replace_json(
            run / "init.json",
            {
                "format_version": FORMAT_VERSION,
                **self.init.model_dump(mode="json", include={"origin", "strict"}),
                "read_from": str(self.source),
                "step": self.step,
                "recipe_known": self.recipe_known,
                "other_settings": self.settings,
                "same_first_clips": self.same_clips,
                "measured_anew": self.measures,
                "damaged": self.damaged,
                "weights": _listed(self.weights),
                "moments": None if self.moments is None else _listed(self.moments),
            },
        )

    def lines(self) -> list[str]:
        """What the console says: how much was taken along, and then only what a user should know."""
        step = "" if self.step is None else f" (step {self.step})"
        first = f"starting from {self.init.origin}{step}: {_share(self.weights, 'tensors')}"
        if self.moments is not None:
            first += f", with AdamW's moments of {_share(self.moments, 'parameters')}"
        lines = [first, *(f"passed over: {text}" for text in self.damaged)]
        if not self.weights.complete:
            lines.append(f"not taken along: {_left_out(self.weights)}; init.json has all names")
        elif self.moments is not None and self.moments.missing:
            lines.append(f"moments that it had none of, as of weights that never moved: {_some(self.moments.missing)}")
        if self.settings:
            lines.append(f"it was trained as another model: {'; '.join(self.settings[:SHOWN])} (there → here)")
        if not self.recipe_known:
            lines.append("it carries no recipe: names and shapes were compared, and not what the weights compute")
        if self.same_clips:
            lines.append(
                "seed and sources are the same as there, so the first clips are those that it began with; another seed "
                "(--seed) gives others"
            )
        return lines


def find_whole(run: Path, step: int | None = None) -> Whole:
    """A run's newest checkpoint that is whole, or that of ``step``. Raises ``UserError`` where there is none."""
    found = list_checkpoints(run / "checkpoints")
    if step is not None:
        return _find_step(run, found, step)
    damaged: list[str] = []
    for checkpoint in reversed(found):
        wrong = damage(checkpoint)
        if wrong is None:
            return Whole(checkpoint, damaged)
        damaged.append(f"{checkpoint} is damaged ({wrong})")
    raise UserError("; ".join([f"{run} holds no whole checkpoint", *damaged]))


def _find_step(run: Path, found: list[Path], step: int) -> Whole:
    chosen = next((checkpoint for checkpoint in found if step_of(checkpoint) == step), None)
    if chosen is None:
        there = ", ".join(str(step_of(checkpoint)) for checkpoint in found) or "none"
        raise UserError(f"{run} has no checkpoint of step {step}; the steps there are: {there}")
    wrong = damage(chosen)
    if wrong is not None:
        raise UserError(f"{chosen} is damaged ({wrong}); choose another step, or put a copy back")
    return Whole(chosen, [])


def moments_fit(objective: Objective, checkpoint: Path) -> Fit:
    """How a checkpoint's moments fit the parameters of ``objective``, by parameter. Raises ``UserError`` without any."""
    suffix = "/exp_avg"
    saved = {
        name.removeprefix(OPTIMISER).removesuffix(suffix): shape
        for name, shape in tensor_shapes(checkpoint).items()
        if name.startswith(OPTIMISER) and name.endswith(suffix)
    }
    if not saved:
        raise UserError(f"{checkpoint} holds no moments of AdamW: no step was taken yet; leave out init.optimiser")
    return fit_of(saved, dict(named for part in objective.parts().values() for named in part))


def take_moments(optimiser: torch.optim.Optimizer, report: InitReport, world: World) -> None:
    """Give ``optimiser``, spread over ``world``, the moments that ``report`` says are taken along; all processes call it.

    Raises ``UserError`` where they cannot be read.
    """
    if report.moments is None:
        return
    known = {f"{name}/{moment}" for name in report.moments.fitting for moment in MOMENTS}
    wanted = {OPTIMISER + name: value for name, value in moments_to_fill(optimiser, known).items()}
    if (report.source / stored.INDEX).is_file():
        stored.fill_tensors(report.source, wanted, world)
    else:
        _copy(read_part(report.source, OPTIMISER), wanted)


def _copy(saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, target in wanted.items():
        copy_whole(saved[name.removeprefix(OPTIMISER)], target)


def same_first_clips(recipe: Recipe, other: Recipe) -> bool:
    """Whether two runs draw their first clips from the same files, by the same numbers."""
    return recipe.seed == other.seed and _first_sources(recipe) == _first_sources(other)


def _first_sources(recipe: Recipe) -> Any:
    return recipe.stages[0].sources or recipe.data.sources


def _listed(fit: Fit) -> dict[str, Any]:
    return {
        "loaded": fit.fitting,
        "missing": fit.missing,
        "unknown": fit.unknown,
        "misfitting": {name: {"there": there, "here": here} for name, (there, here) in fit.misfitting.items()},
    }


def _share(fit: Fit, what: str) -> str:
    wanted = len(fit.fitting) + len(fit.missing) + len(fit.misfitting)
    return f"{len(fit.fitting)} of {wanted} {what}"


def _left_out(fit: Fit) -> str:
    kinds = {"missing there": fit.missing, "unknown here": fit.unknown, "of another shape": list(fit.misfitting)}
    return ", ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
