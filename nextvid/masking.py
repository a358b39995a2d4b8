"""What the encoder may see: the same places of every frame.

Multi-block masks (V-JEPA 2, section 2; METHOD, step 1) and tubes of single places (VideoMAE, arXiv 2203.12602, section 3.3).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nextvid.randomness import generator

Hidden = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class MaskConfig:
    """``blocks`` rectangles, each of ``scale`` of the frame's area and an aspect ratio in ``aspect``; their union is hidden.

    ``blocks = 0`` hides nothing.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    blocks: int
    scale: float = 0.15
    aspect: tuple[float, float] = (0.75, 1.5)

    def __post_init__(self) -> None:
        if self.blocks < 0 or not 0 < self.scale <= 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(
                "a mask needs blocks >= 0, scale in (0, 1] and an aspect range (low, high) with 0 < low <= high"
            )


@dataclass(frozen=True)
class TubeConfig:
    """A share ``ratio`` of the places is hidden, each drawn by itself."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    ratio: float

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} must lie in [0, 1): it is the share of places that is hidden")


Mask = MaskConfig | TubeConfig


def draw_hidden(config: MaskConfig, draw: np.random.Generator, height: int, width: int) -> Hidden:
    """The union of the blocks on a ``height`` x ``width`` patch grid; all blocks of a sample have one shape."""
    aspect = draw.uniform(*config.aspect)
    area = config.scale * height * width
    h = min(max(round(math.sqrt(area * aspect)), 1), height)
    w = min(max(round(math.sqrt(area / aspect)), 1), width)
    hidden = np.zeros((height, width), dtype=bool)
    tops = draw.integers(0, height - h + 1, config.blocks)
    lefts = draw.integers(0, width - w + 1, config.blocks)
    for top, left in zip(tops, lefts, strict=True):
        hidden[top : top + h, left : left + w] = True
    return hidden


@lru_cache(maxsize=128)
def visible_count(config: Mask, height: int, width: int) -> int:
    """How many places every sample keeps.

    Of tubes: all but the whole number of places within ``ratio``, at least one. Of blocks: the mean of what they leave,
    never under 1/16 of the places nor under one.

    It depends on the mask and the grid alone, so that batches are rectangular and a sample's mask depends on nothing but
    the sample.
    """
    places = height * width
    if isinstance(config, TubeConfig):
        return max(places - math.floor(config.ratio * places + 1e-9), 1)
    draw = generator("visible_count", height, width)
    left = [places - draw_hidden(config, draw, height, width).sum() for _ in range(2000)]
    return max(round(float(np.mean(left))), -(-places // 16), 1)


def draw_visible(config: Mask, key: int, purpose: str, height: int, width: int) -> Int[np.ndarray, " kept"]:
    """Sorted ids of the places of one sample that may be seen.

    Tubes: random places. Blocks: a sample that they leave more than ``visible_count`` gives up random places, one with fewer
    reveals random ones.
    """
    draw = generator(purpose, key)
    count = visible_count(config, height, width)
    if isinstance(config, TubeConfig):
        return np.sort(draw.permutation(height * width)[:count])
    hidden = draw_hidden(config, draw, height, width).ravel()
    order = draw.permutation(height * width)
    seen_first = order[np.argsort(hidden[order], kind="stable")]
    return np.sort(seen_first[:count])


def draw_batch(config: Mask, keys: list[int], purpose: str, height: int, width: int) -> Int[Tensor, "batch kept"]:
    """:func:`draw_visible` of every sample: row *b* depends on ``keys[b]`` and ``purpose`` only."""
    rows = [draw_visible(config, key, purpose, height, width) for key in keys]
    return torch.from_numpy(np.stack(rows))


def hidden_places(visible: Int[Tensor, "batch kept"], places: int) -> Int[Tensor, "batch hidden"]:
    """The places that are not ``visible``, sorted."""
    shown = torch.zeros(len(visible), places, dtype=torch.bool, device=visible.device).scatter_(1, visible, True)
    return (~shown).nonzero()[:, 1].view(len(visible), -1)
