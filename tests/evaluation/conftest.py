from collections.abc import Callable

import numpy as np
import pytest
import torch

from nextvid.data.clip import ClipSpec
from nextvid.evaluation.features import Features

CLASSES = 4


class ColourClips:
    """Noise in which the tint tells one task and the brightest third of the picture the other."""

    name = "colours"
    tasks = {"tint": ("red", "blue"), "place": ("top", "middle", "bottom")}  # noqa: RUF012

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def labels(self, index: int) -> dict[str, int]:
        return {"tint": index % 2, "place": index % 3}

    def clip(self, index: int, spec: ClipSpec) -> np.ndarray:
        noise = np.random.default_rng(index).integers(0, 80, (spec.frames, spec.size, spec.size, 3), dtype=np.uint8)
        noise[..., 2 * (index % 2)] += np.uint8(80)
        third = spec.size // 3
        noise[:, third * (index % 3) : third * (index % 3 + 1)] += np.uint8(90)
        return noise


def token_problem(clips: int, seed: int, strength: float = 2.0, width: int = 32, tokens: int = 12) -> Features:
    """Random tokens; in three places of each clip its class's vector is added, ``strength`` times."""
    directions = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (clips,), generator=draw)
    values = torch.randn(clips, tokens, width, generator=draw)
    places = torch.rand(clips, tokens, generator=draw).argsort(1)[:, :3]
    values[torch.arange(clips)[:, None], places] += strength * directions[labels][:, None]
    return Features(values, {"kind": labels}, {"kind": tuple("abcd")})


@pytest.fixture
def colour_clips() -> Callable[[int], ColourClips]:
    return ColourClips


@pytest.fixture
def make_problem() -> Callable[..., Features]:
    return token_problem
