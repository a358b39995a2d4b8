"""Pretraining, top to bottom."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import nn

from nextvid.config import Recipe
from nextvid.data.loader import Batch, BatchPlan, batches
from nextvid.data.mixture import Mixture
from nextvid.errors import Stopped, UserError
from nextvid.objectives.protocol import Losses, Objective
from nextvid.randomness import key_of
from nextvid.training import health
from nextvid.training.checkpoint import (
    Progress,
    damage,
    list_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from nextvid.training.clock import Clock, timed
from nextvid.training.device import device_of, warn_of_slow_half
from nextvid.training.display import Display
from nextvid.training.footage import BrokenFiles, build_mixtures, keep_footage
from nextvid.training.optim import build_optimiser, set_learning_rates
from nextvid.training.release import start_from
from nextvid.training.run import Run
from nextvid.training.stages import Schedule, schedule_of

STEPS = "steps with "
"""Before a figure's name in the window: how many of its steps had that figure (a loss may come in between two rows)."""
STATISTICS_CLIPS = 128
"""Clips that an objective may measure before the first step."""


@dataclass
class Trainer:
    """Everything a step needs."""

    objective: Objective
    optimiser: torch.optim.AdamW
    schedule: Schedule
    recipe: Recipe
    device: torch.device
    progress: Progress


def pretrain(recipe: Recipe, out: Path, until: int | None = None, console: Console | None = None) -> dict[str, Any]:
    """Run ``recipe`` in the folder ``out``, or go on with what is there; ``until`` ends it after that many steps in all.

    Returns the final figures, also in ``metrics.json``. Raises ``Stopped`` on SIGINT or SIGTERM, after saving, and
    ``UserError`` for anything that the user can mend.
    """
    console = console or Console()
    run = Run(out)
    run.check(recipe)
    trainer = build_trainer(recipe)
    if recipe.init is not None and not list_checkpoints(run.checkpoints):
        start_from(
            trainer.objective, recipe, recipe.init.origin
        )  # here, so that a wrong init stops before anything is written
    mixtures = build_mixtures(recipe, run.path, console)
    run.open(recipe)
    keep_footage(mixtures, run.path)
    _resume(run, trainer, console)
    warn_of_slow_half(recipe.training.precision, trainer.device, console)
    if trainer.progress.step == 0 and recipe.init is not None:
        start_from(trainer.objective, recipe, recipe.init.origin)
        console.print(f"starting from the weights of {recipe.init.origin}", highlight=False)
    elif trainer.progress.step == 0:
        trainer.objective.before_training(first_clips(trainer, mixtures[0]))
    else:
        # A run that was killed between its checkpoint and its export has an older encoder beside it, or none.
        run.export_encoder(trainer.objective, recipe, trainer.progress.step)
    run.write_environment(trainer.device)
    end = min(until or recipe.steps, recipe.steps)
    if trainer.progress.step < end:
        with _signals() as stop:
            _train(trainer, run, mixtures, end, stop, console)
    figures = {"pretrain": _summary(trainer)}
    run.update_metrics(figures)
    return figures


def build_trainer(recipe: Recipe) -> Trainer:
    """Model, optimiser and schedule of a recipe at step 0."""
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    device = device_of(recipe.training.device)
    torch.manual_seed(key_of("init", recipe.seed))
    objective = recipe.objective.build(recipe.encoder)
    objective.to(device)
    for stage in reversed(recipe.stages):
        objective.begin_stage(stage)
    schedule = schedule_of(recipe, list(objective.parts()))
    optimiser = build_optimiser(objective, recipe.training)
    return Trainer(objective, optimiser, schedule, recipe, device, Progress())


def _train(trainer: Trainer, run: Run, mixtures: list[Mixture], end: int, stop: list[int], console: Console) -> None:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    recipe, progress = trainer.recipe, trainer.progress
    board = SummaryWriter(str(run.path / "tensorboard"), purge_step=progress.step + 1)
    broken = BrokenFiles(run.path, console)
    plans = [plan_of(trainer.schedule, step) for step in range(progress.step, end)]
    started = time.monotonic() - progress.seconds
    stream = batches(
        mixtures,
        plans,
        recipe.data.workers,
        recipe.seed,
        seconds=recipe.data.timeout,
        lost=broken.lost,
        pin=trainer.device.type == "cuda",
    )
    with Display(console, end, progress.step) as display, closing(stream):
        for batch in stream:
            losses, norm = train_step(trainer, batch)
            broken.add(batch.broken)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            figures = _add_to_window(progress, losses, norm)
            if progress.step % recipe.training.log_every == 0 or progress.step == recipe.steps:
                row = _row(trainer, losses)
                run.append_row(row)
                _write_board(board, row)
            display.update(progress.step, trainer.schedule.stage_of(progress.step - 1).name, figures)
            last = progress.step == end or bool(stop)
            if progress.step % recipe.training.checkpoint_every == 0 or last:
                _save(trainer, run)
            if stop and progress.step < end:
                board.close()
                raise Stopped(
                    f"stopped by {signal.Signals(stop[0]).name} after step {progress.step}; everything is saved"
                )
    board.close()


