"""Weights from a file into a model: everything, or an error that names what does not fit."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nextvid.errors import UserError


def load_weights(model: torch.nn.Module, file: Path, prefix: str = "") -> None:
    """Load the tensors of ``file`` whose names begin with ``prefix``: all that the model has, and in its shapes.

    Raises ``UserError`` naming what does not fit.
    """
    try:
        saved = {k.removeprefix(prefix): v for k, v in load_file(file).items() if k.startswith(prefix)}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from error
    wanted = model.state_dict()
    misfits: list[str] = [f"{key} is missing" for key in wanted if key not in saved]
    misfits += [f"{key} is unknown" for key in saved if key not in wanted]
    misfits += [
        f"{key} is {tuple(saved[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in saved and saved[key].shape != wanted[key].shape
    ]
    if misfits:
        shown = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        raise UserError(
            f"{file} holds another architecture than asked for: {shown}. Use the recipe that it was made with"
        )
    model.load_state_dict(saved)
