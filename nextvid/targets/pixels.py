"""Pixels as a target space: every patch token is the tubelet of pixels beneath it, perhaps at a lower resolution.

In the basis ``dct`` a tubelet is written as its 3-D cosine transform (orthonormal: nothing is lost), and every coefficient
is normalised to mean 0 and, with ``whiten: 1``, deviation 1 over clips, as latents are. Raw pixels are nearly all mean
colour; in this basis an edge, or the difference between the two frames, counts as much. ``whiten: 0`` keeps the
coefficients' own proportions (as loss: that of pixels), and between them the deviation is left to the power ``1 - whiten``.

In the basis ``normalised`` every patch has its own mean and deviation taken out, colour by colour, as in masked
autoencoders: what is left is texture and shape, and there is no way back to a picture.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nextvid.errors import UserError
from nextvid.models.encoder import FrameTensor, patchify, unpatchify
from nextvid.models.frequencies import tubelet_basis
from nextvid.targets.normalised import normalised_patches
from nextvid.targets.space import Latents, ShownFrames, Space, SpaceConfig, digest_of, square

SMALLEST_DEVIATION = 0.02
DEFAULT_PATCH = 16


@dataclass(frozen=True)
class PixelsConfig(SpaceConfig):
    """``downsample``: each side is averaged down by this factor first.

    ``basis``: ``pixels``, normalised by ``mean`` and ``std`` (of values in [-1, 1]); ``dct``, normalised coefficient by
    coefficient by what :meth:`Pixels.fit` measures, as far as ``whiten`` (0 to 1) says; or ``normalised``, patch by patch.
    """

    name: Literal["pixels"] = "pixels"
    downsample: int = 1
    basis: Literal["pixels", "dct", "normalised"] = "pixels"
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
        if self.basis == "normalised" and (self.mean, self.std) != (0.0, 0.5):
            raise ValueError("basis=normalised takes each patch's own mean and deviation; leave out mean and std")

    def build(self, patch: int | None, tubelet: int) -> "Pixels":
        """Nothing is read."""
        return Pixels(self, patch or DEFAULT_PATCH, tubelet)


class Pixels(Space):
    """Normalised pixels on the encoder's patch grid."""

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
        self.patch, self.small_patch = patch, patch // config.downsample
        self.tubelet = tubelet
        self.channels = 3 * tubelet * self.small_patch**2
        self.decodes = config.basis != "normalised"
        self.checksum = digest_of("pixels", repr(config))
        self.register_buffer("mean", torch.full((self.channels,), config.mean))
        self.register_buffer("std", torch.full((self.channels,), config.std))
        self.register_buffer("transform", self._transform(), persistent=False)

    def _transform(self) -> Float[Tensor, "channels channels"]:
        if self.config.basis == "dct":
            return tubelet_basis(self.small_patch, self.tubelet)
        return torch.eye(self.channels)

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
        """Frames in [-1, 1] ``(B, F, 3, H, W)`` to normalised latents ``(B, T, N, C)``, in full precision: a target is not
        rounded, whatever the model computes in.
        """
        if self.config.basis == "normalised":
            return normalised_patches(self.shown(frames), self.small_patch, self.tubelet).values
        return (self._raw(frames) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Latents, rows: int | None = None, columns: int | None = None) -> FrameTensor:
        """Latents ``(B, T, N, C)`` of a ``rows`` x ``columns`` patch grid to frames in [-1, 1], at the space's resolution."""
        if not self.decodes:
            raise UserError(
                "normalised patches have lost their mean and contrast: there is no way back to frames. Draw in the basis pixels "
                "or dct"
            )
        rows, columns = square(latents, rows, columns)
        with torch.autocast(latents.device.type, enabled=False):
            values = (latents.float() * self.std + self.mean) @ self.transform
        side = self.small_patch
        return unpatchify(values, side, self.tubelet, rows * side, columns * side)

    def shown(self, frames: FrameTensor) -> ShownFrames:
        """``frames`` averaged down as the space does it."""
        if self.config.downsample == 1:
            return frames
        small = functional.avg_pool2d(frames.flatten(0, 1), self.config.downsample)
        return small.unflatten(0, frames.shape[:2])

    def _raw(self, frames: FrameTensor) -> Latents:
        """Coefficients before normalisation."""
        with torch.autocast(frames.device.type, enabled=False):
            return patchify(self.shown(frames), self.small_patch, self.tubelet) @ self.transform.T
