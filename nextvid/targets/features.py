"""A frozen vision network's features as a target space: of meaning, not of appearance, and without a way back to pixels."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from nextvid.errors import UserError
from nextvid.models.encoder import FrameTensor
from nextvid.targets.space import Images, Latents, Maps, NetworkSpace, SpaceConfig
from nextvid.targets.vision import PACKAGED, VisionNetwork, load_vision

PACKAGED_LAYER = 10
PIXELS_AT_ONCE = 2**16
"""On a CPU. Over 4 pictures of 128 px at once, whose maps stay in its caches, the packaged network takes a fifth of the time that
it takes over 128 at once.
"""


@dataclass(frozen=True)
class FeaturesConfig(SpaceConfig):
    """``network``: ``efficientnet-lite0`` or the folder of a ``transformers`` vision model. ``layer``: by default 10 of the
    packaged network (one cell every 16 pixels, 112 channels), the last one of others.

    ``scale``: frames are resized to so many times their size for the network; by default so that its map has exactly one cell a
    patch. A finer map is folded into channels.
    """

    name: Literal["features"] = "features"
    network: str = PACKAGED
    layer: int | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale={self.scale} must be above 0")

    def build(self, patch: int | None, tubelet: int) -> "Features":
        """The space on a grid of ``patch`` pixels (None: a token a cell of frames as they are); see :meth:`SpaceConfig.build`."""
        return Features(self, patch, tubelet)


class Features(NetworkSpace):
    """One layer of a frozen vision network, every frame by itself."""

    decodes = False
    network: VisionNetwork

    def __init__(self, config: FeaturesConfig, patch: int | None, tubelet: int) -> None:
        """Raises ``UserError`` where there is no such network or layer, or its cells do not lie on the patch grid."""
        network = load_vision(config.network)
        layer = config.layer
        if layer is None:
            layer = PACKAGED_LAYER if config.network == PACKAGED else network.depth - 1
        network.check([layer])
        stride, scale = _on_the_grid(network.strides[layer], config.scale, patch, f"layer {layer} of {config.network}")
        super().__init__(
            network,
            channels=network.widths[layer],
            stride=stride,
            patch=patch,
            tubelet=tubelet,
            where=f"layer {layer} of {config.network}",
        )
        self.layer, self.scale = layer, scale
        self.checksum = network.checksum

    def to_maps(self, images: Images) -> Maps:
        """The layer's map of the resized images."""
        height, width = (round(side * self.scale) for side in images.shape[-2:])
        if images.device.type != "cpu":
            return self._map(images, height, width)
        parts = images.split(max(1, PIXELS_AT_ONCE // (height * width)))
        return torch.cat([self._map(part, height, width) for part in parts])

    def _map(self, images: Images, height: int, width: int) -> Maps:
        if self.scale != 1:
            images = functional.interpolate(images, (height, width), mode="bilinear", antialias=self.scale < 1)
        return self.network.maps(images, [self.layer])[0]

    def decode(self, latents: Latents, rows: int | None = None, columns: int | None = None) -> FrameTensor:
        """Raises ``UserError``: there is no way back."""
        raise UserError(
            "features have no way back to frames: such a run can be learned from and probed, and draws no pictures; for "
            "pictures choose objective.target.name=pixels or an autoencoder"
        )


def _on_the_grid(cell: int, scale: float | None, patch: int | None, where: str) -> tuple[int, float]:
    """Pixels of the frame that a cell of ``cell`` resized pixels covers, and the scale that makes it so.

    Raises ``UserError`` where that is no whole number that divides the patch.
    """
    if scale is None:
        return patch or cell, cell / (patch or cell)
    if patch is None:
        patch = max(1, round(cell / scale))
    stride = round(cell / scale)
    if stride < 1 or patch % stride or not math.isclose(stride * scale, cell, rel_tol=1e-6):
        fitting = ", ".join(f"{cell / part:g}" for part in range(patch, 0, -1) if patch % part == 0)
        raise UserError(
            f"objective.target.scale={scale:g}: {where} has a cell every {cell} pixels of the resized frame, which is every "
            f"{cell / scale:g} pixels of the frame, and must be a whole number that divides the patch of {patch}; set it to "
            f"one of {fitting}, or leave it out for {cell / patch:g}"
        )
    return stride, cell / stride
