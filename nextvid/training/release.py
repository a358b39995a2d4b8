"""A trained objective as one small file, with everything that it takes to go on from it.

Its tensors are ``ema.*`` and ``online.*`` (the encoders, as in a run's ``encoder.safetensors``) and the objective's other parts
under their own names (``predictor.*``, ``decoder.*``, ``target.*``), so that ``nextvid.load`` reads it like any encoder.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from nextvid.config import Recipe, load_recipe
from nextvid.errors import UserError
from nextvid.files import replace_file
from nextvid.inference.released import find_released, is_released, released_names
from nextvid.objectives.nextvid import NextVid
from nextvid.objectives.protocol import Objective
from nextvid.training.checkpoint import MODEL, damage, list_checkpoints
from nextvid.training.run import encoder_config
from nextvid.weights import fill, read_tensors

Tensors = Mapping[str, torch.Tensor]


def write_release(objective: Objective, recipe: Recipe, step: int, file: Path) -> None:
    """Write all of ``objective`` to ``file`` in half precision: weights of a few thousandths lose nothing that is read."""
    tensors = {name: _halved(tensor) for name, tensor in released_tensors(objective).items()}
    metadata = {"config": json.dumps(encoder_config(objective, recipe, step))}
    replace_file(file, save(tensors, metadata=metadata))


def start_from(objective: Objective, origin: str) -> None:
    """Fill ``objective`` with the weights of a run's folder (its last checkpoint), a released file or a released name.

    Raises ``UserError`` where there is no such thing, or where it holds another architecture.
    """
    path = find_released(origin) if is_released(origin) else Path(origin)
    if path.is_dir():
        checkpoints = [c for c in list_checkpoints(path / "checkpoints") if damage(c) is None]
        if not checkpoints:
            raise UserError(f"init={origin}: that folder holds no whole checkpoint to start from")
        file = checkpoints[-1] / MODEL
        fill(objective, read_tensors(file), file)
    elif path.is_file():
        fill(objective, _renamed(objective, read_tensors(path), path), path)
    else:
        raise UserError(
            f"init={origin}: there is no such run or file; released encoders: {', '.join(released_names()) or 'none'}"
        )


def load_objective(origin: str | Path) -> tuple[NextVid, Recipe]:
    """A trained objective with all its parts, and its recipe, from a run's folder or a released name. Raises ``UserError``."""
    folder = find_released(origin).parent if is_released(origin) else Path(origin)
    stored = folder / "recipe.yaml"
    if not stored.is_file():
        raise UserError(f"{folder} holds no recipe.yaml; released encoders: {', '.join(released_names()) or 'none'}")
    recipe = load_recipe(stored)
    objective = NextVid(recipe.encoder, recipe.objective)
    start_from(objective, str(origin))
    return objective.eval(), recipe


def released_tensors(objective: Objective) -> dict[str, torch.Tensor]:
    """The objective's state with its encoders under the names that they are exported by."""
    names = _export_prefixes(objective)
    return {_replaced(key, names): tensor for key, tensor in objective.state_dict().items()}


def _renamed(objective: Objective, saved: Tensors, file: Path) -> dict[str, torch.Tensor]:
    """A release's tensors under the objective's own names."""
    back = {exported: own for own, exported in _export_prefixes(objective).items()}
    if not any(key.split(".")[0] not in objective.exports() for key in saved):
        raise UserError(
            f"init={file}: it holds encoders only, and a run starts from all parts; give the run's folder instead"
        )
    return {_replaced(key, back): tensor for key, tensor in saved.items()}


def _export_prefixes(objective: Objective) -> dict[str, str]:
    """The objective's own name of each exported encoder, to the name that it is exported by."""
    own = {id(module): name for name, module in objective.named_modules()}
    return {own[id(encoder)]: exported for exported, encoder in objective.exports().items()}


def _replaced(key: str, prefixes: Mapping[str, str]) -> str:
    first, _, rest = key.partition(".")
    return f"{prefixes.get(first, first)}.{rest}"


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    value = tensor.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() else value
