"""The schedule of a run, computed ahead as arrays: what every step does, whatever happened before it."""

from dataclasses import dataclass

import numpy as np

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.settings import StageConfig


@dataclass(frozen=True)
class Schedule:
    """One entry a step. ``lr`` and ``weights`` by name; ``first_sample[s]`` numbers the first sample of step *s*."""

    stages: list[StageConfig]
    stage: np.ndarray
    lr: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    first_sample: np.ndarray

    def __len__(self) -> int:
        return len(self.stage)

    def stage_of(self, step: int) -> StageConfig:
        """The stage that step ``step`` belongs to."""
        return self.stages[self.stage[step]]


def schedule_of(recipe: Recipe, parts: list[str]) -> Schedule:
    """The schedule of ``recipe`` for an objective with these ``parts``.

    Raises ``UserError`` where a stage names a part that the objective has not, or leaves one out.
    """
    for index, stage in enumerate(recipe.stages):
        if set(stage.lr) != set(parts):
            raise UserError(
                f"stages[{index}] ('{stage.name}').lr names the parts {', '.join(stage.lr) or 'none'}; objective "
                f"'{recipe.objective.name}' needs exactly {', '.join(parts)}"
            )
    steps = [stage.steps for stage in recipe.stages]
    batches = np.repeat([stage.batch for stage in recipe.stages], steps)
    terms = sorted({term for stage in recipe.stages for term in stage.weights or {}})
    return Schedule(
        stages=list(recipe.stages),
        stage=np.repeat(np.arange(len(steps)), steps),
        lr={part: np.concatenate([_line(s.lr[part], s.steps) for s in recipe.stages]) for part in parts},
        weights={t: np.concatenate([_line((s.weights or {})[t], s.steps) for s in recipe.stages]) for t in terms},
        first_sample=np.concatenate([[0], np.cumsum(batches)[:-1]]),
    )


def _line(ends: tuple[float, float], steps: int) -> np.ndarray:
    return np.linspace(ends[0], ends[1], steps)
