"""What a recipe costs in floating-point operations, and as many steps of another recipe as cost the same."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.objectives import Flops


def clip_flops(recipe: Recipe) -> list[Flops]:
    """What a clip of each stage costs (:class:`nextvid.objectives.protocol.Flops`); no weights are made.

    A target whose latents are stored (``data.latents``) is not computed.
    """
    with torch.device("meta"):
        objective = recipe.objective.build(recipe.encoder)
    return [_without_target(flops, recipe) for flops in map(objective.flops, recipe.stages)]


def _without_target(flops: Flops, recipe: Recipe) -> Flops:
    if not recipe.data.latents:
        return flops
    return replace(flops, frozen={part: cost for part, cost in flops.frozen.items() if part != "target"})


def step_flops(recipe: Recipe) -> list[int]:
    """Operations of one step of each stage."""
    return [flops.step * stage.batch for flops, stage in zip(clip_flops(recipe), recipe.stages, strict=True)]


def cumulative_flops(recipe: Recipe) -> Float[np.ndarray, " steps"]:
    """Operations of all steps up to and including each one; in floating point, for large runs have more than 2^63."""
    a_step = np.array(step_flops(recipe), dtype=np.float64)
    return np.cumsum(np.repeat(a_step, [stage.steps for stage in recipe.stages]))


def total_flops(recipe: Recipe) -> int:
    """Operations of the whole schedule."""
    return sum(cost * stage.steps for cost, stage in zip(step_flops(recipe), recipe.stages, strict=True))


def with_flops(recipe: Recipe, flops: int) -> Recipe:
    """``recipe`` with its longest stage cut or stretched so that the whole schedule costs ``flops``, to within half a step.

    Raises ``UserError`` where the other stages alone cost more.
    """
    longest = recipe.longest_stage
    costs = step_flops(recipe)
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
