"""Curves of healthy runs: for each column, the band in which a run of the same recipe should lie.

``nextvid/doctor/healthy/<recipe>.json`` holds those that nextvid comes with; ``scripts/healthy_curves.py`` makes them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from nextvid.config import Recipe, differences, load_recipe, parse_recipe
from nextvid.doctor.check import first_line, some
from nextvid.doctor.curves import Series, loss_terms, series
from nextvid.doctor.rows import HEALTH, SKILL, Row, read_log
from nextvid.errors import UserError
from nextvid.files import read_json
from nextvid.settings import SourceConfig

Steps = Float[np.ndarray, " steps"]

FORMAT_VERSION = 1
FOLDER = Path(__file__).parent / "healthy"
SMOOTHED_ROWS = 9
"""Curves are running medians over the steps of so many rows."""
OF_RANGE = 1.0
"""A band is wider than its runs on either side by this share of their range at that step, or of its median over all steps
where that is more,"""
OF_VALUE, OF_VALUE_ALONE = 0.1, 0.4
"""and at least by this share of the value there (or of its median): a small one where several runs show how much they
differ, a large one where there is one run alone."""
FEWEST_RUNS = 2
"""One run does not show by how much healthy runs differ."""
DIGITS = 5
"""Significant digits in a file."""
DERIVED = ("alignment_over_flow",)
"""Columns that follow from others that are compared."""
OPTIMISER = ("betas", "weight_decay", "clip_norm")
"""The settings under ``training`` that decide how curves run."""


@dataclass(frozen=True)
class Band:
    """The lowest and the highest healthy value of a column at ``steps``."""

    steps: Steps
    low: Steps
    high: Steps


@dataclass(frozen=True)
class Healthy:
    """Bands by column. ``name`` says whose they are; ``spacing`` is the number of steps from row to row there."""

    name: str
    recipe: Recipe
    spacing: float
    bands: dict[str, Band]


@dataclass(frozen=True)
class _Finished:
    path: Path
    recipe: Recipe
    rows: list[Row]


def shipped(name: str) -> Healthy | None:
    """The healthy curves that nextvid has of the recipe ``name``."""
    file = next((file for file in FOLDER.glob("*.json") if file.stem == name), None)
    return read_healthy(file) if file else None


def healthy_of(origins: Sequence[Path]) -> Healthy:
    """Of one or more runs' folders, or of a file that ``scripts/healthy_curves.py`` has made. Raises ``UserError``."""
    if len(origins) == 1 and origins[0].is_file():
        return read_healthy(origins[0])
    return _bands_of([_read_run(path) for path in origins])


def read_healthy(file: Path) -> Healthy:
    """The healthy curves of a file. Raises ``UserError`` where it is something else."""
    try:
        stored = json.loads(file.read_text())
        version = stored["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(f"{file} has format version {version}; this nextvid reads version {FORMAT_VERSION}")
        steps = np.array(stored["steps"], dtype=float)
        bands = {name: _stored_band(steps, band) for name, band in stored["columns"].items()}
        recipe = parse_recipe(stored["recipe"], str(file))
        name = f"{len(stored['seeds'])} runs of {recipe.name} (seeds {some(stored['seeds'])})"
        return Healthy(name, recipe, float(stored["spacing"]), bands)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} holds no healthy curves ({first_line(error)}); make it with scripts/healthy_curves.py"
        ) from error


def _stored_band(steps: Series, stored: dict[str, list[float | None]]) -> Band:
    low, high = (np.array(stored[end], dtype=float) for end in ("low", "high"))
    there = np.isfinite(low)
    return Band(steps[there], low[there], high[there])


def healthy_file(runs: Sequence[Path]) -> dict[str, Any]:
    """What a file of healthy curves holds: made of finished runs of one recipe that differ in their seeds only.

    Raises ``UserError`` where they do not.
    """
    if len(runs) < FEWEST_RUNS:
        raise UserError(f"healthy curves need {FEWEST_RUNS} runs or more of other seeds; {len(runs)} given")
    found = [_read_run(path) for path in runs]
    _check_alike(found)
    healthy = _bands_of(found)
    steps = sorted({float(step) for band in healthy.bands.values() for step in band.steps})
    first = found[0].recipe
    return {
        "format_version": FORMAT_VERSION,
        "name": first.name,
        "seeds": [run.recipe.seed for run in found],
        "versions": [read_json(run.path / "environment.json").get("packages", {}) for run in found],
        "margin": {"of_range": OF_RANGE, "of_value": OF_VALUE, "smoothed_rows": SMOOTHED_ROWS},
        "spacing": healthy.spacing,
        "recipe": first.model_dump(mode="json"),
        "steps": [int(step) for step in steps],
        "columns": {name: _to_store(steps, band) for name, band in healthy.bands.items()},
    }


