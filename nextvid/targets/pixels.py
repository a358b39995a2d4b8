"""Pixels as a target space: every patch token is the tubelet of pixels beneath it, perhaps at a lower resolution."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nextvid.models.encoder import FrameTensor, patchify, unpatchify

Latents = Float[Tensor, "batch latent_frames places channels"]


@dataclass(frozen=True)
class PixelsConfig:
    """``downsample``: each side is averaged down by this factor first. ``mean`` and ``std`` are of pixels in [-1, 1]."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: Literal["pixels"] = "pixels"
    downsample: int = 1
    mean: float = 0.0
    std: float = 0.5


class Pixels(nn.Module):
    """Normalised pixels on the encoder's patch grid; no parameters."""

    def __init__(self, config: PixelsConfig, patch: int, tubelet: int) -> None:
        super().__init__()
        if patch % config.downsample:
            raise ValueError(f"target.downsample={config.downsample} does not divide the patch of {patch} pixels")
        self.config = config
        self.patch = patch // config.downsample
        self.tubelet = tubelet

    @property
    def channels(self) -> int:
        """Values a token."""
        return 3 * self.tubelet * self.patch**2

    @torch.no_grad()
    def encode(self, frames: FrameTensor) -> Latents:
        """Frames in [-1, 1] ``(B, F, 3, H, W)`` to normalised latents ``(B, T, N, C)``."""
        if self.config.downsample > 1:
            small = functional.avg_pool2d(frames.flatten(0, 1), self.config.downsample)
            frames = small.unflatten(0, frames.shape[:2])
        return (patchify(frames, self.patch, self.tubelet) - self.config.mean) / self.config.std

    @torch.no_grad()
    def decode(self, latents: Latents, height: int, width: int) -> FrameTensor:
        """Latents ``(B, T, N, C)`` of a ``height`` x ``width`` patch grid to frames in [-1, 1], at the space's resolution."""
        values = latents * self.config.std + self.config.mean
        return unpatchify(values, self.patch, self.tubelet, height * self.patch, width * self.patch)
