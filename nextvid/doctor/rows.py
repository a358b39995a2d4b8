"""The rows of ``metrics.jsonl``: are all there, in order, and numbers?"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextvid.config import Recipe
from nextvid.doctor.check import Check, Finding, combine, some
from nextvid.doctor.subject import Subject
from nextvid.errors import UserError
from nextvid.training.rollback import Rollback, scale_at
from nextvid.training.stages import Schedule, schedule_of

Row = dict[str, Any]
HEALTH = ("feature_spread", "effective_rank", "alignment_over_flow", "ema_distance", "copying")
SKILL = "_skill"
METRICS = "metrics.jsonl"
RATE_TOLERANCE = 1e-6
STAGES = re.compile("stages")
"""The settings that a change of the schedule is about; of ``LOGGING``: or of the steps that have rows."""
LOGGING = re.compile(r"stages|training\.log_every")


@dataclass(frozen=True)
class Log:
    """A run's rows, the numbers of lines that are no rows, and whether the last line was cut short."""

    rows: list[Row] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    cut: bool = False


def read_log(run: Path) -> Log:
    """The rows of a run's ``metrics.jsonl``; none where there is no such file."""
    if not (run / METRICS).is_file():
        return Log()
    *lines, rest = (run / METRICS).read_text(errors="replace").split("\n")
    parsed = [_parse(line) for line in lines]
    return Log(
        rows=[row for row in parsed if row is not None],
        unreadable=[number for number, row in enumerate(parsed, 1) if row is None],
        cut=bool(rest),
    )


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def schedule_for(recipe: Recipe | None) -> Schedule | None:
    """The recipe's schedule; None without a recipe, or where its stages do not agree on the parts."""
    if recipe is None:
        return None
    try:
        return schedule_of(recipe, list(recipe.stages[0].lr))
    except UserError:
        return None


def is_health(name: str) -> bool:
    """Whether a column is a health figure, which one clip alone cannot have."""
    return name in HEALTH or name.endswith(SKILL)


def check_rows(subject: Subject, log: Log) -> Check:
    """Is every row there, readable, in order, and as far as the last checkpoint?"""
    findings = [*_lines(subject, log), *_order(log), *_spacing(subject, log), *_against_checkpoint(subject, log)]
    last = log.rows[-1]["step"] if log.rows else 0
    return combine("rows", findings, f"{len(log.rows)} rows up to step {last}, none missing" if last else "no row yet")


def _lines(subject: Subject, log: Log) -> Iterator[Finding]:
    if log.unreadable:
        mend = f"remove them from {METRICS}, else the next start stops at them"
        yield Finding("wrong", f"{METRICS}: no row can be read on line {some(log.unreadable)}", mend)
    if log.cut and not subject.running:
        yield Finding(
            "note", f"the last line of {METRICS} is cut short", "nothing to do: the next start writes it again"
        )


def _order(log: Log) -> Iterator[Finding]:
    steps = [row["step"] for row in log.rows]
    backward = [after for before, after in itertools.pairwise(steps) if after <= before]
    if backward:
        yield Finding(
            "wrong",
            f"steps of {METRICS} do not rise at {some(backward)}",
            "two processes may have written it; remove the rows that are there twice",
        )


def _spacing(subject: Subject, log: Log) -> Iterator[Finding]:
    if subject.recipe is None or not log.rows:
        return
    since = subject.history.last_change_of(LOGGING)
    found, last = {row["step"] for row in log.rows if row["step"] > since}, max(row["step"] for row in log.rows)
    expected = {step for step in _logged_steps(subject.recipe, last) if step > since}
    missing, foreign = sorted(expected - found), sorted(found - expected)
    every = f"the recipe logs every {subject.recipe.training.log_every} steps"
    if missing:
        yield Finding("note", f"rows of steps {some(missing)} are missing ({every})", "curves have gaps there")
    if foreign:
        yield Finding("note", f"there are rows of steps {some(foreign)} ({every})", "they are from another recipe")


