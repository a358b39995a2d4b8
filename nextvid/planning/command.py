"""What ``nextvid plan`` says, as one mapping."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.files import read_json
from nextvid.objectives import Objective
from nextvid.planning.disk import disk_of
from nextvid.planning.live import Trace, trace_of
from nextvid.planning.machines import MEASURED, Machine, machine_of, with_utilisation
from nextvid.planning.memory import RESERVE, Held, clips_of, gradients_stay, held_by, largest_micro_batch, peak_of
from nextvid.planning.time import Speed, speed_of
from nextvid.planning.work import StageWork, parts_of, skeleton, work_of
from nextvid.settings import StageConfig
from nextvid.training.stages import schedule_of
from nextvid.training.trainer import check_batches

FORMAT_VERSION = 1
SEARCHED = 4
"""Numbers of devices up to so many times the asked one are tried for one that works."""


@dataclass(frozen=True)
class Offer:
    """What there is to run on: so many devices of a kind (None: as here), the share of their peak that they reach or the hours
    that the run takes, and the price of a device and hour.
    """

    devices: int = 1
    gpu: str | None = None
    utilisation: float | None = None
    hours: float | None = None
    price: float | None = None


def plan(recipe: Recipe, offer: Offer, console: Console) -> dict[str, Any]:
    """What ``recipe`` costs on what is offered. Nothing of it is run.

    Raises ``UserError`` for a device that is not known, and where batches cannot be shared by so many devices.
    """
    if offer.utilisation is not None and offer.hours is not None:
        raise UserError("--hours gives the utilisation that they imply; leave out --utilisation, or --hours")
    devices = offer.devices
    machine = with_utilisation(machine_of(offer.gpu, recipe.training.precision), offer.utilisation)
    check_devices(recipe, devices)
    objective = skeleton(recipe)
    schedule_of(recipe, list(objective.parts()))
    work = work_of(recipe)
    flops = sum(stage.flops for stage in work)
    speed = speed_of(machine, devices, recipe.training.precision, flops, offer.hours)
    held = held_by(objective, recipe, devices)
    traces = _traces(recipe, devices, machine, console)
    stages = [
        {
            **_of_work(stage, done, speed),
            **_of_input(stage),
            "memory": _of_memory(held, trace, stage, devices, machine),
        }
        for stage, done, trace in zip(recipe.stages, work, traces, strict=True)
    ]
    disk = disk_of(objective, recipe)
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "objective": recipe.objective.name,
        "training": _of_training(recipe),
        "machine": _of_machine(machine, speed),
        "parameters": _of_parameters(objective),
        "stages": stages,
        "total": _of_totals(work, speed, offer.price),
        "measured": read_json(MEASURED),
        "disk": {
            "checkpoint_bytes": disk.checkpoint,
            "encoder_bytes": disk.export,
            "checkpoints_kept": disk.kept,
            "bytes_at_most": disk.most,
        },
    }


def check_devices(recipe: Recipe, devices: int) -> None:
    """Raise ``UserError``, naming the nearest numbers that work, where the batches cannot be shared by so many devices."""
    try:
        check_batches(recipe, devices)
    except UserError as error:
        below = next((n for n in range(devices - 1, 0, -1) if _works(recipe, n)), None)
        above = next((n for n in range(devices + 1, SEARCHED * devices + 1) if _works(recipe, n)), None)
        near = " and ".join(str(n) for n in (below, above) if n is not None)
        raise UserError(f"--gpus {devices}: {error}. The nearest --gpus that work: {near or 'none'}") from error


def _works(recipe: Recipe, devices: int) -> bool:
    try:
        check_batches(recipe, devices)
    except UserError:
        return False
    return True


def _traces(recipe: Recipe, devices: int, machine: Machine, console: Console) -> list[Trace]:
    """A trace of every stage; stages that differ in nothing that counts share one."""
    found: dict[str, Trace] = {}
    keys = [_key(recipe, stage, devices) for stage in recipe.stages]
    first = [recipe.stages[keys.index(key)] for key in dict.fromkeys(keys)]
    for stage in track(
        first, "following a step's memory …", console=console, transient=True, disable=not console.is_terminal
    ):
        begun = gradients_stay(recipe, stage, devices)
        found[_key(recipe, stage, devices)] = trace_of(recipe, stage, begun, cpu=machine.is_cpu)
    return [found[key] for key in keys]


def _key(recipe: Recipe, stage: StageConfig, devices: int) -> str:
    """What a step's memory depends on, but for the number of clips."""
    on = sorted(name for name, ends in (stage.weights or {}).items() if max(ends) > 0)
    return repr((stage.frames, stage.size, stage.masks, stage.draws, on, gradients_stay(recipe, stage, devices)))


