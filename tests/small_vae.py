"""An autoencoder of random weights, small enough for tests."""

from pathlib import Path

import torch

from nextvid.models.autoencoder import Autoencoder, AutoencoderConfig
from nextvid.targets.vae_file import latent_statistics, write_vae

CONFIG = AutoencoderConfig(width=8, multipliers=(1, 2, 2), blocks=1, attention=(2,), latent_channels=4, groups=4)
"""A latent every 4 pixels."""


def small_vae(path: Path, seed: int = 0, config: AutoencoderConfig = CONFIG) -> Path:
    """A file of ``nextvid vae train``'s form, its statistics measured on noise."""
    torch.manual_seed(seed)
    network = Autoencoder(config).eval()
    mean, std = latent_statistics(network, torch.rand(8, 3, 32, 32) * 2 - 1)
    write_vae(network.state_dict(), mean, std, config, {}, path)
    return path
