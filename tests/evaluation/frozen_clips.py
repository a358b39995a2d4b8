"""Small clips and frozen encoders that the tests of stored, fresh and fitted tokens are made from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextvid.data.clip import BrokenFile, ClipSpec
from nextvid.data.view_reader import RenderedReader, ViewReader
from nextvid.data.views import ViewAugmentation, Views
from nextvid.evaluation.encoders import FrozenEncoder
from nextvid.evaluation.features import render
from nextvid.evaluation.fresh import FreshTokens, labels_of

SPEC = ClipSpec(frames=2, fps=5.0, size=8)
CLASSES = ("red", "green", "blue")
PATCH = 4
ONE_VIEW = Views()


class TintedClips:
    """Noise tinted by its class; ``strength`` is how much."""

    name = "tinted"
    tasks = {"tint": CLASSES}  # noqa: RUF012

    def __init__(self, count: int, seed: int = 0, broken: Sequence[int] = (), strength: int = 60) -> None:
        self.count, self.seed, self.broken, self.strength = count, seed, set(broken), strength

    def __len__(self) -> int:
        return self.count

    def labels(self, index: int) -> dict[str, int]:
        return {"tint": (index * 7 + self.seed) % 3}

    def path(self, index: int) -> str:
        return f"/tinted/{index}.mp4"

    def clip(self, index: int, spec: ClipSpec) -> np.ndarray:
        if index in self.broken:
            raise BrokenFile(self.path(index), "truncated")
        draw = np.random.default_rng((self.seed, index))
        noise = draw.integers(0, 190, (spec.frames, spec.size, spec.size, 3))
        noise[..., self.labels(index)["tint"]] += self.strength
        return noise.astype(np.uint8)


class ManyViews(TintedClips):
    """The same as if cut from longer, larger videos: every view and segment is other noise."""

    def windows(self, index: int, spec: ClipSpec, views: Views, draw: np.random.Generator) -> np.ndarray:
        whole = ClipSpec(views.rows * views.segments * spec.frames, spec.fps, spec.size)
        frames = self.clip(index, whole)
        if views.augmentation:
            frames = (frames + draw.integers(0, 5, frames.shape)).astype(np.uint8)
        return frames.reshape(views.rows, views.segments, spec.frames, spec.size, spec.size, 3)


class Patches(FrozenEncoder):
    """Means of patches times random numbers, other ones in every layer; ``shift`` is added to all."""

    kind = "function"
    layers = 2

    def __init__(self, width: int = 16, seed: int = 0, shift: float = 0.0, gain: float = 1.0) -> None:
        super().__init__()
        self.name, self.width, self.clip, self.size = f"patches {seed}", width, SPEC, SPEC.size
        self.digest = f"patches {width} {seed} {shift} {gain}"
        draw = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(self.layers, 3, width, generator=draw)
        self.shift, self.gain, self.encoded = shift, gain, 0

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {}

    def check(self, spec: ClipSpec) -> None:
        pass

    def encode(self, frames: Tensor, layers: Sequence[int]) -> list[Tensor]:
        self.check_layers(layers)
        self.encoded += len(frames)
        side = frames.shape[-1] // PATCH
        patches = (frames.float() / 64 - 2).unflatten(-1, (side, PATCH)).unflatten(-3, (side, PATCH))
        means = patches.mean((-1, -3)).permute(0, 1, 3, 4, 2).flatten(2, 3)
        return [self.shift + self.gain * (4 * means @ self.weights[layer]) for layer in layers]


def fresh(
    encoder: FrozenEncoder,
    clips: TintedClips,
    layers: Sequence[int] = (1,),
    views: Views = ONE_VIEW,
    precision: str = "float32",
    workers: int = 0,
) -> FreshTokens:
    reader = ViewReader(clips, SPEC, views, workers)
    parts = (reader, dict(clips.tasks), labels_of(clips), views.rows, views.segments)
    return FreshTokens(encoder, list(layers), *parts, encode_batch=5, precision=precision)


def rendered(encoder: FrozenEncoder, clips: TintedClips) -> FreshTokens:
    """Of clips that lie in memory."""
    reader = RenderedReader(render(clips, SPEC, progress=False).frames)
    return FreshTokens(encoder, [1], reader, dict(clips.tasks), labels_of(clips), 1, 1)


def all_rows(supply: FreshTokens) -> Tensor:
    return torch.arange(len(supply) * supply.views)


AUGMENTED = Views(augmentation=ViewAugmentation(erase=0.5))


def write_encoder(folder: Path, seed: int = 3) -> Path:
    """A run's folder as training leaves it, as far as its encoder goes: random weights, 24 channels, 2 layers, 16 pixels."""
    from builders import randomise, small_recipe  # noqa: PLC0415 (not for the processes that torchrun starts)

    from nextvid.training.run import Run  # noqa: PLC0415

    recipe = small_recipe()
    folder.mkdir(parents=True)
    Run(folder).export_encoder(randomise(recipe.objective.build(recipe.encoder), seed=seed), recipe, step=7)
    return folder
