"""Training methods: one file each, one protocol."""

from nextvid.config import Recipe
from nextvid.objectives.nextvid import NextVid
from nextvid.objectives.protocol import Losses, Objective

__all__ = ["Losses", "NextVid", "Objective", "build_objective"]


def build_objective(recipe: Recipe) -> Objective:
    """The objective that a recipe names, freshly initialised."""
    return NextVid(recipe.encoder, recipe.objective)
