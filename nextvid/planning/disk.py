"""What a run's folder takes on the disk."""

from dataclasses import dataclass

from nextvid.config import Recipe
from nextvid.objectives import Objective

STEP_COUNT = 4


@dataclass(frozen=True)
class Disk:
    """Bytes of a checkpoint and of the exported encoders, how many checkpoints a finished run keeps, and the most bytes at once:
    those, and one that is being written.
    """

    checkpoint: int
    export: int
    kept: int

    @property
    def most(self) -> int:
        """Bytes at once."""
        return (self.kept + 1) * self.checkpoint + 2 * self.export


def disk_of(objective: Objective, recipe: Recipe) -> Disk:
    """Weights and moments in float32, as they are saved, and the retention of ``training``."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    state = sum(tensor.nbytes for tensor in objective.state_dict().values())
    moments = sum(2 * p.nbytes + STEP_COUNT for p in trained)
    exported = sum(
        tensor.nbytes for encoder in objective.exports().values() for tensor in encoder.state_dict().values()
    )
    return Disk(state + moments, exported, len(_kept(recipe)))


def _kept(recipe: Recipe) -> set[int]:
    """The steps whose checkpoints a finished run keeps; the best by the probe may be one more."""
    training, end = recipe.training, recipe.steps
    saved = [*range(training.checkpoint_every, end, training.checkpoint_every), end]
    every = {step for step in saved if training.keep_every and step % training.keep_every == 0}
    best = {0} if training.probe else set()
    return {*saved[-training.keep_checkpoints :], *every, *best}
