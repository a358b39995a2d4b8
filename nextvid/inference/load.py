"""``nextvid.load``: an encoder from a run's folder or a weights file, ready to use."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nextvid.data.transforms import AnyFrames, prepare
from nextvid.errors import UserError
from nextvid.inference.released import default_weights, find_released, is_released, released_names
from nextvid.inference.streaming import Stream
from nextvid.models.encoder import Encoder, EncoderConfig, FrameTokens
from nextvid.weights import load_weights, read_metadata

FORMAT_VERSION = 1


def load(
    path: str | Path, weights: Literal["ema", "online"] | None = None, device: str | torch.device = "cpu"
) -> "LoadedEncoder":
    """The encoder of a run's folder, of a safetensors file that nextvid wrote, or a released one by name (``nextvid-tiny``).

    ``weights`` chooses the moving average or the online encoder; by default the average, where the method keeps one.
    Raises ``UserError`` where there is none, where it is a pickle or was written by another format version, or where weights
    and configuration do not fit.
    """
    file = _weights_file(Path(path))
    config = read_config(file)
    weights = weights or cast(Literal["ema", "online"], default_weights(config["weights"]))
    if weights not in config["weights"]:
        raise UserError(f"{file} has no '{weights}' weights; it has {', '.join(config['weights'])}")
    encoder = Encoder(_shape_of(config, file))
    load_weights(encoder, file, prefix=f"{weights}.")
    return LoadedEncoder(encoder, {**config, "loaded": weights}).to(device).eval().requires_grad_(False)


def read_config(file: Path) -> dict[str, Any]:
    """The configuration that a weights file carries: the encoder's shape, and the clips that it was trained on."""
    return config_of(read_metadata(file), file)


def config_of(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """The configuration in the ``metadata`` of ``file``. Raises ``UserError`` where there is none, or not of this format."""
    if "config" not in metadata:
        raise UserError(f"{file} is not an encoder written by nextvid: it carries no configuration")
    try:
        config = json.loads(metadata["config"])
        version = config["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the configuration in {file} cannot be read ({error!r}); write it with nextvid export"
        ) from error
    if version != FORMAT_VERSION:
        raise UserError(f"{file} has format version {version}, this nextvid reads {FORMAT_VERSION}")
    return config


def _shape_of(config: dict[str, Any], file: Path) -> EncoderConfig:
    try:
        return EncoderConfig(**config["encoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the configuration in {file} is that of no encoder ({error}); write it with nextvid export"
        ) from error


def _weights_file(path: Path) -> Path:
    if is_released(path):
        return find_released(path)
    file = path / "encoder.safetensors" if path.is_dir() else path
    if file.is_file():
        return file
    if path.is_dir():
        raise UserError(
            f"{path} holds no encoder.safetensors; is it a run's folder, and has the run saved a checkpoint?"
        )
    raise UserError(
        f"there is no run or weights file at {path}; released encoders by name: {', '.join(released_names()) or 'none'}"
    )


class LoadedEncoder(nn.Module):
    """A trained encoder: takes frames as they come from a decoder, gives tokens."""

    def __init__(self, encoder: Encoder, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = config

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.encoder.config.width

    def forward(self, frames: AnyFrames, return_layers: Sequence[int] | None = None) -> FrameTokens | list[FrameTokens]:
        """Tokens ``(B, T, N, D)`` of frames ``(B, F, 3, H, W)``, uint8 or float in [0, 1]; a list with ``return_layers``.

        One frame is a still clip. Height and width must be multiples of the patch, frames of the tubelet.
        """
        return self.encoder(prepare(frames, self.encoder.config.tubelet), return_layers=return_layers)

    def pool(self, tokens: FrameTokens) -> Float[Tensor, "batch width"]:
        """One vector a clip: the mean over frames and places."""
        return tokens.mean(dim=(1, 2))

    def stream(self, window: int = 32) -> Stream:
        """Encode a camera frame pair by frame pair, remembering ``window`` latent frames."""
        return Stream(self.encoder, window)
