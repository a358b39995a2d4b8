"""One run as a comparison sees it: its recipe, its rows, what it has cost so far, and the probes beside it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from nextvid.config import Recipe, load_recipe
from nextvid.errors import UserError
from nextvid.files import read_json
from nextvid.inference.released import default_weights, find_released, is_released
from nextvid.report.page import read_rows
from nextvid.training.compute import cumulative_flops


@dataclass
class Subject:
    """``flops[s]``: operations of all steps up to ``s + 1``. ``probes``: figures by ``benchmark/level/task``."""

    name: str
    origin: str
    folder: Path
    recipe: Recipe
    rows: list[dict[str, Any]]
    flops: Float[np.ndarray, " steps"]
    pretrain: dict[str, Any]
    environment: dict[str, Any]
    exported: dict[str, Any]
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Steps done, as far as the folder tells: its figures, its last row, its exported encoder."""
        logged = [int(row["step"]) for row in self.rows[-1:]]
        return max([int(self.pretrain.get("steps", 0)), int(self.exported.get("step", 0)), *logged])

    @property
    def clips(self) -> int:
        """Clips of these steps."""
        batches = np.repeat(
            [stage.batch for stage in self.recipe.stages], [stage.steps for stage in self.recipe.stages]
        )
        return int(batches[: self.step].sum())

    def figures(self) -> dict[str, Any]:
        """What was spent, on what machine, and the last row's losses and health."""
        last = self.rows[-1] if self.rows else {}
        at_end = self.pretrain.get("steps") == self.step
        timed, seconds = (
            (self.clips, self.pretrain.get("seconds"))
            if at_end
            else (last.get("clips"), last.get("time", {}).get("seconds"))
        )
        return {
            "name": self.name,
            "folder": str(self.folder),
            "objective": self.recipe.objective.name,
            "init": self.recipe.init.origin if self.recipe.init else None,
            "parameters": _parameters(self.recipe),
            "steps": self.step,
            "steps_of_recipe": self.recipe.steps,
            "clips": self.clips,
            "flops": float(self.flops[self.step - 1]) if self.step else 0.0,
            "seconds": seconds,
            "clips_per_second": timed / seconds if timed and seconds else None,
            "machine": _machine(self.environment),
            "last_row": {key: _finite(last[key]) for key in last if key not in ("time", "stage", "step", "clips")},
            "probes": self.probes,
        }

    def row_flops(self) -> Float[np.ndarray, " rows"]:
        """Operations spent at every row."""
        return self.flops[[int(row["step"]) - 1 for row in self.rows]]


def open_subjects(origins: list[str]) -> list[Subject]:
    """The runs' folders or released names, each under a name of its own.

    Raises ``UserError`` where there are fewer than two, one is no run, or none of its steps is logged.
    """
    if len(origins) < 2:
        raise UserError("nextvid compare takes two runs or more: nextvid compare runs/a runs/b")
    folders = [find_released(origin).parent if is_released(origin) else Path(origin) for origin in origins]
    return [_open(name, origin, folder) for name, origin, folder in zip(_names(folders), origins, folders, strict=True)]


def _open(name: str, origin: str, folder: Path) -> Subject:
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is no run: it holds no recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    metrics, rows = read_json(folder / "metrics.json"), read_rows(folder)
    subject = Subject(
        name, origin, folder, recipe, rows, cumulative_flops(recipe), metrics.get("pretrain", {}),
        read_json(folder / "environment.json"), read_json(folder / "config.json"),
    )  # fmt: skip
    if not subject.step:
        raise UserError(f"{folder} has no row in metrics.jsonl yet: nothing to compare; go on with nextvid pretrain")
    found = [*metrics.get("probe", {}).values(), *(read_json(file) for file in sorted(folder.glob("probe_*.json")))]
    weights = default_weights(subject.exported.get("weights", ["ema"]))
    for probe in found:
        if probe.get("weights", weights) == weights:
            subject.probes[probe_name(probe)] = probe
    return subject


def probe_name(probe: dict[str, Any]) -> str:
    """``benchmark/level/task``."""
    return f"{probe['benchmark']}/{probe['level']}/{probe['task']}"


def _finite(value: Any) -> Any:
    """None in place of a number that is none, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _names(folders: list[Path]) -> list[str]:
    """The folders' own names, with as many of those above as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same run is named twice: {', '.join(map(str, folders))}")


def _parameters(recipe: Recipe) -> dict[str, int]:
    with torch.device("meta"):
        objective = recipe.objective.build(recipe.encoder)
    return {name: sum(parameter.numel() for _, parameter in members) for name, members in objective.parts().items()}


def _machine(environment: dict[str, Any]) -> str | None:
    if not environment:
        return None
    return environment.get("accelerator") or f"{environment['processor']}, {environment['threads']} threads"
