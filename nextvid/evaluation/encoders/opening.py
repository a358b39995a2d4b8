"""Whatever names a frozen encoder, opened."""

import re
from pathlib import Path
from typing import Literal

from nextvid.errors import UserError
from nextvid.evaluation.encoders.folder import open_folder
from nextvid.evaluation.encoders.frozen import FrozenEncoder
from nextvid.evaluation.encoders.function import FunctionEncoder
from nextvid.evaluation.encoders.own import OwnEncoder
from nextvid.evaluation.encoders.preprocessing import read_settings
from nextvid.inference.released import is_released, released_names

FOLDER = "hf:"
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def open_encoder(where: str, weights: Literal["ema", "online"] | None = None) -> FrozenEncoder:
    """The frozen encoder that ``where`` names, on the CPU, in evaluation mode.

    A run's folder, a ``.safetensors`` file that nextvid wrote or a released name (``nextvid-tiny``); ``hf:FOLDER``, a model of
    transformers that ``save_pretrained`` wrote; or ``module:function``, anyone's function (the contract is that of
    :class:`~nextvid.evaluation.encoders.function.FunctionEncoder`).

    An encoder takes the squares that it is given: which square of a picture that is, and how many of them, belongs to the
    protocol of an evaluation. ``weights`` chooses one of the two encoders that nextvid's own files hold. Raises ``UserError``
    where there is no such encoder, or it cannot be read.
    """
    if where.startswith(FOLDER):
        _check_no_choice(where, weights)
        return open_folder(Path(where.removeprefix(FOLDER)).expanduser()).eval()
    if FUNCTION.fullmatch(where) and not Path(where).exists():
        _check_no_choice(where, weights)
        return FunctionEncoder(where).eval()
    _check_ours(where)
    return OwnEncoder(where, weights).eval()


def _check_no_choice(where: str, weights: str | None) -> None:
    if weights is not None:
        raise UserError(
            f"{where} has one set of weights, and no '{weights}' beside it: leave the choice of weights out, which is for "
            "encoders of nextvid's own"
        )


def _check_ours(where: str) -> None:
    """Say what there is instead, where ``where`` is nothing that :func:`nextvid.load` reads."""
    path = Path(where)
    if not path.exists() and not is_released(where):
        raise UserError(
            f"there is no encoder '{where}': give a run's folder, a .safetensors file that nextvid wrote, a released encoder by "
            f"name ({', '.join(released_names()) or 'there is none'}), {FOLDER}FOLDER for a model of transformers, or "
            "module:function"
        )
    if path.is_dir() and not (path / "encoder.safetensors").exists() and _is_transformers(path):
        raise UserError(f"{where} holds a model of transformers and no run: give it as {FOLDER}{where}")


def _is_transformers(folder: Path) -> bool:
    try:
        return "model_type" in read_settings(folder / "config.json")
    except UserError:
        return False
