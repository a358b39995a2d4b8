"""The rows of ``metrics.jsonl``: means over the steps since the row before, and the health of the step that ends them."""

import math
from typing import Any

from rich.console import Console

from nextvid.training import health
from nextvid.training.trainer import StepResult, Trainer

STEPS = "steps with "
"""Before a figure's name in the window: how many of its steps had that figure (a loss may come in between two rows)."""
NORMS = "grad_norms/"
ROWS_OF_AN_ALARM = 3


class Rows:
    """Makes rows, and names what they show to be wrong."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self._trainer, self._console = trainer, console
        self._alarmed: dict[str, int] = {}

    def add(self, result: StepResult) -> None:
        """Count a step; one that was skipped has no figures."""
        progress = self._trainer.progress
        if result.bad:
            progress.skipped += 1
            progress.bad_in_a_row += 1
            self._console.print(
                f"[yellow]step {progress.step} is skipped: {', '.join(_not_finite(result))} not finite "
                f"({progress.skipped} skipped in all)",
                highlight=False,
            )
            return
        progress.bad_in_a_row = 0
        for name, value in {**result.figures, **{NORMS + part: norm for part, norm in result.norms.items()}}.items():
            progress.window[name] = progress.window.get(name, 0.0) + value
            progress.window[STEPS + name] = progress.window.get(STEPS + name, 0.0) + 1

    def row(self, result: StepResult, watched: dict[str, float]) -> dict[str, Any]:
        """The row of the step just done, whose window begins anew."""
        trainer = self._trainer
        progress, schedule = trainer.progress, trainer.schedule
        step = progress.step - 1
        row: dict[str, Any] = {"step": progress.step, "stage": schedule.stage_of(step).name}
        row |= _means(progress.window)
        row["skipped"] = progress.skipped
        row["lr"] = trainer.rates(step)
        row |= self._health(result)
        row |= watched
        clips = int(schedule.first_sample[step]) + schedule.stage_of(step).batch
        row["clips"] = clips
        row["time"] = {"seconds": progress.seconds, "clips_per_second": clips / max(progress.seconds, 1e-9)}
        progress.window = {}
        self._name_alarms(row)
        return row

    def shown(self, result: StepResult) -> dict[str, float]:
        """What a person watching sees of a step."""
        return {**result.figures, **({"skipped": self._trainer.progress.skipped} if result.bad else {})}

    def _health(self, result: StepResult) -> dict[str, float]:
        """Of what each process has of the batch, averaged: features are not sent around."""
        if result.bad or result.losses.health is None:
            return {}
        found = health.figures(result.losses.health(), result.figures)
        return dict(zip(found, self._trainer.world.mean(list(found.values())), strict=True))

    def _name_alarms(self, row: dict[str, Any]) -> None:
        """One row may be noise: what several in a row show is named, once as long as it lasts."""
        found = health.alarms(row)
        self._alarmed = {name: self._alarmed.get(name, 0) + 1 for name in found}
        for name, text in found.items():
            if self._alarmed[name] == ROWS_OF_AN_ALARM:
                self._console.print(f"[yellow]{name} at step {row['step']}: {text}", highlight=False)


def _means(window: dict[str, float]) -> dict[str, Any]:
    means = {name: window[name] / window[STEPS + name] for name in window if not name.startswith(STEPS)}
    norms = {name.removeprefix(NORMS): value for name, value in means.items() if name.startswith(NORMS)}
    plain = {name: value for name, value in means.items() if not name.startswith(NORMS)}
    return {**plain, **({"grad_norms": norms} if norms else {})}


def _not_finite(result: StepResult) -> list[str]:
    return [name for name, value in result.figures.items() if not math.isfinite(value)]