def _to_store(steps: list[float], band: Band) -> dict[str, list[float | None]]:
    at = {step: (low, high) for step, low, high in zip(band.steps, band.low, band.high, strict=True)}
    ends = [at.get(step, (None, None)) for step in steps]
    return {"low": [_rounded(low) for low, _ in ends], "high": [_rounded(high) for _, high in ends]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _check_alike(runs: list[_Finished]) -> None:
    first, settings = runs[0], settings_of(runs[0].recipe)
    for run in runs:
        last = run.rows[-1]["step"]
        if last != run.recipe.steps:
            raise UserError(f"{run.path} is not finished: its last row is of step {last} of {run.recipe.steps}")
        if run.recipe.name != first.recipe.name:
            raise UserError(
                f"{run.path} is of recipe {run.recipe.name}, {first.path} of {first.recipe.name}; give runs of one recipe"
            )
        other = differences(settings, settings_of(run.recipe))
        if other:
            raise UserError(
                f"{run.path} differs from {first.path} in {some(other)}; give runs that differ in their seeds only"
            )
    seeds = [run.recipe.seed for run in runs]
    twice = [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]
    if twice:
        raise UserError(f"more than one run has the seed {some(twice)}; give runs of different seeds")


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide how curves run: model, method, stages, optimiser, and what kind of footage.

    Not the seed, where footage lies, how it is read, and what only makes a run faster.
    """
    whole = recipe.model_dump(mode="json")
    stages = [
        {
            **{key: value for key, value in stage.items() if key != "micro_batch"},
            "sources": [_kind(source) for source in config.sources] if config.sources else None,
        }
        for stage, config in zip(whole["stages"], recipe.stages, strict=True)
    ]
    return {
        "encoder": whole["encoder"],
        "objective": whole["objective"],
        "init": whole["init"],
        "data": {
            "sources": [_kind(source) for source in recipe.data.sources],
            "augmentation": whole["data"]["augmentation"],
        },
        "stages": stages,
        "training": {key: whole["training"][key] for key in OPTIMISER},
    }


def _kind(source: SourceConfig) -> dict[str, Any]:
    """A source, wherever it lies."""
    return {**source.model_dump(mode="json"), "path": "some files" if source.path is not None else None}


def _read_run(path: Path) -> _Finished:
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"{path} is no run's folder (there is no recipe.yaml in it); give one that --out named")
    rows = read_log(path).rows
    if len(rows) < 2:
        raise UserError(f"{path} has {len(rows)} rows in metrics.jsonl; a curve needs two or more")
    return _Finished(path, load_recipe(path / "recipe.yaml"), rows)


def _bands_of(runs: list[_Finished]) -> Healthy:
    spacing = spacing_of(runs[0].rows)
    bands = {}
    for column in columns_of(row for run in runs for row in run.rows):
        curves = [smoothed(*series(run.rows, column), SMOOTHED_ROWS * spacing) for run in runs]
        steps, values = _common([(series(run.rows, column)[0], curve) for run, curve in zip(runs, curves, strict=True)])
        if len(steps):
            bands[column] = _band(steps, values)
    name = f"{', '.join(str(run.path) for run in runs)} ({runs[0].recipe.name})"
    return Healthy(name, runs[0].recipe, spacing, bands)


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns that are compared: losses, their skills, and figures of health, but for those that follow from others."""
    every = list(rows)
    known = dict.fromkeys(name for row in every for name in row)
    health = [name for name in ("grad_norm", *HEALTH) if name in known and name not in DERIVED]
    skills = [name for name in known if name.endswith(SKILL)]
    return [*(["loss"] if "loss" in known else []), *loss_terms(every), *skills, *health]


def spacing_of(rows: list[Row]) -> float:
    """The steps from one row to the next, as a rule."""
    return float(np.median(np.diff([row["step"] for row in rows])))


def smoothed(steps: Series, values: Series, width: float) -> Series:
    """The running median over ``width`` steps: a single jump does not move it."""
    first = np.searchsorted(steps, steps - width / 2, side="left")
    last = np.searchsorted(steps, steps + width / 2, side="right")
    return np.array([np.median(values[a:b]) for a, b in zip(first, last, strict=True)])


def _common(curves: list[tuple[Series, Series]]) -> tuple[Steps, Float[np.ndarray, "runs steps"]]:
    """All curves at the steps that each of them has."""
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    return steps, np.stack([values[np.isin(own, steps)] for own, values in curves])


def _band(steps: Steps, values: Float[np.ndarray, "runs steps"]) -> Band:
    low, high = values.min(axis=0), values.max(axis=0)
    apart, size = high - low, np.abs(values.mean(axis=0))
    least = OF_VALUE if len(values) > 1 else OF_VALUE_ALONE
    margin = np.maximum(OF_RANGE * np.maximum(apart, np.median(apart)), least * np.maximum(size, np.median(size)))
    return Band(steps, low - margin, high + margin)
