"""What needs no learning, as encoders that meet the same probe: the middle frame, raw pixels, optical flow, untrained weights."""

from collections.abc import Sequence
from typing import Any

import torch

from nextvid.data.clip import ClipSpec
from nextvid.evaluation import baselines
from nextvid.evaluation.encoders import FrozenEncoder
from nextvid.evaluation.encoders.frozen import Frames, Tokens
from nextvid.evaluation.features import Encode
from nextvid.targets.space import digest_of

PATCHES, TUBELET = (16, 8, 4, 2, 1), 2
"""Pixels a side of a raw patch, the largest that divides the picture; frames of one, where the encoder has none of its own."""


class BaselineEncoder(FrozenEncoder):
    """A function of the pixels, as an encoder of one layer."""

    kind = "baseline"
    layers = 1

    def __init__(self, name: str, encode: Encode, spec: ClipSpec, about: object = None) -> None:
        """``about``: what else tells it from another of its name."""
        super().__init__()
        self.name, self.clip, self.size = name, spec, spec.size
        self._encode = encode
        with torch.inference_mode():
            self.width = encode(torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8)).shape[-1]
        self.digest = digest_of(name, repr(spec), repr(about))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def check(self, spec: ClipSpec) -> None:
        """Clips of any shape will do."""

    def encode(self, frames: Frames, layers: Sequence[int]) -> list[Tokens]:
        """The one layer there is."""
        self.check_layers(layers)
        return [self._encode(frames) for _ in layers]


def baseline_encoders(encoder: FrozenEncoder, spec: ClipSpec, wanted: Sequence[str]) -> list[FrozenEncoder]:
    """The baselines of ``wanted`` for an encoder that is given clips of ``spec``, by their names.

    ``random_init`` is missing of an encoder that cannot be made anew, and ``optical_flow`` of frames too small to have any.
    ``chance`` is none: it reads nothing.
    """
    patch, tubelet = _patch_of(encoder, spec)
    made: list[FrozenEncoder] = []
    for name in wanted:
        if name == "middle_frame":
            made.append(BaselineEncoder(name, baselines.middle_frame(patch), spec, patch))
        elif name == "pixels":
            made.append(BaselineEncoder(name, baselines.pixels(patch, tubelet, positions=True), spec, (patch, tubelet)))
        elif name == "optical_flow" and spec.size >= baselines.SMALLEST_FLOW_SIDE:
            made.append(BaselineEncoder(name, baselines.optical_flow(), spec))
        elif name == "random_init":
            untrained = encoder.untrained()
            if untrained is not None:
                made.append(untrained)
    return made


def _patch_of(encoder: FrozenEncoder, spec: ClipSpec) -> tuple[int, int]:
    """Pixels and frames of a raw patch: the encoder's own, where it is one of ours."""
    config = getattr(encoder, "config", None)
    if encoder.kind == "nextvid" and config is not None:
        return config.patch, config.tubelet if spec.frames % config.tubelet == 0 else 1
    patch = next(patch for patch in PATCHES if spec.size % patch == 0)
    return patch, TUBELET if spec.frames % TUBELET == 0 else 1
