"""Which sample is number *i*: a pure function of (seed, *i*), whatever the worker, the world size or the restart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from nextvid.data.clip import BrokenFile, ClipSpec, Source
from nextvid.errors import UserError
from nextvid.randomness import generator, sample_key

ATTEMPTS = 20
"""How many broken files in a row a sample may meet before the run stops."""


@dataclass(frozen=True)
class Sample:
    """A clip, uint8 ``(frames, 3, size, size)``, its key, its source's place, and the files that failed before it."""

    frames: UInt8[Tensor, "frames 3 size size"]
    key: int
    source: int
    broken: list[tuple[str, str]]


class Mixture:
    """Sources drawn in proportion to their weights."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
        """One positive weight a source, in any unit. Raises ``UserError`` where that is not so."""
        if not sources or len(sources) != len(weights):
            raise UserError(f"data.sources: {len(sources)} sources but {len(weights)} weights; give one a source.")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(f"data.sources: weights are {list(weights)}; each must be a number above 0.")
        self.sources = list(sources)
        self.seed = seed
        self._chances = np.cumsum(weights) / np.sum(weights)

    def sample(self, number: int, spec: ClipSpec) -> Sample:
        """Sample ``number`` of the run, a pure function of (seed, ``number``, ``spec``).

        A broken file is replaced by a new draw of source and clip; after ``ATTEMPTS`` of them it raises ``UserError``.
        """
        key = sample_key(self.seed, number)
        broken: list[tuple[str, str]] = []
        for attempt in range(ATTEMPTS):
            place = self._place(generator("source", key, attempt).random())
            try:
                clip = self.sources[place].clip(generator("clip", key, attempt), spec)
            except BrokenFile as error:
                broken.append((error.path, error.reason))
                continue
            frames = torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2)))
            return Sample(frames, key, place, broken)
        named = ", ".join(f"{path} ({reason})" for path, reason in dict.fromkeys(broken))
        raise UserError(
            f"{ATTEMPTS} draws in a row met files that cannot be decoded: {named}. "
            "Remove or replace them, or check that the footage is still where it was."
        )

    def _place(self, share: float) -> int:
        return min(int(np.searchsorted(self._chances, share, side="right")), len(self.sources) - 1)
