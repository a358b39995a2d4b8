"""Encoders that have learnt nothing: what a probe reads from the pixels themselves.

Each is an ``Encode``: uint8 frames in, tokens out, so that it meets the same probe as any encoder.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nextvid.data.transforms import normalise
from nextvid.evaluation.features import Encode
from nextvid.models.encoder import patchify

FREQUENCIES = 4


def pixels(patch: int, tubelet: int = 2, positions: bool = False) -> Encode:
    """Raw pixels: a token is one tubelet patch, ``tubelet * 3 * patch²`` values.

    These tokens do not know where and when they are, so their probe sees motion inside a tubelet only; with
    ``positions`` each token carries its place and time as well (sines and cosines, 24 further values).
    """

    def encode(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch time places values"]:
        tokens = patchify(normalise(frames), patch, tubelet)
        if not positions:
            return tokens
        rows, columns = frames.shape[-2] // patch, frames.shape[-1] // patch
        codes = _positions(tokens.shape[1], rows, columns).to(tokens.device)
        return torch.cat([tokens, codes.expand(len(tokens), -1, -1, -1)], dim=-1)

    return encode


def middle_frame(patch: int) -> Encode:
    """The patches of the frame in the middle alone: what a still picture tells."""

    def encode(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch 1 places values"]:
        middle = frames.shape[1] // 2
        return patchify(normalise(frames[:, middle : middle + 1]), patch, tubelet=1)

    return encode


def chance() -> Encode:
    """One constant token: its probe can learn how common the classes are and nothing else."""

    def encode(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch 1 1 16"]:
        return torch.zeros(len(frames), 1, 1, 16, device=frames.device)

    return encode


def _positions(time: int, rows: int, columns: int) -> Float[Tensor, "time places values"]:
    """Sines and cosines of 1, 2, 4 and 8 half turns over the extent of each axis."""
    axes = [torch.linspace(0, 1, size) for size in (time, rows, columns)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(1, 2)
    angles = grid[..., None] * math.pi * 2.0 ** torch.arange(FREQUENCIES)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
