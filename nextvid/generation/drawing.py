"""What models draw after clips, kept beside what the clips show."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nextvid.config import Recipe
from nextvid.data.transforms import normalise
from nextvid.errors import UserError
from nextvid.evaluation.generation import (
    Drawn,
    beside_truth,
    draw_next_frames,
    go_on,
    hide,
    hiding_mask,
    in_space,
)
from nextvid.generation.request import Plan
from nextvid.masking import MaskConfig, draw_batch
from nextvid.objectives.nextvid import NextVid
from nextvid.randomness import key_of

Clips = UInt8[Tensor, "clips frames 3 size size"]
Places = Int[Tensor, "clips kept"]
Samples = Float[Tensor, "samples clips drawn 3 drawn_rows drawn_columns"]
Pictures = Float[Tensor, "clips shown 3 drawn_rows drawn_columns"]


@dataclass(frozen=True)
class Scene:
    """Clips, in [0, 1] as the model's target space shows them; ``seen``: what a mask leaves of the frames that are read."""

    real: Pictures
    seen: Float[Tensor, "clips read 3 drawn_rows drawn_columns"] | None
    first: int
    """Raw frames before the first that is drawn."""


@dataclass(frozen=True)
class Drawing:
    """What one model draws: all ``samples``, and beside the truth as far as there is one."""

    samples: Samples
    measured: Drawn | None


def visible_places(objective: NextVid, recipe: Recipe, clips: Clips, plan: Plan) -> Places | None:
    """The places of each clip that the recipe's mask leaves, drawn anew for each seed; None where nothing is to be hidden."""
    if not plan.mask:
        return None
    mask = hiding_mask(recipe)
    if mask == MaskConfig(0):
        raise UserError("--mask hides what the recipe's mask hides, and this recipe hides nothing; leave --mask out")
    _, rows, columns = objective.encoder.grid(normalise(clips))
    return draw_batch(mask, [key_of("mask", plan.seed, i) for i in range(len(clips))], "mask 0", rows, columns)


def stage_scene(objective: NextVid, clips: Clips, visible: Places | None, plan: Plan) -> Scene:
    """The clips as they are shown beside the drawings."""
    real = _shown(objective, clips)
    if visible is None:
        return Scene(real, None, plan.context)
    _, rows, columns = objective.encoder.grid(normalise(clips))
    read = clips[:, : plan.context] if plan.ahead is not None else clips[:, : -objective.target.tubelet]
    return Scene(real, _shown(objective, hide(read, visible, rows, columns)), plan.context)


def draw(objective: NextVid, clips: Clips, visible: Places | None, plan: Plan, samples: int) -> Drawing:
    """Next frames, or a roll-out, as the plan says."""
    if plan.ahead is None:
        drawn = draw_next_frames(objective, clips, samples, visible, plan.seed, sampling=plan.sampling)
        return Drawing(drawn.samples, drawn)
    latent = -(-plan.ahead // objective.target.tubelet)
    rolled = go_on(
        objective, clips[:, : plan.context], latent, plan.window, samples, plan.seed, visible, sampling=plan.sampling
    )[:, :, : plan.ahead]
    known = clips.shape[1] > plan.context
    return Drawing(rolled, beside_truth(objective, rolled, clips, plan.context) if known else None)


def _shown(objective: NextVid, clips: Clips) -> Pictures:
    device = next(objective.encoder.parameters()).device
    parts = [in_space(objective, normalise(part.to(device))).cpu() for part in clips.split(64)]
    return torch.cat(parts).clamp(0, 1)
