"""A trained objective as one small file, with everything that it takes to go on from it.

Its tensors are ``ema.*`` and ``online.*`` (the encoders, as in a run's ``encoder.safetensors``) and the objective's other parts
under their own names (``predictor.*``, ``decoder.*``, ``target.*``), so that ``nextvid.load`` reads it like any encoder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from nextvid.config import Recipe, differences, load_recipe, parse_recipe, save_recipe
from nextvid.errors import UserError
from nextvid.files import replace_file
from nextvid.inference.released import find_released, is_released, released_names
from nextvid.objectives.protocol import Objective
from nextvid.training.checkpoint import damage, list_checkpoints, read_part
from nextvid.training.run import encoder_config, export_prefixes
from nextvid.weights import fill, read_metadata, read_tensors

Tensors = Mapping[str, torch.Tensor]


def write_release(objective: Objective, recipe: Recipe, step: int, file: Path) -> None:
    """Write all of ``objective`` to ``file`` in half precision: weights of a few thousandths lose nothing that is read."""
    tensors = {name: _halved(tensor) for name, tensor in released_tensors(objective).items()}
    metadata = {"config": json.dumps(encoder_config(objective, recipe, step)), "recipe": save_recipe(recipe)}
    replace_file(file, save(tensors, metadata=metadata))


def start_from(objective: Objective, recipe: Recipe, origin: str) -> None:
    """Fill ``objective``, built from ``recipe``, with the weights of a run's folder (its last checkpoint), a released file
    or a released name.

    Raises ``UserError`` where there is no such thing, or where it was trained to compute something else.
    """
    path = find_released(origin) if is_released(origin) else Path(origin)
    if path.is_dir():
        checkpoint = last_checkpoint(path)
        _check_same_model(recipe, load_recipe(path / "recipe.yaml"), origin)
        fill(objective, read_part(checkpoint), checkpoint)
    elif path.is_file():
        tensors = _renamed(objective, read_tensors(path), path)
        _check_same_model(recipe, _recipe_of(path), origin)
        fill(objective, tensors, path)
    else:
        raise UserError(
            f"init={origin}: there is no such run or file; released encoders: {', '.join(released_names()) or 'none'}"
        )


def last_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run's folder that is whole. Raises ``UserError`` where there is none."""
    checkpoints = [c for c in list_checkpoints(run / "checkpoints") if damage(c) is None]
    if not checkpoints:
        raise UserError(f"{run} holds no whole checkpoint to start from")
    return checkpoints[-1]


def _recipe_of(file: Path) -> Recipe:
    """The recipe that a released file carries."""
    metadata = read_metadata(file)
    if "recipe" not in metadata:
        raise UserError(
            f"{file} carries no recipe, so what its weights compute is unknown; write it with write_release"
        )
    return parse_recipe(yaml.safe_load(metadata["recipe"]), str(file))


def _check_same_model(recipe: Recipe, stored: Recipe, origin: str) -> None:
    """Weights may fit in shape and yet be those of another computation: other heads, another input, another target."""
    found = differences(_model_settings(stored), _model_settings(recipe))
    if found:
        raise UserError(
            f"init={origin} was trained as another model than this recipe's: {'; '.join(found[:6])} (there → here)"
        )


def _model_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that say what the weights compute, and not how they are trained."""
    whole = recipe.model_dump(mode="json")
    return {
        "encoder": whole["encoder"],
        "objective": {key: whole["objective"][key] for key in recipe.objective.model_keys},
    }


def load_objective(origin: str | Path) -> tuple[Objective, Recipe]:
    """A trained objective with all its parts, and its recipe, from a run's folder or a released name. Raises ``UserError``."""
    folder = find_released(origin).parent if is_released(origin) else Path(origin)
    stored = folder / "recipe.yaml"
    if not stored.is_file():
        raise UserError(f"{folder} holds no recipe.yaml; released encoders: {', '.join(released_names()) or 'none'}")
    recipe = load_recipe(stored)
    objective = recipe.objective.build(recipe.encoder)
    start_from(objective, recipe, str(origin))
    return objective.eval(), recipe


def released_tensors(objective: Objective) -> dict[str, torch.Tensor]:
    """The objective's state with its encoders under the names that they are exported by."""
    names = export_prefixes(objective)
    return {_replaced(key, names): tensor for key, tensor in objective.state_dict().items()}


def _renamed(objective: Objective, saved: Tensors, file: Path) -> dict[str, torch.Tensor]:
    """A release's tensors under the objective's own names."""
    back = {exported: own for own, exported in export_prefixes(objective).items()}
    if not any(key.split(".")[0] not in objective.exports() for key in saved):
        raise UserError(
            f"init={file}: it holds encoders only, and a run starts from all parts; give the run's folder instead"
        )
    return {_replaced(key, back): tensor for key, tensor in saved.items()}


def _replaced(key: str, prefixes: Mapping[str, str]) -> str:
    first, _, rest = key.partition(".")
    return f"{prefixes.get(first, first)}.{rest}"


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    value = tensor.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() else value
