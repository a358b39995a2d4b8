"""What a recipe costs in floating-point operations, and as many steps of another recipe as cost the same."""

import numpy as np
import torch
from jaxtyping import Int

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.objectives import Flops


def clip_flops(recipe: Recipe) -> list[Flops]:
    """What a clip of each stage costs (:class:`nextvid.objectives.protocol.Flops`); no weights are made."""
    with torch.device("meta"):
        objective = recipe.objective.build(recipe.encoder)
    return [objective.flops(stage) for stage in recipe.stages]


def cumulative_flops(recipe: Recipe) -> Int[np.ndarray, " steps"]:
    """Operations of all steps up to and including each one."""
    a_step = [flops.step * stage.batch for flops, stage in zip(clip_flops(recipe), recipe.stages, strict=True)]
    return np.cumsum(np.repeat(np.array(a_step, dtype=np.int64), [stage.steps for stage in recipe.stages]))


def total_flops(recipe: Recipe) -> int:
    """Operations of the whole schedule."""
    return int(cumulative_flops(recipe)[-1])


def with_flops(recipe: Recipe, flops: int) -> Recipe:
    """``recipe`` with its longest stage cut or stretched so that the whole schedule costs ``flops``, to within half a step.

    Raises ``UserError`` where the other stages alone cost more.
    """
    longest = max(range(len(recipe.stages)), key=lambda number: recipe.stages[number].steps)
    costs = [found.step * stage.batch for found, stage in zip(clip_flops(recipe), recipe.stages, strict=True)]
    others = sum(costs[n] * stage.steps for n, stage in enumerate(recipe.stages) if n != longest)
    steps = round((flops - others) / costs[longest])
    if steps < 1:
        raise UserError(
            f"recipe '{recipe.name}': {flops:.3g} operations leave no step for its longest stage "
            f"'{recipe.stages[longest].name}', the others cost {others:.3g}; shorten them"
        )
    stages = list(recipe.stages)
    stages[longest] = stages[longest].model_copy(update={"steps": steps})
    return recipe.model_copy(update={"stages": stages})
