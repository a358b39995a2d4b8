"""What a recipe asks for: parameters by part, and clips, tokens and operations by stage."""

from dataclasses import dataclass

import torch
from torch import nn

from nextvid.config import Recipe
from nextvid.objectives import Objective
from nextvid.settings import StageConfig
from nextvid.targets.space import MapSpace
from nextvid.training.compute import step_flops

FRAMES_OF_A_SAMPLE = 16
"""The paper counts clips in equivalents of so many frames: one of 64 frames is four."""


@dataclass(frozen=True)
class Part:
    """A module's parameters, with those of a frozen network, of which ``trained`` have a gradient; ``bytes``: of buffers too."""

    parameters: int
    trained: int
    bytes: int


@dataclass(frozen=True)
class StageWork:
    """A stage's totals: ``samples`` count clips in 16 frames, ``tokens`` are those before masking, ``flops`` are of all steps."""

    name: str
    steps: int
    clips: int
    samples: float
    tokens: int
    flops_of_step: int
    flops: int


def skeleton(recipe: Recipe) -> Objective:
    """The recipe's objective without storage for its weights."""
    with torch.device("meta"):
        return recipe.objective.build(recipe.encoder)


def parts_of(objective: nn.Module) -> dict[str, Part]:
    """What each child of the objective holds."""
    return {name: _part(child) for name, child in objective.named_children()}


def work_of(recipe: Recipe) -> list[StageWork]:
    """Every stage's totals."""
    return [_work(recipe, stage, flops) for stage, flops in zip(recipe.stages, step_flops(recipe), strict=True)]


def _part(module: nn.Module) -> Part:
    parameters = list(module.parameters())
    held = [*parameters, *module.buffers()]
    frozen = list(module.network.buffers()) if isinstance(module, MapSpace) else []
    return Part(
        parameters=sum(p.numel() for p in [*parameters, *frozen]),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        bytes=sum(tensor.nbytes for tensor in held),
    )


def _work(recipe: Recipe, stage: StageConfig, flops: int) -> StageWork:
    clips = stage.steps * stage.batch
    places = (stage.size // recipe.encoder.patch) ** 2
    return StageWork(
        name=stage.name,
        steps=stage.steps,
        clips=clips,
        samples=clips * stage.frames / FRAMES_OF_A_SAMPLE,
        tokens=clips * (stage.frames // recipe.encoder.tubelet) * places,
        flops_of_step=flops,
        flops=flops * stage.steps,
    )
