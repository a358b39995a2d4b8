"""What every frozen encoder is to a probe, wherever it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError

Frames = UInt8[Tensor, "batch frames 3 height width"]
Tokens = Float[Tensor, "batch time places channels"]


class FrozenEncoder(nn.Module, ABC):
    """Bytes in, tokens of chosen layers out; pixels are prepared as the encoder's own training prepared them."""

    name: str
    """What tables call it, in a few words."""
    kind: str
    """``nextvid``, ``transformers``, ``function`` or ``baseline``."""
    width: int
    """Channels of a token."""
    layers: int
    """How many layers there are to read: 0 to ``layers - 1``, the last of them the encoder's own output."""
    clip: ClipSpec | None
    """The clips that it was trained on, where it says so."""
    size: int
    """Pixels a side of the square that it is best given."""
    frames: int | None = None
    """How many frames it takes, where it takes no other number."""
    digest: str
    """Tells this encoder's weights and preprocessing from any other's."""

    @property
    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What is done to the bytes before the first layer, for the record: mean, deviation, size, frames."""

    @abstractmethod
    def check(self, spec: ClipSpec) -> None:
        """Raise ``UserError`` where clips of this shape cannot be encoded."""

    @abstractmethod
    def encode(self, frames: Frames, layers: Sequence[int]) -> list[Tokens]:
        """Tokens ``(B, T, N, D)`` after each of ``layers``, in their order; no gradient is taken."""

    def forward(self, frames: Frames, layers: Sequence[int] | None = None) -> Tokens:
        """Tokens of ``layers`` (by default the last), one after the other along time."""
        with torch.inference_mode():
            found = self.encode(frames, layers or [self.layers - 1])
        return torch.cat(found, dim=1)

    def untrained(self) -> "FrozenEncoder | None":
        """The same encoder with the weights that it would start training with; None where nobody knows how it is made."""
        return None

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise ``UserError`` for a layer that there is not."""
        beyond = [layer for layer in layers if not 0 <= layer < self.layers]
        if beyond:
            raise UserError(f"{self.name} has layers 0 to {self.layers - 1}, and no layer {beyond[0]}: mend layers")
