"""A trained objective as one small file, with everything that it takes to go on from it.

Its tensors are ``ema.*`` and ``online.*`` (the encoders, as in a run's ``encoder.safetensors``) and the objective's other parts
under their own names (``predictor.*``, ``decoder.*``, ``target.*``), so that ``nextvid.load`` reads it like any encoder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save_file

from nextvid.config import Recipe, differences, load_recipe, parse_recipe, save_recipe
from nextvid.errors import UserError
from nextvid.files import read_json, replacing
from nextvid.inference.load import config_of
from nextvid.inference.released import find_released, is_released, released_names
from nextvid.objectives.protocol import Objective
from nextvid.settings import InitConfig
from nextvid.targets.registry import PLACES
from nextvid.training.checkpoint import read_part, step_of
from nextvid.training.run import RELIANCES, encoder_config, export_prefixes
from nextvid.training.start import InitReport, find_whole, moments_fit, same_first_clips
from nextvid.weights import Fit, check_fit, fit_of, read_metadata, read_shapes, read_tensors

Tensors = Mapping[str, torch.Tensor]
Precision = Literal["float32", "float16", "bfloat16"]
PRECISIONS: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def write_release(
    objective: Objective, recipe: Recipe, step: int, file: Path, precision: Precision = "float16"
) -> None:
    """Write all of ``objective`` to ``file``; in half precision weights of a few thousandths lose nothing that is read."""
    write_tensors(released_tensors(objective, objective.state_dict()), objective, recipe, step, file, precision)


def write_tensors(
    tensors: Tensors, objective: Objective, recipe: Recipe, step: int, file: Path, precision: Precision
) -> None:
    """Write ``tensors``, named as released, with configuration and recipe; they are read back before the file is in place.

    Raises ``UserError`` where a number does not fit ``precision``, or what is read is not what was written.
    """
    made = {name: _rounded(name, tensor, precision) for name, tensor in tensors.items()}
    metadata = {"config": json.dumps(encoder_config(objective, recipe, step)), "recipe": save_recipe(recipe)}
    with replacing(file) as beside:
        save_file(made, beside, metadata=metadata)
        wrong = fit_of(read_shapes(beside), made).sentences()
        if wrong or read_metadata(beside) != metadata:
            raise UserError(
                f"{file} was written and cannot be read back ({(wrong or ['other metadata'])[0]}); try again"
            )


def released_tensors(objective: Objective, state: Tensors) -> dict[str, torch.Tensor]:
    """``state``, named as the objective names it, with its encoders under the names that they are exported by."""
    names = export_prefixes(objective)
    return {_replaced(key, names): tensor for key, tensor in state.items()}


def start_from(objective: Objective, recipe: Recipe, init: InitConfig) -> InitReport:
    """Fill ``objective``, built from ``recipe``, with the weights of a run's folder, a released file or a released name.

    Raises ``UserError`` where there is no such thing; ``strict``, where it was trained to compute something else or any
    tensor does not fit; otherwise, where nothing of the encoder fits.
    """
    origin = _origin_of(init)
    other = origin.other_settings(recipe) + origin.other_files(objective)
    if init.strict:
        origin.check_whole(objective)
        _check_same_model(other, init)
    saved = origin.tensors(objective)
    shapes, wanted = {name: tensor.shape for name, tensor in saved.items()}, objective.state_dict()
    weights = fit_of(shapes, wanted)
    if init.strict:
        check_fit(shapes, wanted, origin.source)
    else:
        _check_encoder(weights, init)
    objective.load_state_dict({**wanted, **{name: saved[name] for name in weights.fitting}})
    parameters = {name for name, _ in objective.named_parameters()}
    return InitReport(
        init=init,
        source=origin.source,
        step=origin.step,
        weights=weights,
        moments=moments_fit(objective, origin.source) if init.optimiser else None,
        settings=other,
        recipe_known=origin.recipe is not None,
        same_clips=origin.recipe is not None and same_first_clips(recipe, origin.recipe),
        measures=any(name not in parameters for name in (*weights.missing, *weights.misfitting)),
        damaged=origin.damaged,
    )


@dataclass(frozen=True)
class _Origin:
    """A checkpoint or a file of weights, before they are read; ``config`` is what a file says of its encoders."""

    source: Path
    step: int | None
    recipe: Recipe | None
    config: dict[str, Any] | None = None
    damaged: list[str] = field(default_factory=list)
    relies_on: dict[str, str] = field(default_factory=dict)

    def other_files(self, objective: Objective) -> list[str]:
        """What it was trained with and is another file here, as far as both are known, wherever either lies."""
        here = objective.relies_on()
        both = [key for key, digest in self.relies_on.items() if digest and here.get(key)]
        return [
            f"{key}: {self.relies_on[key][:12]}… → {here[key][:12]}…"
            for key in both
            if self.relies_on[key] != here[key]
        ]

    def other_settings(self, recipe: Recipe) -> list[str]:
        """In what it computes something else than ``recipe`` (there → here), as far as it says what it computes."""
        if self.recipe is not None:
            return differences(_model_settings(self.recipe), _model_settings(recipe))
        there = (self.config or {}).get("encoder")
        return [] if there is None else differences({"encoder": there}, {"encoder": asdict(recipe.encoder)})

    def check_whole(self, objective: Objective) -> None:
        """Raise ``UserError`` where a file does not hold all parts, or does not say what they compute."""
        if self.source.is_dir():
            return
        if all(key.split(".")[0] in objective.exports() for key in read_shapes(self.source)):
            raise UserError(
                f"init={self.source}: it holds encoders only, and a run starts from all parts; give the run's folder "
                f"instead, or start the other parts anew: init='{{origin: {self.source}, strict: false}}'"
            )
        if self.recipe is None:
            raise UserError(
                f"{self.source} carries no recipe, so what its weights compute is unknown; write it with nextvid export, or "
                f"take what fits: init='{{origin: {self.source}, strict: false}}'"
            )

    def tensors(self, objective: Objective) -> dict[str, torch.Tensor]:
        """All weights under the objective's own names."""
        if self.source.is_dir():
            return read_part(self.source)
        back = {exported: own for own, exported in export_prefixes(objective).items()}
        return {_replaced(key, back): tensor for key, tensor in read_tensors(self.source).items()}


