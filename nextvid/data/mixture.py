"""Which sample is number *i*: a pure function of (seed, *i*), whatever the worker, the world size or the restart."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from nextvid.data.clip import Broken, BrokenFile, ClipSpec, Frames, Source
from nextvid.data.footage import FootageSource
from nextvid.data.permutation import Permutation
from nextvid.errors import UserError
from nextvid.randomness import generator, sample_key

ATTEMPTS = 20
"""How many broken files in a row a sample may meet before the run stops."""
ROUND = 4096
"""Samples after which every source has had its share, to within one; a weight below one in so many is refused."""


@dataclass(frozen=True)
class Sample:
    """A clip, uint8 ``(frames, 3, size, size)``, its key, its source's place, and the files that failed before it."""

    frames: UInt8[Tensor, "frames 3 size size"]
    key: int
    source: int
    broken: list[Broken]


@dataclass(frozen=True)
class Choice:
    """What an attempt at a sample draws from: ``item`` of source ``source``."""

    source: int
    item: int


class Mixture:
    """Sources drawn in proportion to their weights; the items of each in a shuffled order, all before any comes again."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
        """One positive weight a source, in any unit. Raises ``UserError`` where that is not so."""
        if not sources or len(sources) != len(weights):
            raise UserError(f"data.sources: {len(sources)} sources but {len(weights)} weights; give one a source.")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(f"data.sources: weights are {list(weights)}; each must be a number above 0.")
        if min(weights) * ROUND < sum(weights):
            raise UserError(
                f"data.sources: weight {min(weights)} is less than 1/{ROUND} of all, {sum(weights)}, and would hardly "
                "ever be drawn; raise it, or leave the source out."
            )
        self.sources = list(sources)
        self.seed = seed
        self._shares = _shares(np.array(weights, dtype=np.float64))

    def choice(self, number: int, attempt: int = 0) -> Choice:
        """What sample ``number`` draws from; ``attempt`` counts the broken files before, and each changes the choice.

        A pure function of (seed, ``number``, ``attempt``): of the sources and their items no other state is kept.
        """
        if attempt:
            draw = generator("substitute", sample_key(self.seed, number), attempt)
            source = int(np.searchsorted(np.cumsum(self._shares), draw.integers(ROUND), side="right"))
            return Choice(source, int(draw.integers(self.sources[source].items)))
        turn, place = divmod(number, ROUND)
        order, ranks = _round(self.seed, turn, self._shares.tobytes())
        source = int(order[place])
        drawn = turn * int(self._shares[source]) + int(ranks[place])
        epoch, at = divmod(drawn, self.sources[source].items)
        return Choice(source, _order(self.sources[source].items, self.seed, source, epoch)[at])

    def attempt(self, number: int, attempt: int, spec: ClipSpec) -> UInt8[Tensor, "frames 3 size size"]:
        """The clip of one attempt at a sample. Raises ``BrokenFile``."""
        return torch.from_numpy(np.ascontiguousarray(self.clip(number, attempt, spec).transpose(0, 3, 1, 2)))

    def clip(self, number: int, attempt: int, spec: ClipSpec) -> Frames:
        """What :meth:`attempt` gives, as its source has made it: ``(frames, size, size, 3)``."""
        choice = self.choice(number, attempt)
        return self.sources[choice.source].clip(self._draw(number, attempt), spec, choice.item)

    def _draw(self, number: int, attempt: int) -> np.random.Generator:
        """The random numbers of a clip."""
        return generator("clip", sample_key(self.seed, number), attempt)

    def has_latents(self, spec: ClipSpec) -> bool:
        """Whether the latents of all such clips are stored."""
        return all(isinstance(source, FootageSource) and spec.size in source.latents for source in self.sources)

    def latents(
        self, numbers: Sequence[int], attempts: Sequence[int], spec: ClipSpec
    ) -> Shaped[Tensor, "batch frames map_channels map_rows map_columns"]:
        """The stored latents of the clips of these attempts, where :meth:`has_latents`, in the precision that they have."""
        maps = []
        for number, attempt in zip(numbers, attempts, strict=True):
            choice = self.choice(number, attempt)
            source = self.sources[choice.source]
            assert isinstance(source, FootageSource)
            maps.append(source.maps(self._draw(number, attempt), spec, choice.item))
        return torch.from_numpy(np.stack(maps))

    def sample(self, number: int, spec: ClipSpec) -> Sample:
        """Sample ``number`` of the run, a pure function of (seed, ``number``, ``spec``).

        A broken file is replaced by a new draw of source, item and clip; after ``ATTEMPTS`` of them: ``UserError``.
        """
        broken: list[Broken] = []
        for attempt in range(ATTEMPTS):
            try:
                frames = self.attempt(number, attempt, spec)
            except BrokenFile as error:
                broken.append(Broken(error.path, error.reason, number, attempt))
                continue
            return Sample(frames, sample_key(self.seed, number), self.choice(number, attempt).source, broken)
        raise UserError(nothing_but_broken(broken))

    def describe(self, choice: Choice) -> str:
        """The path of the file that a choice is, or the name of a source without files."""
        return self.sources[choice.source].describe(choice.item)


def nothing_but_broken(broken: Sequence[Broken]) -> str:
    """What is said where every attempt at a sample has failed."""
    files = dict.fromkeys((entry.path, entry.reason) for entry in broken)
    named = ", ".join(f"{path} ({reason})" for path, reason in files)
    return (
        f"{ATTEMPTS} draws in a row met files that cannot be decoded: {named}. "
        "Remove or replace them, or check that the footage is still where it was."
    )


def _shares(weights: Float[np.ndarray, " sources"]) -> Int[np.ndarray, " sources"]:
    """How many samples of a round each source has: proportional to its weight, by largest remainder, one at least."""
    exact = weights / weights.sum() * ROUND
    shares = np.maximum(1, np.floor(exact).astype(np.int64))
    while shares.sum() != ROUND:
        step = 1 if shares.sum() < ROUND else -1
        shares[np.argmax((exact - shares) * step)] += step
    return shares


@functools.lru_cache(maxsize=8)
def _round(seed: int, turn: int, shares: bytes) -> tuple[np.ndarray, np.ndarray]:
    """For every sample of a round its source, and how many of that source's come before it in the round."""
    counts = np.frombuffer(shares, dtype=np.int64)
    order = generator("round", seed, turn).permutation(np.repeat(np.arange(len(counts)), counts))
    ranks = np.empty(ROUND, dtype=np.int64)
    for source in range(len(counts)):
        ranks[order == source] = np.arange(counts[source])
    return order, ranks


@functools.lru_cache(maxsize=64)
def _order(items: int, seed: int, source: int, epoch: int) -> Permutation:
    return Permutation(items, seed, source, epoch)
