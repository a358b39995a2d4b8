"""An autoencoder as one file: its weights by latent diffusion's names, its latents' statistics, and its shape."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from nextvid.errors import UserError, nearest
from nextvid.files import replacing
from nextvid.models.autoencoder import Autoencoder, AutoencoderConfig
from nextvid.weights import fill, read_metadata, read_tensors

FORMAT_VERSION = 1
VAE_FILE = "vae.safetensors"
MEAN, STD = "latents.mean", "latents.std"
RELEASES = Path(__file__).parents[1] / "released"
Statistic = Float[Tensor, " latent_channels"]


def write_vae(
    tensors: dict[str, Tensor],
    mean: Statistic,
    std: Statistic,
    config: AutoencoderConfig,
    facts: dict[str, Any],
    file: Path,
) -> None:
    """Write the autoencoder's ``tensors`` and the statistics of its latents to ``file``, whole or not at all.

    ``facts``: what else the file says of itself, such as recipe and step.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    held |= {MEAN: mean.float().cpu().contiguous(), STD: std.float().cpu().contiguous()}
    said = {"format_version": FORMAT_VERSION, "model": asdict(config), **facts}
    with replacing(file) as beside:
        save_file(held, beside, metadata={"vae": json.dumps(said)})


def find_vae(weights: str) -> Path:
    """The file of a run of ``nextvid vae train``, of a released autoencoder by name, or the file itself.

    Raises ``UserError`` where there is none.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / VAE_FILE
        if not path.is_file():
            raise UserError(
                f"{path.parent} holds no {VAE_FILE}; is it the folder of nextvid vae train, and has it saved?"
            )
    if path.is_file():
        return path
    known = released_vaes()
    if weights in known:
        return RELEASES / weights / VAE_FILE
    raise UserError(
        f"there is no autoencoder at {weights}{nearest(weights, known)}: give a run's folder of nextvid vae train, a file "
        f"that it wrote, or a released name ({', '.join(known) or 'none'})"
    )


def released_vaes() -> list[str]:
    """Autoencoders that come with the project, by name."""
    return sorted(path.parent.name for path in RELEASES.glob(f"*/{VAE_FILE}"))


def read_vae_config(file: Path) -> tuple[AutoencoderConfig, dict[str, Any]]:
    """The shape that a file carries, and what else it says. Raises ``UserError`` where it is no autoencoder of nextvid's."""
    metadata = read_metadata(file)
    if "vae" not in metadata:
        raise UserError(f"{file} is not an autoencoder written by nextvid vae train: it carries no configuration")
    try:
        facts = json.loads(metadata["vae"])
        model: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in facts["model"].items()}
        config = AutoencoderConfig(**model)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the configuration in {file} cannot be read ({error!r}); train or export it anew") from error
    if facts.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{file} has format version {facts.get('format_version')}, this nextvid reads {FORMAT_VERSION}")
    return config, facts


def load_vae(file: Path, network: Autoencoder) -> tuple[Statistic, Statistic]:
    """Fill ``network`` strictly; returns mean and deviation of the latents' channels. Raises ``UserError``."""
    saved = read_tensors(file)
    if MEAN not in saved or STD not in saved:
        raise UserError(f"{file} holds no statistics of its latents ({MEAN}, {STD}); train or export it anew")
    mean, std = saved.pop(MEAN).float(), saved.pop(STD).float()
    fill(network, saved, file)
    return mean, std


@torch.no_grad()
def latent_statistics(network: Autoencoder, images: Tensor, chunk: int = 64) -> tuple[Statistic, Statistic]:
    """Mean and deviation of every channel of the posterior's mode over pictures in [-1, 1] and places."""
    modes = torch.cat([network.encode(part).mean.float() for part in images.split(chunk)])
    return modes.mean(dim=(0, 2, 3)), modes.std(dim=(0, 2, 3))
