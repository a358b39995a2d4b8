"""Where a training step's time goes, and how much of the machine's peak it reaches."""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nextvid.config import Recipe
from nextvid.data.loader import Batch, batches
from nextvid.errors import UserError, nearest
from nextvid.files import replace_json
from nextvid.objectives import Flops
from nextvid.training.clock import Clock
from nextvid.training.compute import clip_flops
from nextvid.training.device import describe, matmul_peak, warn_of_slow_half
from nextvid.training.footage import build_mixtures
from nextvid.training.latents import use_latents
from nextvid.training.trainer import Trainer, build_trainer, first_clips, plan_of, train_step

FORMAT_VERSION = 1
WARM_UP = 3
WAIT, REST = "data wait", "rest of forward"


def profile_step(
    recipe: Recipe, steps: int, stage: str | None, console: Console, out: Path | None = None
) -> dict[str, Any]:
    """Time ``steps`` steps of a stage (by default the longest) as they are, and as many part by part.

    Clips come through the recipe's loader. Raises ``UserError`` for an unknown stage. Nothing is written but ``out``.
    """
    number = _stage_number(recipe, stage)
    trainer = build_trainer(recipe)
    warn_of_slow_half(recipe.training.precision, trainer.device, console)
    mixtures = build_mixtures(recipe, None, console)
    use_latents(trainer.objective, recipe, mixtures)
    trainer.objective.before_training(first_clips(trainer, mixtures[number]))
    trainer.progress.step = _heaviest_step(trainer, number)
    plan = plan_of(trainer.schedule, trainer.progress.step)
    plans = [replace(plan, first_number=n * plan.batch) for n in range(WARM_UP + 2 * steps)]
    stream = batches(mixtures, plans, recipe.data.workers, recipe.seed)
    progress = track(
        range(2 * steps), "timing steps …", console=console, transient=True, disable=not console.is_terminal
    )
    for _ in range(WARM_UP):
        train_step(trainer, next(stream))
    clock = Clock(trainer.device)
    ticks = iter(progress)
    whole = [_one_step(trainer, stream, clock, next(ticks)) for _ in range(steps)]
    clock = Clock(trainer.device)
    with clock.watching(trainer.objective):
        for _ in range(steps):
            next(ticks)
            _timed_step(trainer, stream, clock)
    next(ticks, None)
    figures = _figures(recipe, number, trainer, whole, {name: s / steps for name, s in clock.seconds.items()})
    if out is not None:
        replace_json(out, figures)
    return figures


def _one_step(trainer: Trainer, stream: Iterator[Batch], clock: Clock, _tick: int) -> float:
    started = clock.now()
    train_step(trainer, next(stream))
    return clock.now() - started


def _timed_step(trainer: Trainer, stream: Iterator[Batch], clock: Clock) -> None:
    with clock.part(WAIT):
        batch = next(stream)
    train_step(trainer, batch, clock)


def _heaviest_step(trainer: Trainer, stage: int) -> int:
    """A step of the stage with all losses that it ever computes: the one where their weights are largest."""
    inside = np.flatnonzero(trainer.schedule.stage == stage)
    weights = sum((values[inside] for values in trainer.schedule.weights.values()), start=np.zeros(len(inside)))
    on = sum((values[inside] > 0 for values in trainer.schedule.weights.values()), start=np.zeros(len(inside)))
    return int(inside[np.lexsort((weights, on))[-1]])


def _stage_number(recipe: Recipe, stage: str | None) -> int:
    names = [s.name for s in recipe.stages]
    if stage is None:
        return recipe.longest_stage
    if stage not in names:
        raise UserError(
            f"recipe '{recipe.name}' has no stage '{stage}'{nearest(stage, names)}; it has {', '.join(names)}"
        )
    return names.index(stage)


def _figures(
    recipe: Recipe, number: int, trainer: Trainer, whole: list[float], parts: dict[str, float]
) -> dict[str, Any]:
    stage, flops = recipe.stages[number], clip_flops(recipe)[number]
    peak = matmul_peak(trainer.device, recipe.training.precision)
    seconds = statistics.median(whole)
    a_step = flops.step * stage.batch
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "objective": recipe.objective.name,
        "stage": stage.name,
        "machine": describe(trainer.device),
        "precision": recipe.training.precision,
        "workers": recipe.data.workers,
        "batch": stage.batch,
        "steps_timed": len(whole),
        "step_seconds": seconds,
        "step_seconds_quartiles": statistics.quantiles(whole, n=4) if len(whole) > 1 else None,
        "clips_per_second": stage.batch / seconds,
        "step_flops": a_step,
        "flops_per_second": a_step / seconds,
        "peak_flops_per_second": peak,
        "share_of_peak": a_step / seconds / peak,
        "parts": _shares(parts, flops, stage.batch, peak),
    }


def _shares(parts: dict[str, float], flops: Flops, batch: int, peak: float) -> dict[str, dict[str, float | None]]:
    """Each part's seconds, its share of the step, and the share of the peak that its operations reach."""
    costs = {**flops.forward, "backward": flops.backward}
    inside = {name: seconds for name, seconds in parts.items() if name in flops.forward}
    order = {WAIT: parts[WAIT], **inside, REST: parts["forward"] - sum(inside.values())}
    order |= {name: parts[name] for name in ("backward", "optimiser", "EMA")}
    total = sum(order.values())
    return {
        name: {
            "seconds": seconds,
            "share": seconds / total,
            "flops": costs[name] * batch if name in costs else None,
            "share_of_peak": costs[name] * batch / seconds / peak if name in costs and seconds else None,
        }
        for name, seconds in order.items()
    }


def table_of(figures: dict[str, Any]) -> Table:
    """The profile as a table: a row a part."""
    machine = figures["machine"]
    table = Table(
        title=f"a step of {figures['recipe']} ({figures['stage']}, batch {figures['batch']}): "
        f"{1000 * figures['step_seconds']:.1f} ms, {figures['clips_per_second']:.1f} clips/s, "
        f"{100 * figures['share_of_peak']:.0f}% of the peak of {figures['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s",
        caption=f"{machine['name']}, {machine['threads']} threads, {figures['precision']}; the parts are timed one by one",
    )
    for column in ("part", "ms", "share", "", "GFLOP", "of peak"):
        table.add_column(column, justify="left" if column in ("part", "") else "right")
    for name, part in figures["parts"].items():
        flops, reached = part["flops"], part["share_of_peak"]
        table.add_row(
            name,
            f"{1000 * part['seconds']:.1f}",
            f"{100 * part['share']:.1f}%",
            "█" * round(30 * part["share"]),
            "" if flops is None else f"{flops / 1e9:.2f}",
            "" if reached is None else f"{100 * reached:.0f}%",
        )
    return table