def _of_training(recipe: Recipe) -> dict[str, Any]:
    names = ("precision", "parallel", "activation_checkpointing", "compile", "checkpoint_every")
    return {name: getattr(recipe.training, name) for name in (*names, "keep_checkpoints", "keep_every")}


def _of_machine(machine: Machine, speed: Speed) -> dict[str, Any]:
    return {
        "name": machine.name,
        "title": machine.title,
        "devices": speed.devices,
        "memory_bytes": machine.memory,
        "reserve": RESERVE,
        "peak_flops_per_second": speed.peak,
        "peak_source": machine.source,
        "utilisation": speed.utilisation,
        "utilisation_source": speed.reached,
    }


def _of_parameters(objective: Objective) -> dict[str, Any]:
    parts = parts_of(objective)
    return {
        "parts": {name: {"parameters": p.parameters, "trained": p.trained} for name, p in parts.items()},
        "trained": sum(part.trained for part in parts.values()),
        "total": sum(part.parameters for part in parts.values()),
    }


def _of_work(stage: StageConfig, work: StageWork, speed: Speed) -> dict[str, Any]:
    seconds = speed.seconds(work.flops_of_step)
    clips = stage.batch / speed.devices / seconds
    return {
        "name": work.name,
        "steps": work.steps,
        "clips": work.clips,
        "samples": work.samples,
        "tokens": work.tokens,
        "step_flops": work.flops_of_step,
        "flops": work.flops,
        "step_seconds": seconds,
        "hours": speed.seconds(work.flops) / 3600,
        "loader_clips_per_second_and_device": clips,
        "loader_frames_per_second_and_device": clips * stage.frames,
    }


def _of_input(stage: StageConfig) -> dict[str, Any]:
    return {
        "frames": stage.frames,
        "fps": stage.fps,
        "size": stage.size,
        "batch": stage.batch,
        "draws": stage.draws,
        "ema": stage.ema,
        "lr": {part: list(ends) for part, ends in stage.lr.items()},
    }


def _of_memory(held: Held, trace: Trace, stage: StageConfig, devices: int, machine: Machine) -> dict[str, Any]:
    share, micro = clips_of(stage, devices)
    peak = peak_of(held, trace, stage, share, micro)
    limit = int((1 - RESERVE) * machine.memory)
    return {
        "clips": share,
        "micro_batch": micro,
        "bytes": peak.parts(),
        "total_bytes": peak.total,
        "fits": peak.total <= limit,
        "largest_micro_batch": largest_micro_batch(held, trace, stage, share, limit),
    }


def _of_totals(work: list[StageWork], speed: Speed, price: float | None) -> dict[str, Any]:
    flops = sum(stage.flops for stage in work)
    hours = speed.seconds(flops) / 3600
    return {
        "steps": sum(stage.steps for stage in work),
        "clips": sum(stage.clips for stage in work),
        "samples": sum(stage.samples for stage in work),
        "tokens": sum(stage.tokens for stage in work),
        "flops": flops,
        "hours": hours,
        "device_hours": hours * speed.devices,
        "price_per_device_hour": price,
        "cost": None if price is None else price * hours * speed.devices,
    }
