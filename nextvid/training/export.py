"""The verb ``export``: one file of weights out of a run's checkpoint, however many processes have written it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nextvid.errors import UserError, nearest
from nextvid.objectives.protocol import Objective
from nextvid.training.checkpoint import read_part, step_of
from nextvid.training.release import PRECISIONS, Precision, released_tensors, stored_recipe, write_tensors
from nextvid.training.start import find_whole
from nextvid.weights import check_fit

FORMAT_VERSION = 1
SUFFIX = ".safetensors"


def export_run(
    run: Path, out: Path, step: int | None, precision: str, encoder_only: bool, console: Console
) -> dict[str, Any]:
    """Write the weights of a run's newest whole checkpoint, or that of ``step``, to ``out``; returns what the file holds.

    All parts, as ``init`` takes them, or the encoders alone, as ``nextvid.load`` does. Raises ``UserError``.
    """
    chosen = _checked(run, out, precision)
    recipe, found = stored_recipe(run), find_whole(run, step)
    for text in found.damaged:
        console.print(f"passed over: {text}", style="yellow", highlight=False, markup=False)
    with torch.device("meta"):
        objective = recipe.objective.build(recipe.encoder)
    state = read_part(found.path)
    check_fit({name: tensor.shape for name, tensor in state.items()}, objective.state_dict(), found.path)
    tensors = released_tensors(objective, state)
    if encoder_only:
        tensors = {name: tensor for name, tensor in tensors.items() if _part(name) in objective.exports()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, objective, recipe, step_of(found.path), out, chosen)
    return {
        "format_version": FORMAT_VERSION,
        "file": str(out),
        "bytes": out.stat().st_size,
        "run": str(run),
        "recipe": recipe.name,
        "step": step_of(found.path),
        "precision": chosen,
        "tensors": len(tensors),
        "parameters": _parameters(objective, tensors),
    }


def sentence_of(found: dict[str, Any]) -> str:
    """What was written."""
    return f"{found['file']}: step {found['step']} of {found['run']} in {found['precision']}, {found['bytes'] / 1e6:.1f} MB"


def table_of(found: dict[str, Any]) -> Table:
    """The parameters by part."""
    table = Table("part")
    table.add_column("parameters", justify="right")
    for part, count in found["parameters"].items():
        table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("all", f"{sum(found['parameters'].values()):,}")
    return table


def _checked(run: Path, out: Path, precision: str) -> Precision:
    if precision not in PRECISIONS:
        raise UserError(
            f"--precision is one of {', '.join(PRECISIONS)}, not '{precision}'{nearest(precision, PRECISIONS)}"
        )
    if out.suffix != SUFFIX or out.is_dir():
        raise UserError(f"-o {out}: the file is a safetensors file; call it {out.with_suffix(SUFFIX)}")
    if not run.is_dir():
        raise UserError(f"there is no run's folder at {run}; nextvid export reads the checkpoints of one")
    return precision


def _parameters(objective: Objective, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Trained and averaged numbers by part; what an objective measures is none."""
    named = dict(objective.named_parameters())
    released = released_tensors(objective, {name: parameter.detach() for name, parameter in named.items()})
    counts: dict[str, int] = {}
    for name in (name for name in released if name in tensors):
        counts[_part(name)] = counts.get(_part(name), 0) + tensors[name].numel()
    return counts


def _part(name: str) -> str:
    return name.partition(".")[0]
