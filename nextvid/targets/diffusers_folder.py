"""An autoencoder of ``diffusers`` from its folder: built by ``config.json``, and filled with all of its weights and no others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextvid.errors import UserError
from nextvid.files import checksum
from nextvid.targets.space import digest_of, on_meta
from nextvid.targets.vae import read_statistics
from nextvid.weights import fit_of, read_tensors

USUAL_NAME = "diffusion_pytorch_model.safetensors"
SHOWN = 5
ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What attention's projections are called in files that diffusers wrote before version 0.17."""


@dataclass(frozen=True)
class StoredAutoencoder:
    """``settings``: what ``config.json`` states. ``weights``: the safetensors file, or its shards."""

    folder: Path
    settings: dict[str, Any]
    weights: list[Path]

    @property
    def class_name(self) -> str:
        """The diffusers class."""
        return self.settings["_class_name"]

    @property
    def checksum(self) -> str:
        """SHA-256 over ``config.json`` and the weights; empty where they were not asked for."""
        return digest_of(*map(checksum, [self.folder / "config.json", *self.weights])) if self.weights else ""


def find_autoencoder(given: str, classes: Sequence[str]) -> StoredAutoencoder:
    """The autoencoder at ``given``: a pipeline's folder, its ``vae`` folder, or a safetensors file beside a ``config.json``.

    Under the default device ``meta`` its weights need not be there. Raises ``UserError`` where there is none, or one that is
    none of ``classes``.
    """
    if not given:
        raise UserError(
            "this target space needs weights: a folder that diffusers wrote (objective.target.weights=PATH)"
        )
    path = Path(given).expanduser()
    folder = path.parent if path.is_file() else path
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    settings = _read_settings(folder, path)
    found = settings.get("_class_name")
    if found not in classes:
        raise UserError(
            f"{folder / 'config.json'} is of the class {found or '(none named)'}, and this space reads {' and '.join(classes)}: "
            "give the folder of one, or choose another target space"
        )
    return StoredAutoencoder(folder, settings, [] if on_meta() else _weight_files(folder, path))


def build_network(stored: StoredAutoencoder) -> nn.Module:
    """The network with its weights; without them under the default device ``meta``.

    Raises ``UserError`` where ``config.json`` builds nothing, or the weights are not exactly those of what it builds.
    """
    with torch.device("cpu"):  # the module holds constants, which would stay on meta for the whole process
        diffusers = _import_diffusers()
    try:
        network: nn.Module = getattr(diffusers, stored.class_name).from_config(stored.settings)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise UserError(f"{stored.folder / 'config.json'} builds no {stored.class_name}: {error}") from error
    if on_meta():
        return network.to("meta")  # constants of the module were copied from real ones
    _fill(network, stored)
    return network


def known_statistics(stored: StoredAutoencoder, file: str | None, channels: int) -> tuple[Tensor, Tensor] | None:
    """Each channel's mean and deviation: those of ``file`` where one is given, else those that ``config.json`` states, if any.

    Raises ``UserError`` where the file holds none.
    """
    return read_statistics(Path(file).expanduser()) if file else stated_statistics(stored.settings, channels)


def stated_statistics(settings: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor] | None:
    """``latents_mean`` and ``latents_std`` of a ``config.json``, one number a channel.

    Cosmos states ``channels x times`` numbers, channel by channel, for each latent frame of a clip
    (``CosmosVideoToWorldPipeline.prepare_latents``). The first is of a lone frame; the others differ little, and are pooled
    here: the mean of the means, and the deviation of all of them together. Lists of another length say nothing.
    """
    mean, std = settings.get("latents_mean"), settings.get("latents_std")
    if not mean or not std or len(mean) != len(std) or len(mean) % channels:
        return None
    means, stds = (torch.tensor(numbers, dtype=torch.float32).view(channels, -1) for numbers in (mean, std))
    if means.shape[1] > 1:
        means, stds = means[:, 1:], stds[:, 1:]
    return means.mean(dim=1), (stds.square().mean(dim=1) + means.var(dim=1, unbiased=False)).sqrt()


def _import_diffusers() -> Any:
    try:
        import diffusers  # noqa: PLC0415 (6 seconds)
    except ImportError as error:
        raise UserError(f"this target space needs diffusers: pip install 'nextvid[targets]' ({error})") from error
    return diffusers


def _read_settings(folder: Path, given: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"there is no autoencoder at {given} (no config.json): give a folder that diffusers wrote, or a safetensors file "
            "that lies beside its config.json"
        )
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error


def _weight_files(folder: Path, given: Path) -> list[Path]:
    """The file that was given, the one of the usual name, the shards of its index, or the only one that there is."""
    if given.is_file() and given.name != "config.json":
        return [given]
    if (folder / USUAL_NAME).is_file():
        return [folder / USUAL_NAME]
    index = folder / f"{USUAL_NAME}.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    raise UserError(
        f"{folder} holds {len(found) or 'no'} safetensors files and none is called {USUAL_NAME}: "
        + ("give the file itself" if found else "the weights must be safetensors")
        + (f"; {pickles[0]} is a pickle, which can run any code and is not read" if pickles and not found else "")
    )


def _fill(network: nn.Module, stored: StoredAutoencoder) -> None:
    wanted = network.state_dict()
    saved: dict[str, Tensor] = {}
    for file in stored.weights:
        saved |= read_tensors(file)
    saved = _named_as_now(saved, wanted)
    misfits = fit_of({name: tensor.shape for name, tensor in saved.items()}, wanted).sentences()
    if misfits:
        shown = "; ".join(misfits[:SHOWN]) + (f"; and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else "")
        raise UserError(
            f"{', '.join(map(str, stored.weights))}: these are not the weights of the {stored.class_name} that "
            f"{stored.folder / 'config.json'} describes: {shown}. Give the weights and the config.json of the same autoencoder"
        )
    network.load_state_dict(saved)


def _named_as_now(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name if name in wanted else _attention_name(name): tensor for name, tensor in saved.items()}


def _attention_name(name: str) -> str:
    module, _, last = name.rpartition(".")
    parent, _, own = module.rpartition(".")
    return f"{parent}.{ATTENTION_NAMES[own]}.{last}" if ".attentions." in name and own in ATTENTION_NAMES else name
