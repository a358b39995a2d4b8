"""The latents of any image autoencoder of latent diffusion (Stable Diffusion's, SDXL's, FLUX's, SD 3's, …) as a target space.

The field's class for them is diffusers' ``AutoencoderKL`` (Rombach et al., arXiv 2112.10752).
"""

from dataclasses import dataclass
from typing import Any, Literal

from nextvid.targets.diffusers_folder import build_network, find_autoencoder, known_statistics
from nextvid.targets.space import Images, Maps, NetworkSpace, SpaceConfig, on_meta

CLASSES = ("AutoencoderKL",)


@dataclass(frozen=True)
class AutoencoderKlConfig(SpaceConfig):
    """``weights``: a diffusers pipeline's folder, its ``vae`` folder, or a safetensors file beside a ``config.json``.

    ``statistics``: a file with each channel's ``mean`` and ``std``. Without it the latents are normalised by what
    ``config.json`` states as ``latents_mean`` and ``latents_std``, or else by what is measured on clips.
    """

    name: Literal["autoencoder_kl"] = "autoencoder_kl"
    weights: str = ""
    statistics: str | None = None

    def build(self, patch: int | None, tubelet: int) -> "AutoencoderKl":
        """The space on a grid of ``patch`` pixels (None: a token a latent); see :meth:`SpaceConfig.build`."""
        return AutoencoderKl(self, patch, tubelet)


class AutoencoderKl(NetworkSpace):
    """Latents are the posterior's mode, every frame by itself."""

    def __init__(self, config: AutoencoderKlConfig, patch: int | None, tubelet: int) -> None:
        """Raises ``UserError`` where the files are missing or do not fit, or the grid is coarser than the patch grid."""
        stored = find_autoencoder(config.weights, CLASSES)
        network: Any = build_network(stored)
        channels = network.config.latent_channels
        super().__init__(
            network,
            channels=channels,
            stride=2 ** (len(network.config.block_out_channels) - 1),
            patch=patch,
            tubelet=tubelet,
            where=f"objective.target.weights={config.weights}",
        )
        self.checksum = stored.checksum
        known = None if on_meta() else known_statistics(stored, config.statistics, channels)
        if known:
            self.normalise_by(*known)

    def to_maps(self, images: Images) -> Maps:
        """The posterior's mode ``(n, latent_channels, h, w)``."""
        network: Any = self.network
        return network.encode(images).latent_dist.mode()

    def to_images(self, maps: Maps) -> Images:
        """Pictures in about [-1, 1]."""
        network: Any = self.network
        return network.decode(maps).sample
