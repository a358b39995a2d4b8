"""What a run has behind it: times it went back, recipes it went on with, and steps that it skipped."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvid.doctor.check import Finding, first_line
from nextvid.training.rollback import FILE as ROLLBACKS
from nextvid.training.rollback import Rollback, read_rollbacks, scale_at
from nextvid.training.run import CHANGES, SPEED_ONLY


@dataclass(frozen=True)
class Change:
    """From ``step`` on the run has another recipe: ``settings`` say what changed, as ``key: before → after``."""

    step: int
    settings: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The settings that changed."""
        return [text.partition(": ")[0] for text in self.settings]

    @property
    def speed_only(self) -> bool:
        """Whether nothing changed that decides what is computed."""
        return all(SPEED_ONLY.fullmatch(name) for name in self.names)


@dataclass(frozen=True)
class History:
    """``rollbacks_problem``, ``changes_problem``: why the one or the other cannot be read, where that is so."""

    rollbacks: tuple[Rollback, ...] = ()
    changes: tuple[Change, ...] = ()
    rollbacks_problem: str | None = None
    changes_problem: str | None = None

    @property
    def scale(self) -> float:
        """What the schedule's rates are multiplied by from the last rollback on."""
        return scale_at(self.rollbacks, max((back.to for back in self.rollbacks), default=0))

    def last_change_of(self, names: re.Pattern[str]) -> int:
        """The step up to which rows are of a recipe with another value of a setting that is named so; 0: there is none."""
        found = [
            change.step
            for change in self.changes
            if any(names.match(name) and not SPEED_ONLY.fullmatch(name) for name in change.names)
        ]
        return max(found, default=0)


def read_history(run: Path) -> History:
    """The history that a run's folder tells."""
    rollbacks, rollbacks_problem = _rollbacks(run)
    changes, changes_problem = _changes(run / CHANGES)
    return History(rollbacks, changes, rollbacks_problem, changes_problem)


def _rollbacks(run: Path) -> tuple[tuple[Rollback, ...], str | None]:
    try:
        return tuple(read_rollbacks(run)), None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return (), f"{ROLLBACKS} cannot be read ({first_line(error)})"


def _changes(file: Path) -> tuple[tuple[Change, ...], str | None]:
    """A last line that was cut short is none."""
    try:
        lines = file.read_text().split("\n")[:-1] if file.is_file() else []
        entries = [json.loads(line) for line in lines]
        return tuple(Change(int(entry["step"]), tuple(entry["changes"])) for entry in entries), None
    except (OSError, ValueError, TypeError, KeyError) as error:
        return (), f"{CHANGES} cannot be read ({first_line(error)})"


def change_findings(history: History) -> Iterator[Finding]:
    """Every change of recipe, with its step; one that only says how the run is computed is no reason to look twice."""
    if history.changes_problem:
        yield Finding("wrong", history.changes_problem, f"remove {CHANGES}: it only tells what the recipe was before")
    for change in history.changes:
        found = f"changed at step {change.step}: {', '.join(change.settings)}"
        mend = "curves on both sides of such a step are of two recipes"
        yield Finding("ok", found) if change.speed_only else Finding("note", found, mend)


def skipped_at(rows: list[dict[str, Any]]) -> list[int]:
    """The rows, by step, in whose window a step was skipped."""
    counts = [(int(row["step"]), int(row["skipped"])) for row in rows if isinstance(row.get("skipped"), int)]
    return [step for (_, before), (step, now) in itertools.pairwise([(0, 0), *counts]) if now > before]
