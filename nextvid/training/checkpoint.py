"""Checkpoints: a folder ``step_N`` that is complete or absent, with a checksum of every file."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nextvid.files import checksum, replace_json, sync
from nextvid.training.optim import moments, restore_moments
from nextvid.weights import load_weights

FORMAT_VERSION = 1
MODEL, OPTIMISER, STATE = "model.safetensors", "optimiser.safetensors", "state.json"


@dataclass
class Progress:
    """Where a run stands: steps done, seconds spent, and the sums of the logging window that is under way."""

    step: int = 0
    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, keep: int
) -> Path:
    """Write ``folder/step_N`` beside its place and rename it there, then remove all but the last ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{progress.step}"
    beside = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    save_file(_contiguous(model.state_dict()), beside / MODEL)
    save_file(_contiguous(moments(optimiser)), beside / OPTIMISER)
    sums = {name: checksum(beside / name) for name in (MODEL, OPTIMISER)}
    for name in sums:
        sync(beside / name)
    replace_json(beside / STATE, {"format_version": FORMAT_VERSION, "sha256": sums, **vars(progress)})
    shutil.rmtree(final, ignore_errors=True)
    os.rename(beside, final)
    sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in folder.glob("step_*") if p.name[5:].isdigit() and (p / STATE).is_file()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def remove_leftovers(folder: Path) -> None:
    """Delete what saves that were cut short have left."""
    for leftover in folder.glob(".step_*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        return f"{STATE} cannot be read ({error})"
    if state.get("format_version") != FORMAT_VERSION:
        return f"its format version is {state.get('format_version')}, this nextvid reads {FORMAT_VERSION}"
    for name, expected in state["sha256"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if checksum(path / name) != expected:
            return f"the checksum of {name} is wrong"
    return None


def load_checkpoint(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Restore ``model`` and ``optimiser`` from a checkpoint that :func:`damage` found whole.

    Raises ``UserError`` where it holds another architecture.
    """
    load_weights(model, path / MODEL)
    restore_moments(optimiser, load_file(path / OPTIMISER))
    state = json.loads((path / STATE).read_text())
    return Progress(state["step"], state["seconds"], state["window"])


def _contiguous(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
