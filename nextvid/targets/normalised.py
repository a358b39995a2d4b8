"""Per-patch normalised pixels, the target of masked autoencoders (MAE, arXiv 2111.06377, section 4.1; VideoMAE's code)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nextvid.models.encoder import FrameTensor, patchify, unpatchify

SMALLEST_DEVIATION = 1e-6
Patches = Float[Tensor, "batch latent_frames places values"]
Statistic = Float[Tensor, "batch latent_frames places 1 3 1"]


@dataclass(frozen=True)
class NormalisedPatches:
    """``values``: pixels of a tubelet patch as ``patchify`` lays them out, every colour of every patch with mean 0 and
    (unbiased) deviation 1; ``mean`` and ``deviation`` give the pixels back."""

    values: Patches
    mean: Statistic
    deviation: Statistic


@torch.no_grad()
def normalised_patches(frames: FrameTensor, patch: int, tubelet: int) -> NormalisedPatches:
    """Of frames in [-1, 1]; the deviation is that of pixels in [0, 1], to which ``SMALLEST_DEVIATION`` is added."""
    colours = _by_colour(patchify((frames.float() + 1) / 2, patch, tubelet), tubelet)
    mean = colours.mean(dim=(3, 5), keepdim=True)
    deviation = colours.var(dim=(3, 5), keepdim=True, unbiased=True).sqrt() + SMALLEST_DEVIATION
    return NormalisedPatches(((colours - mean) / deviation).flatten(3), mean, deviation)


def restored_frames(
    values: Patches, like: NormalisedPatches, patch: int, tubelet: int, height: int, width: int
) -> FrameTensor:
    """Frames in [-1, 1] of ``height`` x ``width`` pixels, each patch with the mean and deviation that it has in ``like``."""
    colours = _by_colour(values, tubelet) * like.deviation + like.mean
    return unpatchify(colours.flatten(3), patch, tubelet, height, width) * 2 - 1


def _by_colour(patches: Patches, tubelet: int) -> Float[Tensor, "batch latent_frames places tubelet 3 pixels"]:
    return patches.unflatten(-1, (tubelet, 3, -1))