def _origin_of(init: InitConfig) -> _Origin:
    path = find_released(init.origin) if is_released(init.origin) else Path(init.origin)
    if path.is_dir():
        found = find_whole(path, init.step)
        relies_on = read_json(path / RELIANCES).get("checksums", {})
        return _Origin(found.path, step_of(found.path), stored_recipe(path), damaged=found.damaged, relies_on=relies_on)
    if not path.is_file():
        raise UserError(
            f"init={init.origin}: there is no such run or file; released encoders: {', '.join(released_names()) or 'none'}"
        )
    if init.step is not None or init.optimiser:
        key = "optimiser" if init.optimiser else "step"
        raise UserError(
            f"init.{key} is for a run's folder, and {init.origin} is a file of weights, which holds one step and no "
            f"moments; leave out {key}, or give the run's folder"
        )
    metadata = read_metadata(path)
    config = config_of(metadata, path) if "config" in metadata else None
    said = config or {}
    return _Origin(path, said.get("step"), _carried_recipe(metadata, path), config, relies_on=said.get("relies_on", {}))


def stored_recipe(run: Path) -> Recipe:
    """The recipe of a run's folder. Raises ``UserError`` where it holds none."""
    stored = run / "recipe.yaml"
    if not stored.is_file():
        raise UserError(f"{run} holds no recipe.yaml; released encoders: {', '.join(released_names()) or 'none'}")
    return load_recipe(stored)


def _carried_recipe(metadata: Mapping[str, str], file: Path) -> Recipe | None:
    """The recipe that a released file carries."""
    if "recipe" not in metadata:
        return None
    try:
        raw = yaml.safe_load(metadata["recipe"])
    except yaml.YAMLError as error:
        raise UserError(f"the recipe in {file} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"the recipe in {file} is no mapping; write the file with nextvid export")
    return parse_recipe(raw, str(file))


def _check_same_model(found: list[str], init: InitConfig) -> None:
    """Weights may fit in shape and yet be those of another computation: other heads, another input, another target."""
    if found:
        raise UserError(
            f"init={init.origin} was trained as another model than this recipe's: {'; '.join(found[:6])} (there → here)"
        )


def _check_encoder(weights: Fit, init: InitConfig) -> None:
    if any(name.startswith("encoder.") for name in weights.fitting):
        return
    other = [text for text in weights.sentences() if text.startswith("encoder.")]
    raise UserError(
        f"init={init.origin}: nothing of it fits this recipe's encoder: {'; '.join(other[:3])}; use the encoder that it was "
        "trained with"
    )


def _model_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that say what the weights compute, and not how they are trained, nor where files lie."""
    whole = recipe.model_dump(mode="json")
    objective = {key: whole["objective"][key] for key in recipe.objective.model_keys}
    if "target" in objective:
        objective["target"] = {key: value for key, value in objective["target"].items() if key not in PLACES}
    return {"encoder": whole["encoder"], "objective": objective}


def load_objective(origin: str | Path) -> tuple[Objective, Recipe]:
    """A trained objective with all its parts, and its recipe, from a run's folder, a released file or a released name.

    Raises ``UserError``.
    """
    recipe = _recipe_at(origin)
    objective = recipe.objective.build(recipe.encoder)
    start_from(objective, recipe, InitConfig(origin=str(origin)))
    return objective.eval(), recipe


def _recipe_at(origin: str | Path) -> Recipe:
    path = find_released(origin) if is_released(origin) else Path(origin)
    carried = _carried_recipe(read_metadata(path), path) if path.is_file() else None
    return carried or stored_recipe(path.parent if path.is_file() else path)


def _replaced(key: str, prefixes: Mapping[str, str]) -> str:
    first, dot, rest = key.partition(".")
    return f"{prefixes.get(first, first)}{dot}{rest}"


def _rounded(name: str, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
    value = tensor.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    rounded = value.to(PRECISIONS[precision])
    if bool((value.isfinite() & ~rounded.isfinite()).any()):
        raise UserError(f"{name} has numbers that are too large for {precision}; use bfloat16 or float32")
    return rounded