def _logged_steps(recipe: Recipe, until: int) -> set[int]:
    every = recipe.training.log_every
    return {*range(every, until + 1, every), *([recipe.steps] if recipe.steps <= until else [])}


def _against_checkpoint(subject: Subject, log: Log) -> Iterator[Finding]:
    if subject.running or subject.recipe is None:
        return
    last = max((row["step"] for row in log.rows), default=0)
    expected = max(_logged_steps(subject.recipe, subject.step), default=0)
    if last < expected:
        found = f"rows end at step {last}, but the last checkpoint is of step {subject.step}"
        yield Finding("note", found, "curves end there; the weights are not touched by it")
    elif last > subject.step:
        saved = (
            f"the last checkpoint is of step {subject.step}" if subject.last_whole else "there is no whole checkpoint"
        )
        found = f"rows go on to step {last}, but {saved}"
        mend = "nothing to do: the next start repeats those steps"
        lost = "keep a copy of them, if they matter: the next start begins at step 0 and removes them"
        yield Finding("note", found, mend if subject.last_whole else lost)


def check_numbers(subject: Subject, log: Log) -> Check:
    """Is every figure of every row finite? A batch of one clip has no spread, so there that is right."""
    found: dict[str, list[int]] = {}
    schedule = schedule_for(subject.recipe)
    for row in log.rows:
        for name in _not_finite(row):
            if not (is_health(name) and _batch(schedule, row["step"]) == 1):
                found.setdefault(name, []).append(row["step"])
    mend = "go back to a checkpoint before; lower the learning rates or use training.precision=float32"
    findings = [Finding("wrong", f"{name} is not finite at step {some(steps)}", mend) for name, steps in found.items()]
    return combine("numbers", findings, "every figure of every row is finite")


def _batch(schedule: Schedule | None, step: int) -> int | None:
    return schedule.stage_of(step - 1).batch if schedule and 0 < step <= len(schedule) else None


def _not_finite(row: Row, prefix: str = "") -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _not_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield prefix + name


def check_rates(subject: Subject, log: Log) -> Check:
    """Are the learning rates of the rows those of the recipe's schedule, times what the run's rollbacks have left of them?

    Rows from before the recipe's stages changed are not compared.
    """
    schedule, history = schedule_for(subject.recipe), subject.history
    since = history.last_change_of(STAGES)
    rows = [row for row in log.rows if isinstance(row.get("lr"), dict) and row["step"] > since]
    if schedule is None or not rows:
        return Check("learning rates", "ok", "there is nothing to compare: no recipe, or no rows with rates")
    if history.rollbacks_problem:
        return Check("learning rates", "note", f"not compared: {history.rollbacks_problem}", "see stability")
    misfits = [text for row in rows for text in _rate_misfits(schedule, history.rollbacks, row)]
    if misfits:
        found = f"rates differ from the recipe's: {some(misfits)}"
        return Check("learning rates", "wrong", found, f"{METRICS} or recipe.yaml was changed, or is another run's")
    shown = ", ".join(f"{part} {rate:.3g}" for part, rate in rows[-1]["lr"].items())
    found = f"as in the recipe at each of {len(rows)} rows; now {shown}"
    found += f" (the recipe's times {history.scale:.3g}, for the run went back)" if history.rollbacks else ""
    found += f"; rows up to step {since} are from before the stages changed, and are not compared" if since else ""
    return Check("learning rates", "ok", found)


def _rate_misfits(schedule: Schedule, rollbacks: Sequence[Rollback], row: Row) -> Iterator[str]:
    step = row["step"]
    if not 0 < step <= len(schedule):
        return
    scale = scale_at(rollbacks, step - 1)
    for part, values in schedule.lr.items():
        wanted, found = float(values[step - 1]) * scale, row["lr"].get(part)
        if found is None:
            yield f"step {step} has none for {part}"
        elif not math.isclose(found, wanted, rel_tol=RATE_TOLERANCE, abs_tol=1e-12):
            yield f"step {step}: {part} {found:.3g}, not {wanted:.3g}"
