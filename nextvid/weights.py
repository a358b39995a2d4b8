"""Weights from a file into a model: everything, or an error that names what does not fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from nextvid.errors import UserError


def load_weights(model: torch.nn.Module, file: Path, prefix: str = "") -> None:
    """Load the tensors of ``file`` whose names begin with ``prefix``: all that the model has, and in its shapes.

    Raises ``UserError`` naming what does not fit.
    """
    saved = read_tensors(file)
    fill(model, {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}, file)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises ``UserError`` where it cannot be read as one."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from error


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself. Raises ``UserError`` where it cannot be read as one."""
    try:
        with safe_open(str(file), framework="pt") as handle:
            return handle.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from error


def fill(model: torch.nn.Module, saved: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Give ``model`` exactly the tensors ``saved``, which came from ``origin``, in the model's own precision.

    Raises ``UserError`` naming what does not fit.
    """
    check_fit({key: value.shape for key, value in saved.items()}, model.state_dict(), origin)
    model.load_state_dict(saved)


def check_fit(saved: Mapping[str, torch.Size], wanted: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Raise ``UserError`` where the names and shapes ``saved`` in ``origin`` are not those ``wanted``, naming some."""
    found = misfits(saved, wanted)
    if found:
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise UserError(
            f"{origin} holds another architecture than asked for: {shown}. Use the recipe that it was made with"
        )


def misfits(saved: Mapping[str, torch.Size], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """What is missing, unknown or of another shape among the names and shapes ``saved``."""
    return [
        *(f"{key} is missing" for key in wanted if key not in saved),
        *(f"{key} is unknown" for key in saved if key not in wanted),
        *(
            f"{key} is {tuple(saved[key])}, not {tuple(wanted[key].shape)}"
            for key in wanted
            if key in saved and saved[key] != wanted[key].shape
        ),
    ]
