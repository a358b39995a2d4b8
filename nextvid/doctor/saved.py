"""Are a run's checkpoints and its exported encoder sound?"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nextvid.config import differences
from nextvid.doctor.check import Check, Finding, combine, first_line, some
from nextvid.doctor.subject import Saved, Subject
from nextvid.errors import UserError
from nextvid.inference.load import load, read_config
from nextvid.models.encoder import EncoderConfig
from nextvid.training.checkpoint import STATE, each_tensor

MIB = 2**20
ENCODER, CONFIG = "encoder.safetensors", "config.json"


def check_checkpoints(subject: Subject) -> Check:
    """Is every checkpoint whole, and are its numbers finite?"""
    sound = ", ".join(saved.path.name for saved in subject.checkpoints) + ": checksums right, all numbers finite"
    findings = [*_damaged(subject), *_leftovers(subject), *_numbers(subject)]
    if not subject.checkpoints:
        mend = "" if subject.running else f"the next start begins at step 0: {subject.command}"
        findings.append(Finding("note", "there is no checkpoint yet", mend))
    return combine("checkpoints", findings, sound)


def _damaged(subject: Subject) -> Iterator[Finding]:
    damaged = [saved for saved in subject.checkpoints if saved.problem]
    named = some(f"{saved.path.name} ({saved.problem})" for saved in damaged)
    if not damaged:
        return
    if subject.running:
        yield Finding("note", f"looks damaged while the run writes: {named}", "look again when the run has ended")
    elif subject.last_whole is None:
        yield Finding(
            "wrong",
            f"no whole checkpoint is left; damaged: {named}",
            "put a copy back; else the next start begins at step 0 and removes the rows of metrics.jsonl, so keep a copy "
            "of them",
        )
    else:
        back = (
            f"the run goes back to step {subject.step} by itself" if _is_newest(subject, damaged) else "nothing to do"
        )
        yield Finding("note", f"damaged: {named}", back)


def _is_newest(subject: Subject, damaged: list[Saved]) -> bool:
    return damaged[-1] is subject.checkpoints[-1]


def _leftovers(subject: Subject) -> Iterator[Finding]:
    folder = subject.path / "checkpoints"
    left = sorted(path.name for path in folder.glob(".step_*.tmp"))
    if left and not subject.running:
        yield Finding("note", f"a save was cut short: {some(left)}", "nothing to do: the next start removes it")
    halves = sorted(path.name for path in subject.path.glob(".*.tmp"))
    if halves and not subject.running:
        yield Finding("note", f"files that a kill left half written: {some(halves)}", "remove them: nothing reads them")
    known = {saved.path for saved in subject.checkpoints}
    others = sorted(path.name for path in folder.glob("step_*") if path not in known)
    if others and not subject.running:
        yield Finding("note", f"no checkpoint, for it has no {STATE}: {some(others)}", "remove it, or put a copy back")


def _numbers(subject: Subject) -> Iterator[Finding]:
    last = subject.last_whole
    if last is None:
        return
    try:
        found = not_finite_in(last.path)
    except (OSError, UserError) as error:
        if not subject.running:
            yield Finding("wrong", f"{last.path} cannot be read ({first_line(error)})", _without(last))
        return
    if found:
        yield Finding("wrong", f"{last.path.name} holds NaN or infinity in {some(found)}", _without(last))


def _without(last: Saved) -> str:
    return (
        f"remove {last.path}, so that the run goes back to the checkpoint before; then lower the learning rates or use "
        "training.precision=float32"
    )


def non_finite(file: Path) -> list[str]:
    """Names of the tensors of a safetensors file that hold NaN or infinity; one tensor is in memory at a time.

    Raises ``OSError`` or ``SafetensorError`` where the file cannot be read.
    """
    with safe_open(str(file), framework="pt") as handle:
        return [name for name in handle.keys() if not _finite(handle.get_tensor(name))]  # noqa: SIM118


def not_finite_in(checkpoint: Path) -> list[str]:
    """Names of the tensors of a checkpoint that hold NaN or infinity; one tensor is in memory at a time.

    Raises ``OSError`` or ``UserError`` where it cannot be read.
    """
    return [name for name, tensor in each_tensor(checkpoint) if not _finite(tensor)]


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def check_encoder(subject: Subject) -> Check:
    """Does the exported encoder load, fit the recipe, hold finite weights, and stem from the last checkpoint?"""
    file = subject.path / ENCODER
    again = f"it is written anew when the run goes on: {subject.command}"
    if not file.is_file():
        if subject.last_whole is None:
            return Check("encoder", "note", f"there is no {ENCODER} yet: it comes with the first checkpoint")
        found = f"there is no {ENCODER}, as after a kill between checkpoint and export"
        return Check("encoder", "note", found, "" if subject.running else again)
    try:
        config = read_config(file)
        loaded = [load(file, weights) for weights in config["weights"]]
    except (UserError, KeyError, TypeError, ValueError) as error:
        return Check("encoder", "wrong", f"{ENCODER} cannot be loaded: {first_line(error)}", again)
    sound = f"{' and '.join(config['weights'])} of step {config['step']} load, all weights finite"
    return combine(
        "encoder",
        [
            *_encoder_numbers(file),
            *_encoder_fits(subject, loaded[0].encoder.config, again),
            *_encoder_age(subject, config, again),
        ],
        sound,
    )


def _encoder_numbers(file: Path) -> Iterator[Finding]:
    found = non_finite(file)
    if found:
        mend = "go back to an earlier checkpoint; lower the learning rates or use training.precision=float32"
        yield Finding("wrong", f"{ENCODER} holds NaN or infinity in {some(found)}", mend)


def _encoder_fits(subject: Subject, found: EncoderConfig, again: str) -> Iterator[Finding]:
    misfits = differences(asdict(found), asdict(subject.recipe.encoder)) if subject.recipe else []
    if misfits:
        yield Finding("wrong", f"{ENCODER} is another encoder than the recipe's: {some(misfits)}", again)


def _encoder_age(subject: Subject, config: dict[str, Any], again: str) -> Iterator[Finding]:
    if subject.running:
        return
    if subject.last_whole is not None and config["step"] != subject.step:
        yield Finding(
            "note", f"{ENCODER} is of step {config['step']}, the last checkpoint of step {subject.step}", again
        )
    if _beside(subject.path / CONFIG) != config:
        yield Finding("note", f"{CONFIG} is missing or says something else than {ENCODER}", again)


def _beside(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def check_space(subject: Subject) -> Check:
    """Is there room for two more checkpoints? A save needs one beside those that are kept."""
    free = shutil.disk_usage(subject.path).free
    size = max((_size(saved.path) for saved in subject.checkpoints), default=0)
    return judge_space(free, size, subject.finished)


def judge_space(free: int, size: int, finished: bool) -> Check:
    """How so much free space (bytes) stands beside checkpoints of ``size`` bytes; a finished run needs none."""
    found = f"{free / MIB:.0f} MiB free, a checkpoint takes {size / MIB:.1f} MiB"
    if finished or free >= 2 * size:
        return Check("disk", "ok", found)
    mend = "free some space before the run goes on, or set training.keep_checkpoints=1 from the start of the next run"
    return Check("disk", "wrong" if free < size else "note", found, mend)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
