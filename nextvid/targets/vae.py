"""Latents of an image autoencoder of latent diffusion's layout: one of ``nextvid vae train``, or VA-VAE's public weights.

VA-VAE f16d32 (arXiv 2501.01423; METHOD, "VA-VAE") is the space that NExT-Vid reports best.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nextvid.errors import UserError
from nextvid.files import checksum
from nextvid.models.autoencoder import Autoencoder, AutoencoderConfig
from nextvid.targets.space import Images, Maps, NetworkSpace, SpaceConfig, on_meta
from nextvid.targets.vae_file import find_vae, load_vae, read_vae_config
from nextvid.weights import PICKLE_SUFFIXES, Fit, fit_of, read_tensors

DROPPED = ("loss.", "foundation_model.", "linear_proj.")
"""What the public checkpoint holds beside the autoencoder: its losses, DINOv2, and the map of latents to it."""
WRAPPER = "state_dict"


@dataclass(frozen=True)
class VaeConfig(SpaceConfig):
    """An autoencoder of ``nextvid vae train``: a run's folder, its ``vae.safetensors``, or a released one by name."""

    name: Literal["vae"] = "vae"
    weights: str = "vae-film"

    def build(self, patch: int | None, tubelet: int) -> "VaeSpace":
        """Read from its file, which carries shape and statistics."""
        file = find_vae(self.weights)
        config, _ = read_vae_config(file)
        network = Autoencoder(config)
        statistics = None if on_meta() else load_vae(file, network)
        space = VaeSpace(network, patch, tubelet, f"objective.target (vae, {self.weights})")
        if statistics is not None:
            space.normalise_by(*statistics)
        space.checksum = checksum(file)
        return space


@dataclass(frozen=True)
class VaVaeConfig(SpaceConfig):
    """VA-VAE f16d32 from its public files: ``weights`` (``vavae-imagenet256-f16d32-dinov2.pt``, or the same as safetensors) and
    ``statistics`` (``latents_stats.pt``; un-normalised latents are the commonest mistake, so they are asked for).
    """

    name: Literal["vavae"] = "vavae"
    weights: str = ""
    statistics: str = ""

    def build(self, patch: int | None, tubelet: int) -> "VaeSpace":
        """Read from its files, strictly."""
        network, where = Autoencoder(AutoencoderConfig()), "objective.target (vavae)"
        if on_meta():
            return VaeSpace(network, patch, tubelet, where)
        weights = _file(self.weights, "weights", "vavae-imagenet256-f16d32-dinov2.pt")
        statistics = _file(self.statistics, "statistics", "latents_stats.pt")
        fill_vavae(network, read_foreign(weights), weights)
        space = VaeSpace(network, patch, tubelet, where)
        space.normalise_by(*read_statistics(statistics))
        space.checksum = checksum(weights)
        return space


class VaeSpace(NetworkSpace):
    """The mode of the posterior of single frames."""

    def __init__(self, network: Autoencoder, patch: int | None, tubelet: int, where: str) -> None:
        self.shape = network.config
        super().__init__(network, self.shape.latent_channels, self.shape.stride, patch, tubelet, where)

    def to_maps(self, images: Images) -> Maps:
        """The posterior's mean."""
        return self._network.encode(images).mean

    def to_images(self, maps: Maps) -> Images:
        """The decoder's pictures."""
        return self._network.decode(maps)

    @property
    def _network(self) -> Autoencoder:
        assert isinstance(self.network, Autoencoder)
        return self.network


def fill_vavae(network: Autoencoder, saved: Mapping[str, Tensor], file: Path) -> None:
    """Give ``network`` exactly the autoencoder's tensors of a public checkpoint.

    Raises ``UserError`` with the list of what is missing, foreign, or of another shape.
    """
    own = {name: tensor for name, tensor in saved.items() if not name.startswith(DROPPED)}
    wanted = network.state_dict()
    fit = fit_of({name: tensor.shape for name, tensor in own.items()}, wanted)
    if not fit.complete:
        raise UserError(f"{file} is not VA-VAE f16d32: {_listed(fit)}")
    network.load_state_dict(own)


def read_foreign(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a checkpoint of torch's, alone or under ``state_dict``; no code in it is run.

    Raises ``UserError`` where it holds anything else.
    """
    if file.suffix.lower() not in PICKLE_SUFFIXES:
        return read_tensors(file)
    found = _unpickled(file)
    if isinstance(found, Mapping) and isinstance(found.get(WRAPPER), Mapping):
        found = found[WRAPPER]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} is not a checkpoint of weights: it holds something else than named tensors")
    return {str(name): tensor for name, tensor in found.items()}


def read_statistics(file: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel from a file of the tensors ``mean`` and ``std``. Raises ``UserError`` where it is none."""
    found = read_foreign(file)
    if "mean" not in found or "std" not in found:
        raise UserError(
            f"{file} holds no statistics: it should have the tensors mean and std, and has {', '.join(found)}"
        )
    return found["mean"].float(), found["std"].float()


def _unpickled(file: Path) -> Any:
    """With ``weights_only``, which builds tensors and containers and refuses everything else."""
    import pickle  # noqa: PLC0415

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read as a checkpoint of weights ({first})") from error


def _file(path: str, setting: str, usual: str) -> Path:
    if not path:
        raise UserError(
            f"vavae needs {setting}: the file {usual} of hustvl/vavae-imagenet256-f16d32-dinov2 (objective.target."
            f"{setting}=PATH, or {setting}= in nextvid.targets.load)"
        )
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {path} (objective.target.{setting}); it is usually called {usual}")
    return file


def _listed(fit: Fit) -> str:
    """All of what does not fit: a list of a few hundred names is what one needs to see what file it is."""
    parts = {
        "missing": fit.missing,
        "foreign": fit.unknown,
        "of another shape": [f"{name} {there}, not {here}" for name, (there, here) in fit.misfitting.items()],
    }
    return "; ".join(f"{len(names)} {kind} ({', '.join(names)})" for kind, names in parts.items() if names)
