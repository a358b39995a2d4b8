"""A tubelet patch in frequencies: its 3-D cosine transform (rows, columns, time, and the three colours)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

DEVIATION_OF_FILM = ((2.7, 0.9, 0.75), (1.1, 0.55, 0.55))
"""Deviation, over film and sprites in [-1, 1], of a coefficient of an 8-pixel, 2-frame patch, times ``(1 + frequency)^1.5``:
steady (first row) and changing (second row) brightness and colours."""
FALL = 1.5


def cosine_basis(n: int) -> Float[Tensor, "n n"]:
    """The orthonormal DCT-II of ``n`` points; row *k* is the cosine of frequency *k*."""
    k, i = torch.arange(n)[:, None], torch.arange(n)[None]
    basis = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def tubelet_basis(patch: int, tubelet: int) -> Float[Tensor, "values values"]:
    """The orthonormal transform of a patch laid out as ``patchify`` does; row *k* is coefficient *k*."""
    plane = torch.kron(cosine_basis(patch), cosine_basis(patch))
    return torch.kron(cosine_basis(tubelet), torch.kron(cosine_basis(3), plane))


def levelling(patch: int, tubelet: int) -> Float[Tensor, "values values"]:
    """Pixels in [-1, 1] to cosine coefficients of about unit deviation each: ``patches @ levelling(…)``.

    Natural pictures hold nearly all of their energy in a patch's mean colour, so a linear layer on pixels starts out
    blind to edges and to the difference between two frames. The fall with frequency is a fixed power law, not a fit to the
    footage of a run.
    """
    axis = torch.arange(patch)
    frequency = torch.sqrt(axis[:, None] ** 2 + axis[None] ** 2).flatten()
    steady, changing = (torch.tensor(row) for row in DEVIATION_OF_FILM)
    scale = torch.stack([steady if k == 0 else changing for k in range(tubelet)]) * (patch / 8) * math.sqrt(tubelet / 2)
    deviation = scale[:, :, None] * (1 + frequency) ** -FALL
    return tubelet_basis(patch, tubelet).T / deviation.flatten()
