"""Rotary position embedding in three dimensions: time, height, width (RoFormer, arXiv 2104.09864; V-JEPA 2, section 2.1).

A pair of dimensions is one complex number and its rotation another, so that turning is one multiplication: on a CPU it takes
a seventh of the time that cosines and sines take one after the other.
"""

from functools import lru_cache

import torch
from jaxtyping import Complex64, Float, Int
from torch import Tensor

Rotation = Complex64[Tensor, "#batch tokens half"]


def axis_width(head_width: int) -> int:
    """Dimensions of a head that each of t, y and x rotates: an even number, three times which fit in the head."""
    return 2 * ((head_width // 3) // 2)


def grid_positions(frames: int, height: int, width: int, first_frame: int = 0) -> Int[Tensor, "frames places 3"]:
    """Integer (t, y, x) of every patch token of ``frames`` latent frames of ``height`` x ``width`` patches."""
    t = torch.arange(first_frame, first_frame + frames)
    y, x = torch.arange(height), torch.arange(width)
    return torch.stack(torch.meshgrid(t, y, x, indexing="ij"), dim=-1).flatten(1, 2)


def rotations(
    positions: Int[Tensor, "*tokens 3"], head_width: int, base: float = 10_000.0
) -> Complex64[Tensor, "*tokens half"]:
    """``exp(i angle)`` of every pair: pairs of t, of y, of x, then the unrotated rest (angle 0).

    Angles are computed in double precision, so that a stream may run for days.
    """
    axis = axis_width(head_width)
    frequencies = base ** (-torch.arange(0, axis, 2, dtype=torch.float64, device=positions.device) / axis)
    angles = (positions[..., None].double() * frequencies).flatten(-2)
    rest = angles.new_zeros(*angles.shape[:-1], head_width // 2 - angles.shape[-1])
    angles = torch.cat([angles, rest], dim=-1)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


@lru_cache(maxsize=32)
def grid_rotations(
    frames: int, height: int, width: int, head_width: int, device: torch.device, first_frame: int = 0
) -> Complex64[Tensor, "frames places half"]:
    """:func:`rotations` at :func:`grid_positions`, kept for the next clip of the same shape."""
    with torch.inference_mode(False):  # what inference mode makes cannot be used in training later
        return rotations(grid_positions(frames, height, width, first_frame).to(device), head_width)


def rotate(
    x: Float[Tensor, "batch given heads head_width"], rotation: Rotation
) -> Float[Tensor, "batch tokens heads head_width"]:
    """Turn each adjacent pair (x0, x1), (x2, x3), … of a head by its own angle: a true rotation of every plane.

    A single token is turned to every position of ``rotation``.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[:, :, None]).flatten(-2).to(x.dtype)
