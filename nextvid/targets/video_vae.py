"""The latents of a video autoencoder that is causal in time (Cosmos, Wan, …) as a target space.

Such an autoencoder makes ``1 + k`` latent frames of ``1 + r k`` frames: the first of the first frame alone, each further one
of ``r`` frames more. Here a copy of the clip's first frame is put in front and the first latent is dropped, so that latent
``i`` covers the frames ``[r i, r (i + 1))`` and knows nothing of later ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nextvid.errors import UserError
from nextvid.models.encoder import FrameTensor
from nextvid.targets.diffusers_folder import build_network, find_autoencoder, known_statistics
from nextvid.targets.space import ClipMaps, MapSpace, SpaceConfig, on_meta


@dataclass(frozen=True)
class Compression:
    """What an autoencoder makes of a clip: latent ``channels``, one latent every ``stride`` pixels and ``period`` frames."""

    channels: int
    stride: int
    period: int


def _cosmos(config: Any) -> Compression:
    return Compression(config.latent_channels, config.spatial_compression_ratio, config.temporal_compression_ratio)


def _wan(config: Any) -> Compression:
    halvings = len(config.dim_mult) - 1
    return Compression(config.z_dim, 2**halvings * (config.patch_size or 1), 2 ** sum(config.temperal_downsample))


FAMILIES: dict[str, Callable[[Any], Compression]] = {"AutoencoderKLCosmos": _cosmos, "AutoencoderKLWan": _wan}
"""The classes that are causal in time, and how their settings say what they make. (CogVideoX's, HunyuanVideo's and LTX's
normalise over time, or see later frames.)"""


@dataclass(frozen=True)
class VideoVaeConfig(SpaceConfig):
    """``weights``: a diffusers pipeline's folder, its ``vae`` folder, or a safetensors file beside a ``config.json``.

    ``statistics``: a file with each channel's ``mean`` and ``std``. Without it the latents are normalised by what
    ``config.json`` states as ``latents_mean`` and ``latents_std``, or else by what is measured on clips.
    """

    name: Literal["video_vae"] = "video_vae"
    weights: str = ""
    statistics: str | None = None

    def build(self, patch: int | None, tubelet: int) -> "VideoVae":
        """The space on a grid of ``patch`` pixels (None: a token a latent); see :meth:`SpaceConfig.build`."""
        return VideoVae(self, patch, tubelet)


class VideoVae(MapSpace):
    """Latents are the posterior's mode; ``chunk`` is in frames, and at least one clip is encoded at once.

    The tubelet must be a multiple of ``period`` frames; the latents of a longer one are stacked on channels.
    """

    def __init__(self, config: VideoVaeConfig, patch: int | None, tubelet: int) -> None:
        """Raises ``UserError`` where the files are missing or do not fit, or the latents do not lie on the grid."""
        stored = find_autoencoder(config.weights, tuple(FAMILIES))
        network: Any = build_network(stored)
        made = FAMILIES[stored.class_name](network.config)
        super().__init__(
            network,
            channels=made.channels,
            stride=made.stride,
            period=made.period,
            patch=patch,
            tubelet=tubelet,
            where=f"objective.target.weights={config.weights}",
        )
        self.period = made.period
        self.checksum = stored.checksum
        known = None if on_meta() else known_statistics(stored, config.statistics, made.channels)
        if known:
            self.normalise_by(*known)

    def maps_of(self, frames: FrameTensor) -> ClipMaps:
        """Clips in [-1, 1] ``(B, F, 3, H, W)`` to latents ``(B, F / period, C, h, w)``, not normalised."""
        network: Any = self.network
        led = torch.cat([frames[:, :1], frames], dim=1).transpose(1, 2)
        count = self._clips(led.shape[2], led.shape[3:])
        maps = self._in_chunks(lambda clips: network.encode(clips).latent_dist.mode(), led, count)
        if maps.shape[2] != 1 + frames.shape[1] // self.period:
            raise UserError(
                f"{type(network).__name__} makes {maps.shape[2]} latent frames of {led.shape[2]} frames, where its config.json "
                f"promises {1 + frames.shape[1] // self.period}: such an autoencoder cannot be used as a target space"
            )
        return maps[:, :, 1:].transpose(1, 2)

    def frames_of(self, maps: ClipMaps) -> FrameTensor:
        """Latents ``(B, T, C, h, w)`` to frames in about [-1, 1].

        The autoencoder wants the latent of a lone frame in front, which is not known here: the first latent stands in for it
        and its frame is dropped. What stands before the clip is thus only approximated, and with it the first frames.
        """
        network: Any = self.network
        led = torch.cat([maps[:, :1], maps], dim=1).transpose(1, 2)
        stride = self.patch // self.fold
        clips = self._clips(self.period * led.shape[2], [stride * side for side in led.shape[3:]])
        return self._in_chunks(lambda latents: network.decode(latents).sample, led, clips)[:, :, 1:].transpose(1, 2)

    def _clips(self, frames: int, picture: Sequence[int]) -> int:
        """How many clips of so many frames of ``picture`` (height, width) are computed at once."""
        return max(1, self.at_once(*picture) // frames)
