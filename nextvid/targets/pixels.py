"""Pixels as a target space: every patch token is the tubelet of pixels beneath it, perhaps at a lower resolution.

In the basis ``dct`` a tubelet is written as its 3-D cosine transform (orthonormal: nothing is lost), and every coefficient
is normalised to mean 0 and, with ``whiten: 1``, deviation 1 over clips, as latents are. Raw pixels are nearly all mean
colour; in this basis an edge, or the difference between the two frames, counts as much. ``whiten: 0`` keeps the
coefficients' own proportions (as loss: that of pixels), and between them the deviation is left to the power ``1 - whiten``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nextvid.errors import UserError
from nextvid.models.encoder import FrameTensor, patchify, unpatchify
from nextvid.models.frequencies import tubelet_basis

Latents = Float[Tensor, "batch latent_frames places channels"]
SMALLEST_DEVIATION = 0.02


@dataclass(frozen=True)
class PixelsConfig:
    """``downsample``: each side is averaged down by this factor first.

    ``basis``: ``pixels``, normalised by ``mean`` and ``std`` (of values in [-1, 1]), or ``dct``, normalised coefficient by
    coefficient by what :meth:`Pixels.fit` measures, as far as ``whiten`` (0 to 1) says.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: Literal["pixels"] = "pixels"
    downsample: int = 1
    basis: Literal["pixels", "dct"] = "pixels"
    whiten: float = 1.0
    mean: float = 0.0
    std: float = 0.5

    def __post_init__(self) -> None:
        if self.downsample < 1 or self.std <= 0:
            raise ValueError(f"downsample={self.downsample} must be 1 or more, and std={self.std} above 0")
        if not 0 <= self.whiten <= 1:
            raise ValueError(f"whiten={self.whiten} must lie in [0, 1]")
        if self.whiten != 1 and self.basis != "dct":
            raise ValueError(f"whiten={self.whiten} is for basis=dct; pixels are normalised by mean and std")


class Pixels(nn.Module):
    """Normalised pixels on the encoder's patch grid; no parameters."""

    transform: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: PixelsConfig, patch: int, tubelet: int) -> None:
        super().__init__()
        if patch % config.downsample:
            raise UserError(
                f"objective.target.downsample={config.downsample} does not divide the patch of {patch} pixels"
            )
        self.config = config
        self.patch = patch // config.downsample
        self.tubelet = tubelet
        self.register_buffer("mean", torch.full((self.channels,), config.mean))
        self.register_buffer("std", torch.full((self.channels,), config.std))
        self.register_buffer("transform", self._transform(), persistent=False)

    @property
    def channels(self) -> int:
        """Values a token."""
        return 3 * self.tubelet * self.patch**2

    def _transform(self) -> Float[Tensor, "channels channels"]:
        if self.config.basis == "pixels":
            return torch.eye(self.channels)
        return tubelet_basis(self.patch, self.tubelet)

    @torch.no_grad()
    def fit(self, frames: FrameTensor) -> None:
        """Measure each coefficient's mean and deviation on clips in [-1, 1]; only in the basis ``dct``.

        The latents have a mean square of 1 over all coefficients, whatever ``whiten`` is.
        """
        if self.config.basis == "dct":
            raw = self._raw(frames).flatten(0, 2)
            self.mean.copy_(raw.mean(dim=0))
            deviation = raw.std(dim=0).clamp(min=SMALLEST_DEVIATION)
            kept = deviation ** (1 - self.config.whiten)
            self.std.copy_(deviation / kept * kept.square().mean().sqrt())

    @torch.no_grad()
    def encode(self, frames: FrameTensor) -> Latents:
        """Frames in [-1, 1] ``(B, F, 3, H, W)`` to normalised latents ``(B, T, N, C)``."""
        return (self._raw(frames) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Latents, height: int, width: int) -> FrameTensor:
        """Latents ``(B, T, N, C)`` of a ``height`` x ``width`` patch grid to frames in [-1, 1], at the space's resolution."""
        with torch.autocast(latents.device.type, enabled=False):
            values = (latents.float() * self.std + self.mean) @ self.transform
        return unpatchify(values, self.patch, self.tubelet, height * self.patch, width * self.patch)

    def _raw(self, frames: FrameTensor) -> Latents:
        """Coefficients before normalisation, in full precision: a target is not rounded, whatever the model computes in."""
        if self.config.downsample > 1:
            small = functional.avg_pool2d(frames.flatten(0, 1), self.config.downsample)
            frames = small.unflatten(0, frames.shape[:2])
        with torch.autocast(frames.device.type, enabled=False):
            return patchify(frames, self.patch, self.tubelet) @ self.transform.T
