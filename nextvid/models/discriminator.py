"""A patch discriminator (pix2pix, arXiv 1611.07004): is this patch of a picture real?"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 8


@dataclass(frozen=True)
class DiscriminatorConfig:
    """``width`` channels first, doubled at each of ``layers`` halvings (to eight times at most)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if self.width % GROUPS or self.width < 1 or self.layers < 1:
            raise ValueError(f"width={self.width} must be a multiple of {GROUPS}, and layers={self.layers} 1 or more")


class Discriminator(nn.Module):
    """Pictures to one number for every patch, above 0 where it looks real.

    It normalises by groups of channels and not over the batch, so that a picture is judged alone.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.width * min(2**layer, 8) for layer in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number, (before, width) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if number < config.layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(
        self, images: Float[Tensor, "images 3 rows columns"]
    ) -> Float[Tensor, "images 1 patch_rows patch_columns"]:
        """Logits."""
        return self.layers(images)
