"""Everything that a step needs, and the step."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nextvid.config import Recipe
from nextvid.data.loader import Batch, BatchPlan, batches
from nextvid.data.mixture import Mixture
from nextvid.errors import UserError
from nextvid.objectives.protocol import Losses, Objective
from nextvid.randomness import key_of
from nextvid.settings import StageConfig
from nextvid.training.checkpoint import Progress
from nextvid.training.clock import Clock, timed
from nextvid.training.device import device_of
from nextvid.training.distributed import World
from nextvid.training.optim import build_optimiser, clip_gradients, gradient_norms, set_learning_rates
from nextvid.training.parallel import Forward, spread, unsynchronised
from nextvid.training.rollback import Rollback, scale_at
from nextvid.training.stages import Schedule, schedule_of

STATISTICS_CLIPS = 128
"""Clips that an objective may measure before the first step."""


@dataclass
class Trainer:
    """Model, optimiser and schedule of a recipe, and where the run stands. ``forward`` stands for the spread objective."""

    objective: Objective
    forward: Forward
    optimiser: torch.optim.AdamW
    schedule: Schedule
    recipe: Recipe
    world: World
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    rollbacks: list[Rollback] = field(default_factory=list)

    def rates(self, step: int) -> dict[str, float]:
        """The learning rate of every part at ``step``."""
        scale = scale_at(self.rollbacks, step)
        return {part: float(values[step]) * scale for part, values in self.schedule.lr.items()}


@dataclass(frozen=True)
class StepResult:
    """A step's losses here (of the last micro batch), its figures and gradient norms by part over all processes, and
    whether it was skipped because one of them is not finite.
    """

    losses: Losses
    figures: dict[str, float]
    norms: dict[str, float]
    bad: bool


def build_objective(recipe: Recipe) -> Objective:
    """The method with its initial weights, on the CPU: the same in every process."""
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    torch.manual_seed(key_of("init", recipe.seed))
    return recipe.objective.build(recipe.encoder)


def build_trainer(recipe: Recipe, world: World | None = None, objective: Objective | None = None) -> Trainer:
    """A recipe at step 0, spread over ``world``, with the weights of ``objective`` where there are some already.

    Raises ``UserError`` where a stage does not fit the method, or its batch does not divide.
    """
    world, objective = world or World(), objective or build_objective(recipe)
    check_batches(recipe, world.ranks)
    for stage in reversed(recipe.stages):
        objective.begin_stage(stage)
    schedule = schedule_of(recipe, list(objective.parts()))
    device = device_of(recipe.training.device, world.local_rank)
    objective.to(device)
    forward = spread(objective, recipe.training, world, device)
    optimiser = build_optimiser(objective, recipe.training)
    return Trainer(objective, forward, optimiser, schedule, recipe, world, device)


def check_batches(recipe: Recipe, ranks: int) -> None:
    """Raise ``UserError`` where a stage's batch cannot be shared by ``ranks`` processes in whole micro batches."""
    for index, stage in enumerate(recipe.stages):
        where = f"stages[{index}] ('{stage.name}')"
        share, left = divmod(stage.batch, ranks)
        if left:
            near = max(1, round(stage.batch / ranks)) * ranks
            raise UserError(
                f"{where}: batch={stage.batch} cannot be shared evenly by {ranks} processes; try batch={near}, or as many "
                f"processes as divide it"
            )
        if stage.micro_batch and share % min(stage.micro_batch, share):
            fitting = max(n for n in range(1, stage.micro_batch + 1) if share % n == 0)
            raise UserError(
                f"{where}: each of {ranks} processes has {share} clips of the batch, not a multiple of "
                f"micro_batch={stage.micro_batch}; try micro_batch={fitting}"
            )
    whole = recipe.objective.needs_whole_batch()
    if whole and ranks > 1:
        raise UserError(f"{whole} needs the whole batch in one process, and there are {ranks}")


def train_step(trainer: Trainer, batch: Batch, clock: Clock | None = None) -> StepResult:
    """One step: forward and backward (of each micro batch), clip, update, moving average."""
    objective, step = trainer.objective, trainer.progress.step
    stage = trainer.schedule.stage_of(step)
    objective.begin_stage(stage)
    trainer.optimiser.zero_grad(set_to_none=True)
    parts, found = _micro_batches(trainer, batch, stage), []
    for number, part in enumerate(parts, start=1):
        losses = _pass(trainer, part, len(parts), number == len(parts), clock)
        found.append(torch.stack([losses.total, *losses.terms.values()]).detach())
    with timed(clock, "optimiser"):
        norms = gradient_norms(trainer.optimiser)
        figures = _over_processes(trainer.world, list(losses.terms), found)
        figures["grad_norm"] = clip_gradients(trainer.optimiser, norms, trainer.recipe.training.clip_norm)
        bad = not all(math.isfinite(value) for value in figures.values())
        if not bad:
            set_learning_rates(trainer.optimiser, trainer.rates(step))
            trainer.optimiser.step()
    if not bad:
        with timed(clock, "EMA"):
            objective.after_step(step)
    return StepResult(losses, figures, {part: norm.item() for part, norm in norms.items()}, bad)


def _pass(trainer: Trainer, part: Batch, parts: int, last: bool, clock: Clock | None) -> Losses:
    """Add the gradient of one of ``parts`` micro batches to what there is; the processes exchange theirs at the ``last``."""
    weights = {name: float(values[trainer.progress.step]) for name, values in trainer.schedule.weights.items()}
    with nullcontext() if last else unsynchronised(trainer.forward):
        with timed(clock, "forward"), _autocast(trainer):
            losses = trainer.forward(part, weights)
        with timed(clock, "backward"):
            (losses.total / parts).backward()
    return losses


def _over_processes(world: World, terms: list[str], found: list[Tensor]) -> dict[str, float]:
    """The mean of the loss and of each of its ``terms`` over micro batches and processes."""
    here = torch.stack(found).double().mean(dim=0).tolist()
    return dict(zip(("loss", *terms), world.mean(here), strict=True))


def _autocast(trainer: Trainer) -> AbstractContextManager[Any]:
    half = trainer.recipe.training.precision == "bfloat16"
    return torch.autocast(trainer.device.type, torch.bfloat16, enabled=half)


def plan_of(schedule: Schedule, step: int) -> BatchPlan:
    """The batch of a step."""
    stage = schedule.stage_of(step)
    return BatchPlan(
        first_number=int(schedule.first_sample[step]),
        batch=stage.batch,
        frames=stage.frames,
        fps=stage.fps,
        size=stage.size,
        mixture=int(schedule.stage[step]),
    )


def first_clips(trainer: Trainer, mixture: Mixture) -> Batch:
    """Clips that an objective may measure before its first step."""
    plan, data = replace(plan_of(trainer.schedule, 0), batch=STATISTICS_CLIPS, mixture=0), trainer.recipe.data
    (batch,) = batches([mixture], [plan], data.workers, trainer.recipe.seed, seconds=data.timeout)
    return batch.to(trainer.device)


def _micro_batches(trainer: Trainer, batch: Batch, stage: StageConfig) -> list[Batch]:
    """The batch on the device, in equal parts."""
    clips = len(batch.keys)
    size = min(stage.micro_batch or clips, clips)
    there = batch.to(trainer.device)
    return [there.part(at, at + size) for at in range(0, clips, size)]
