"""Encoders that nextvid trained."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.encoders.digest import digest_of_module
from nextvid.evaluation.encoders.frozen import Frames, FrozenEncoder, Tokens
from nextvid.evaluation.encoders.untrained import as_baseline, first_weights
from nextvid.inference.load import load
from nextvid.models.encoder import Encoder, EncoderConfig
from nextvid.targets.space import digest_of


class OwnEncoder(FrozenEncoder):
    """What :func:`nextvid.load` gives, as ``loaded``. Layer *i* is block *i*, after the encoder's last normalisation.

    Clips are taken at their own size and length, in whole patches and tubelets; one frame is a still clip.
    """

    kind = "nextvid"

    def __init__(self, where: str, weights: Literal["ema", "online"] | None = None) -> None:
        """Raises ``UserError`` as :func:`nextvid.load` does."""
        super().__init__()
        self.loaded = load(where, weights)
        chosen = self.loaded.settings["loaded"]
        self.name = _short(Path(where)) + (", online" if chosen == "online" else "")
        self.config: EncoderConfig = self.loaded.encoder.config
        self.width, self.layers = self.config.width, self.config.depth
        self.clip = ClipSpec(**self.loaded.settings["clip"])
        self.size = self.clip.size
        self.digest = digest_of("nextvid", repr(asdict(self.config)), digest_of_module(self.loaded))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Bytes to [-1, 1], and nothing else."""
        return {"size": "as given", "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3, "frames": "as given"}

    def check(self, spec: ClipSpec) -> None:
        """Raise ``UserError`` where clips of this shape cannot be cut into tubelet patches."""
        patch, tubelet = self.config.patch, self.config.tubelet
        if spec.size % patch or (spec.frames % tubelet and spec.frames != 1):
            raise UserError(
                f"{self.name} cannot be given clips of {spec.frames} frames of {spec.size} pixels: frames must be a multiple of "
                f"{tubelet} (or 1, a still clip), and the size a multiple of {patch}"
            )

    def encode(self, frames: Frames, layers: Sequence[int]) -> list[Tokens]:
        """Tokens ``(B, F / tubelet, H W / patch², D)`` after each of ``layers``. Raises ``UserError`` for an unknown layer."""
        self.check_layers(layers)
        with torch.no_grad():
            return list(self.loaded(frames, return_layers=list(layers)))

    def untrained(self) -> "OwnEncoder":
        """See :class:`nextvid.evaluation.encoders.FrozenEncoder`."""
        made = as_baseline(self)
        with first_weights():
            made.loaded.encoder = Encoder(self.config).eval().requires_grad_(False)
        return made


def _short(path: Path) -> str:
    """A run's name, also of the weights file in its folder."""
    return (
        path.absolute().parent.name
        if path.name == "encoder.safetensors"
        else (path.stem if path.is_file() else path.absolute().name)
    )
