"""Rotary position embedding in three dimensions: time, height, width (RoFormer, arXiv 2104.09864; V-JEPA 2, section 2.1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
) -> Float[Tensor, "*tokens 2 half"]:
    """Cosine and sine of every pair's angle: pairs of t, of y, of x, then the unrotated rest (angle 0).

    Angles are computed in double precision, so that a stream may run for days.
    """
    axis = axis_width(head_width)
    frequencies = base ** (-torch.arange(0, axis, 2, dtype=torch.float64, device=positions.device) / axis)
    angles = (positions[..., None].double() * frequencies).flatten(-2)
    rest = angles.new_zeros(*angles.shape[:-1], head_width // 2 - angles.shape[-1])
    angles = torch.cat([angles, rest], dim=-1)
    return torch.stack([angles.cos(), angles.sin()], dim=-2).float()


def rotate(
    x: Float[Tensor, "batch heads tokens head_width"], rotation: Float[Tensor, "#batch tokens 2 half"]
) -> Float[Tensor, "batch heads tokens head_width"]:
    """Turn each adjacent pair (x0, x1), (x2, x3), … of a head by its own angle: a true rotation of every plane."""
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)