def train_step(trainer: Trainer, batch: Batch, clock: Clock | None = None) -> tuple[Losses, float]:
    """One step: forward, backward, clip, update, moving average. Returns the losses and the gradient norm."""
    objective, schedule, step = trainer.objective, trainer.schedule, trainer.progress.step
    objective.begin_stage(schedule.stage_of(step))
    with timed(clock, "forward"), _autocast(trainer):
        batch = replace(batch, frames=batch.frames.to(trainer.device, non_blocking=True))
        losses = objective(batch, {name: float(values[step]) for name, values in schedule.weights.items()})
    with timed(clock, "backward"):
        trainer.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
    with timed(clock, "optimiser"):
        norm = _update(trainer, losses)
    with timed(clock, "EMA"):
        objective.after_step(step)
    return losses, norm


def _update(trainer: Trainer, losses: Losses) -> float:
    """Clip and step. Returns the gradient norm before clipping; raises ``UserError`` where it is not finite."""
    step = trainer.progress.step
    parameters = [p for group in trainer.optimiser.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, trainer.recipe.training.clip_norm))
    if not math.isfinite(norm):
        raise UserError(
            f"the gradient of step {step} is not finite (loss {losses.total.item()}); the last checkpoint is untouched. "
            "Lower the learning rates or set training.precision=float32"
        )
    set_learning_rates(trainer.optimiser, {part: float(values[step]) for part, values in trainer.schedule.lr.items()})
    trainer.optimiser.step()
    return norm


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
    return replace(batch, frames=batch.frames.to(trainer.device))


def _autocast(trainer: Trainer) -> AbstractContextManager[Any]:
    half = trainer.recipe.training.precision == "bfloat16"
    return torch.autocast(trainer.device.type, torch.bfloat16, enabled=half)


def _resume(run: Run, trainer: Trainer, console: Console) -> None:
    remove_leftovers(run.checkpoints)
    for checkpoint in reversed(list_checkpoints(run.checkpoints)):
        wrong = damage(checkpoint)
        if wrong:
            console.print(f"[yellow]{checkpoint} is damaged ({wrong}); going back to the one before")
            continue
        trainer.progress = load_checkpoint(checkpoint, trainer.objective, trainer.optimiser)
        console.print(f"going on from {checkpoint} ({trainer.progress.step} of {trainer.recipe.steps} steps done)")
        break
    run.rewind_metrics(trainer.progress.step)


def _save(trainer: Trainer, run: Run) -> None:
    keep = trainer.recipe.training.keep_checkpoints
    save_checkpoint(run.checkpoints, trainer.objective, trainer.optimiser, trainer.progress, keep)
    run.export_encoder(trainer.objective, trainer.recipe, trainer.progress.step)


def _add_to_window(progress: Progress, losses: Losses, norm: float) -> dict[str, float]:
    figures = {"loss": losses.total.item(), **{k: v.item() for k, v in losses.terms.items()}, "grad_norm": norm}
    for name, value in figures.items():
        progress.window[name] = progress.window.get(name, 0.0) + value
        progress.window[STEPS + name] = progress.window.get(STEPS + name, 0.0) + 1
    return figures


def _row(trainer: Trainer, losses: Losses) -> dict[str, Any]:
    """A row of ``metrics.jsonl``: means over the steps since the last one, and the health of this step's features."""
    progress, schedule = trainer.progress, trainer.schedule
    step = progress.step - 1
    row: dict[str, Any] = {"step": progress.step, "stage": schedule.stage_of(step).name}
    window = progress.window
    row |= {name: window[name] / window[STEPS + name] for name in window if not name.startswith(STEPS)}
    row["lr"] = {part: float(values[step]) for part, values in schedule.lr.items()}
    if losses.health is not None:
        row |= health.figures(losses.health(), {name: term.item() for name, term in losses.terms.items()})
    clips = int(schedule.first_sample[step]) + schedule.stage_of(step).batch
    row["clips"] = clips
    row["time"] = {"seconds": progress.seconds, "clips_per_second": clips / max(progress.seconds, 1e-9)}
    progress.window = {}
    return row


def _write_board(board: Any, row: dict[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                board.add_scalar(f"{name}/{key}", inner, row["step"])
        elif isinstance(value, int | float) and name != "step":
            board.add_scalar(name, value, row["step"])


def _summary(trainer: Trainer) -> dict[str, Any]:
    step = trainer.progress.step
    clips = int(trainer.schedule.first_sample[step - 1]) + trainer.schedule.stage_of(step - 1).batch if step else 0
    seconds = trainer.progress.seconds
    return {"steps": step, "clips": clips, "seconds": seconds, "clips_per_second": clips / max(seconds, 1e-9)}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second SIGINT interrupts at once."""
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
