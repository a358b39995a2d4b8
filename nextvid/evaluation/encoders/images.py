"""Image models of transformers, frame by frame."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nextvid.data.clip import ClipSpec
from nextvid.evaluation.encoders.frozen import Frames, FrozenEncoder, Tokens
from nextvid.evaluation.encoders.preprocessing import Preprocessing
from nextvid.evaluation.encoders.untrained import as_baseline, first_weights
from nextvid.targets.space import digest_of, freeze
from nextvid.targets.vision import TransformersVision

IMAGES_AT_ONCE = 64


class ImageEncoder(FrozenEncoder):
    """An image model applied to every frame by itself: T = F. Clips of another size are resized to ``size``.

    Layer *i* is what comes out of block *i*; the last layer is the model's own output, after its last normalisation.
    """

    kind = "transformers"
    clip = None

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Raises ``UserError`` where the model in ``folder`` cannot be read, or its weights are incomplete or a pickle."""
        super().__init__()
        self.vision = TransformersVision(folder)
        self.pixels = preprocessing
        self.name = folder.absolute().name
        self.size = preprocessing.size
        self.width, self.layers = self.vision.widths[-1], self.vision.depth - 1
        self.digest = digest_of(self.vision.checksum, json.dumps(self.preprocessing))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Size, scale, mean and deviation as the model's processor says; each frame is a picture."""
        return {**self.pixels.record(self.size), "frames": "each by itself"}

    def check(self, spec: ClipSpec) -> None:
        """Clips of any length and size can be encoded."""

    def encode(self, frames: Frames, layers: Sequence[int]) -> list[Tokens]:
        """Tokens ``(B, F, N, D)`` after each of ``layers``. Raises ``UserError`` for an unknown layer."""
        self.check_layers(layers)
        with torch.no_grad():
            pictures = self.pixels(frames, self.size).flatten(0, 1)
            parts = [
                self.vision.maps_of(part, [layer + 1 for layer in layers]) for part in pictures.split(IMAGES_AT_ONCE)
            ]
        return [
            torch.cat(maps).flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])
            for maps in zip(*parts, strict=True)
        ]

    def untrained(self) -> "ImageEncoder":
        """See :class:`nextvid.evaluation.encoders.FrozenEncoder`: as transformers draws a model's weights."""
        made = as_baseline(self)
        with first_weights():
            network: Any = type(self.vision.network)(self.vision.network.config)
        made.vision.network = freeze(network.eval())
        return made
