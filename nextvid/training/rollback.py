"""Going back to the last good checkpoint with smaller rates, when step after step is not finite."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from nextvid.files import read_json, replace_json
from nextvid.settings import Strict

FORMAT_VERSION = 1
FILE = "rollbacks.json"


class Rollback(Strict):
    """From ``step`` back ``to`` an earlier one, after which rates are ``scale`` times what they were."""

    step: int
    to: int
    scale: float = Field(gt=0, le=1)


class Diverged(Exception):
    """So many steps in a row were not finite that the run must go back."""


def scale_at(rollbacks: Sequence[Rollback], step: int) -> float:
    """What the schedule's rates are multiplied by at ``step``."""
    scale = 1.0
    for rollback in rollbacks:
        scale *= rollback.scale if step >= rollback.to else 1.0
    return scale


def read_rollbacks(run: Path) -> list[Rollback]:
    """Those that a run has behind it."""
    return [Rollback(**entry) for entry in read_json(run / FILE).get("rollbacks", [])]


def write_rollbacks(run: Path, rollbacks: Sequence[Rollback]) -> None:
    """Keep them, for whoever goes on with the run."""
    replace_json(
        run / FILE, {"format_version": FORMAT_VERSION, "rollbacks": [entry.model_dump() for entry in rollbacks]}
    )
