"""Every target space by the name that a recipe gives it."""

from typing import Annotated, Any

import torch
from pydantic import Discriminator, Tag

from nextvid.targets.autoencoder_kl import AutoencoderKlConfig
from nextvid.targets.features import FeaturesConfig
from nextvid.targets.pixels import PixelsConfig
from nextvid.targets.space import Space, SpaceConfig
from nextvid.targets.vae import VaeConfig, VaVaeConfig
from nextvid.targets.video_vae import VideoVaeConfig

SPACES: dict[str, type[SpaceConfig]] = {
    "pixels": PixelsConfig,
    "vae": VaeConfig,
    "vavae": VaVaeConfig,
    "autoencoder_kl": AutoencoderKlConfig,
    "video_vae": VideoVaeConfig,
    "features": FeaturesConfig,
}
PLACES = ("weights", "statistics", "network")
"""Settings that say where a space's files lie: what is in them is known by the space's checksum."""


def _kind(value: Any) -> str | None:
    """The settings' class; without a name they are those of pixels."""
    name = value.get("name", "pixels") if isinstance(value, dict) else getattr(value, "name", None)
    return SPACES[name].__name__ if name in SPACES else None


AnyTarget = Annotated[
    Annotated[PixelsConfig, Tag("PixelsConfig")]
    | Annotated[VaeConfig, Tag("VaeConfig")]
    | Annotated[VaVaeConfig, Tag("VaVaeConfig")]
    | Annotated[AutoencoderKlConfig, Tag("AutoencoderKlConfig")]
    | Annotated[VideoVaeConfig, Tag("VideoVaeConfig")]
    | Annotated[FeaturesConfig, Tag("FeaturesConfig")],
    Discriminator(_kind),
]
"""What a recipe's ``objective.target`` may be."""


def build_space(config: SpaceConfig, patch: int | None, tubelet: int) -> Space:
    """The space of some settings; global random numbers are as before, whatever a library draws for weights it then replaces."""
    with torch.random.fork_rng(devices=[]):
        return config.build(patch, tubelet)
