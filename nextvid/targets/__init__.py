"""Spaces to draw in: what the decoder's latents are, and how frames become them and come back (docs/targets.md)."""

import inspect
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nextvid.data.transforms import AnyFrames, prepare
from nextvid.errors import UserError, nearest
from nextvid.targets.registry import SPACES, build_space
from nextvid.targets.space import Latents, Space

__all__ = ["LoadedSpace", "load", "names"]

UnitFrames = Float[Tensor, "batch frames 3 rows columns"]


def names() -> list[str]:
    """What :func:`load` and a recipe's ``objective.target.name`` know."""
    return list(SPACES)


def load(
    name: str,
    weights: str | Path | None = None,
    statistics: str | Path | None = None,
    *,
    patch: int | None = None,
    tubelet: int = 2,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> "LoadedSpace":
    """A target space by name, ready to use: ``nextvid.targets.load("vavae", weights="vavae.pt", statistics="latents_stats.pt")``.

    ``patch``: pixels a side of a token; by default one latent is one token (pixels: 16). ``settings``: what else a recipe's
    ``objective.target`` may say of it. Raises ``UserError`` for a name, a setting or a file that there is not, and where the
    space cannot be laid out on such a grid.
    """
    if name not in SPACES:
        raise UserError(f"there is no target space '{name}'{nearest(name, SPACES)}; there are {', '.join(SPACES)}")
    files = {"weights": weights, "statistics": statistics}
    given = settings | {key: str(path) for key, path in files.items() if path is not None}
    known = [key for key in inspect.signature(SPACES[name]).parameters if key != "name"]
    for key in given:
        if key not in known:
            raise UserError(f"the space {name} has no setting '{key}'{nearest(key, known)}; it has {', '.join(known)}")
    try:
        config = SPACES[name](**given)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return LoadedSpace(name, build_space(config, patch, tubelet)).to(device)


class LoadedSpace(nn.Module):
    """A target space that takes frames as they come from a decoder, and gives them back in [0, 1]."""

    def __init__(self, name: str, space: Space) -> None:
        super().__init__()
        self.name = name
        self.space = space

    @property
    def channels(self) -> int:
        """Values a token."""
        return self.space.channels

    @property
    def checksum(self) -> str:
        """SHA-256 of its weights, or of its settings where it has none."""
        return self.space.checksum

    @property
    def decodes(self) -> bool:
        """Whether there is a way back to frames."""
        return self.space.decodes

    def grid(self, frames: AnyFrames) -> tuple[int, int, int]:
        """Latent frames, rows and columns that :meth:`encode` gives for a clip."""
        return self.space.grid(prepare(frames, self.space.tubelet))

    def fit(self, frames: AnyFrames) -> "LoadedSpace":
        """Measure what latents are normalised by on these clips, where it did not come with the weights; returns the space."""
        self.space.fit(prepare(frames, self.space.tubelet).to(self._device))
        return self

    def encode(self, frames: AnyFrames) -> Latents:
        """Frames ``(B, F, 3, H, W)``, uint8 or float in [0, 1], to normalised latents ``(B, T, N, C)``, without gradient.

        The frames of a tubelet are stacked on channels; a single frame is a still clip. Raises ``UserError`` where a clip
        cannot be cut into tokens, and where the space has no statistics yet (:meth:`fit`).
        """
        self.space.check_normalised()
        return self.space.encode(prepare(frames, self.space.tubelet).to(self._device))

    def decode(self, latents: Latents, rows: int | None = None, columns: int | None = None) -> UnitFrames:
        """Latents ``(B, T, N, C)`` on a grid of ``rows`` x ``columns`` (by default a square) to frames in [0, 1].

        Raises ``UserError`` in a space without a way back.
        """
        return ((self.space.decode(latents, rows, columns) + 1) / 2).clamp(0, 1)

    @property
    def _device(self) -> torch.device:
        return next(self.space.buffers()).device
