"""What the checks of a run share: its folder, its recipe, who uses it, its checkpoints, and its history."""

import fcntl
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from nextvid.config import Recipe, load_recipe
from nextvid.doctor.history import History, read_history
from nextvid.errors import UserError
from nextvid.training.checkpoint import STATE, damage, list_checkpoints


@dataclass(frozen=True)
class Saved:
    """A checkpoint of some step, and what is wrong with its files (None: nothing)."""

    path: Path
    step: int
    problem: str | None


@dataclass(frozen=True)
class Subject:
    """A run as it was found. ``recipe`` is None where it cannot be read, and ``recipe_problem`` says why then.

    ``running``: another process holds the folder, so that its files may change while they are read.
    """

    path: Path
    recipe: Recipe | None
    recipe_problem: str | None
    running: bool
    checkpoints: tuple[Saved, ...]
    history: History = field(default_factory=History)

    @property
    def last_whole(self) -> Saved | None:
        """The newest checkpoint without damage: the one that the next start goes on from."""
        return next((saved for saved in reversed(self.checkpoints) if saved.problem is None), None)

    @property
    def step(self) -> int:
        """The step that the next start goes on from; 0 without a whole checkpoint."""
        return self.last_whole.step if self.last_whole else 0

    @property
    def finished(self) -> bool:
        """Whether the last whole checkpoint is the recipe's last step."""
        return self.recipe is not None and self.step >= self.recipe.steps

    @property
    def command(self) -> str:
        """The command that goes on with the run."""
        return f"nextvid pretrain {shlex.quote(str(self.path / 'recipe.yaml'))} --out {shlex.quote(str(self.path))}"


def open_subject(run: Path) -> Subject:
    """The run in the folder ``run``; every checkpoint is read and its checksums compared. Raises ``UserError`` without one."""
    if not run.is_dir():
        raise UserError(f"there is no run's folder at {run}; give the folder that --out named, such as runs/tiny")
    running = in_use(run)
    recipe, problem = _recipe(run / "recipe.yaml")
    return Subject(run, recipe, problem, running, tuple(_checkpoints(run / "checkpoints")), read_history(run))


def in_use(run: Path) -> bool:
    """Whether another process holds the run's lock."""
    try:
        with (run / ".lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _recipe(file: Path) -> tuple[Recipe | None, str | None]:
    if not file.is_file():
        return None, f"there is no {file}"
    try:
        return load_recipe(file), None
    except (UserError, OSError) as error:
        return None, str(error)


def _checkpoints(folder: Path) -> list[Saved]:
    """Every checkpoint, oldest first; one that a running process has removed meanwhile is none."""
    found = [Saved(path, int(path.name.removeprefix("step_")), _damage(path)) for path in list_checkpoints(folder)]
    return [saved for saved in found if saved.path.is_dir()]


def _damage(path: Path) -> str | None:
    try:
        return damage(path) or _misnamed(path)
    except (KeyError, TypeError, AttributeError) as error:
        return f"{STATE} lacks what it should hold ({error!r})"
    except OSError as error:
        return f"it cannot be read ({error})"


def _misnamed(path: Path) -> str | None:
    step = json.loads((path / STATE).read_text())["step"]
    return None if path.name == f"step_{step}" else f"it holds step {step}"
