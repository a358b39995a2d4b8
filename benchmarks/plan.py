"""What ``nextvid plan`` says, against what steps really take on this CPU, and against torch's counter of operations.

    python benchmarks/plan.py

Memory: the plan's peak beside that of all allocations in two steps of training (``torch.profiler``, every allocation of the CPU
allocator from before the model is made), and beside what the process grows by (its highest resident size less that after
imports). Time: a step's operations over (the peak of large products x one utilisation), where the utilisation is what one of
the recipes reaches in this run, so that the errors of the others are those of a prediction. float32, one thread, eager,
each measured in a process of its own. Other processes may use the same cores, so seconds are those of the processor and not
of the clock, and the clock's are given beside them; medians. Operations: the formulas beside ``FlopCounterMode``, which
follows the real objective without computing it.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import nextvid
from nextvid.config import Recipe, load_recipe
from nextvid.data.loader import Batch
from nextvid.files import read_json, replace_json
from nextvid.planning import Offer, plan
from nextvid.planning.live import imagined, trace_of
from nextvid.planning.memory import clips_of, gradients_stay, held_by, peak_of
from nextvid.planning.work import skeleton
from nextvid.training.compute import clip_flops, step_flops
from nextvid.training.device import processor_name
from nextvid.training.distributed import world_of
from nextvid.training.trainer import build_trainer, train_step

FORMAT_VERSION = 1
OUT = Path(__file__).parent / "results" / "plan.json"
MEASURED = Path(nextvid.__file__).parent / "planning" / "measured.json"
COMMON = ["training.precision=float32", "training.compile=false", "training.threads=1", "training.device=cpu"]
LAST, FSDP, DDP = "the last stage", "training.parallel=fsdp", "training.parallel=ddp"
CASES = {
    "tiny": ("tiny", 16, 1, []),
    "small": ("small", 4, 1, []),
    "small, computed again": ("small", 4, 1, ["training.activation_checkpointing=true"]),
    "small, cool-down": ("small", 4, 1, [LAST]),
    "small, micro batches": ("small", 8, 1, ["stages.*.micro_batch=4"]),
    "small, two processes, fsdp": ("small", 4, 2, [FSDP]),
    "small, two processes, ddp": ("small", 4, 2, [DDP]),
    "base": ("base", 2, 1, ["stages.*.micro_batch=2"]),
}
"""Recipe, batch, processes, overrides."""
PAPER = {"vit_l": None, "vit_h": None, "vit_g": 146.0}
"""Hours on 96 H100, where the paper says them."""
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}


def main() -> None:
    """Measure everything, print it and write it down; or, as a process of its own, measure one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="(used by itself) measure this case and print it as JSON")
    parser.add_argument("--what", choices=("allocated", "resident", "time"))
    parser.add_argument("--parts", nargs="+", choices=("sizes", "memory", "time"), default=["sizes", "memory", "time"])
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.case:
        measure = {"allocated": _allocated, "resident": _resident, "time": _timed}[arguments.what]
        measured = measure(*_case(arguments.case), arguments.steps)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(measured))
        return
    found = {
        **read_json(arguments.out),
        "format_version": FORMAT_VERSION,
        "command": "python benchmarks/plan.py",
        "machine": {"processor": processor_name(), "python": platform.python_version(), "torch": torch.__version__},
    }
    if "sizes" in arguments.parts:
        found["sizes"] = {name: _size(name, hours) for name, hours in PAPER.items()}
    if "memory" in arguments.parts:
        found["memory"] = {name: _memory(name) for name in CASES}
    if "time" in arguments.parts:
        found["time"] = _times(arguments.steps)
    replace_json(arguments.out, found)
    if {"memory", "time"} <= found.keys() and arguments.out == OUT:
        replace_json(MEASURED, measured_of(found))
    _show(found)


def measured_of(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured and ``nextvid plan`` says: the share of the peak by recipe, the least and the most of each error."""
    memory = found["memory"].values()
    times = [row["error"][calibrated] for row in found["time"]["rows"].values() for calibrated in row["error"]]
    errors = {
        "memory_to_allocated": [case["error_to_allocated"] for case in memory],
        "memory_to_resident": [case["error_to_resident"] for case in memory],
        "time": times,
    }
    return {
        "format_version": FORMAT_VERSION,
        "machine": found["machine"],
        "utilisation": {name: row["utilisation"] for name, row in found["time"]["rows"].items()},
        "errors": {name: [min(values), max(values)] for name, values in errors.items()},
    }


def _show(found: dict[str, Any]) -> None:
    """The sizes and the errors."""
    for name, size in found.get("sizes", {}).items():
        total, parameters = size["total"], size["parameters"]
        exact = all(count["formula"] == count["flop_counter"] for count in size["forward_flops_of_a_clip"].values())
        print(
            f"{name}: {parameters['total'] / 1e6:.1f} M parameters, {total['samples'] / 1e6:.1f} M samples, "
            f"{total['tokens'] / 1e9:.1f} B tokens, {total['flops']:.4g} FLOP, {total['hours']:.1f} h at "
            f"{100 * size['machine']['utilisation']:.1f}%; operations as counted: {exact}"
        )
    for name, row in found.get("memory", {}).items():
        print(
            f"{name}: {row['predicted'] / 1e6:.1f} MB predicted, {row['allocated'] / 1e6:.1f} allocated "
            f"({100 * row['error_to_allocated']:+.2f}%), {row['resident'] / 1e6:.1f} resident"
        )
    for name, row in found.get("time", {}).get("rows", {}).items():
        errors = ", ".join(
            f"{100 * error:+.0f}% by {other}'s" for other, error in row["error"].items() if other != name
        )
        print(
            f"{name}: {row['cpu_seconds']:.3f} s ({row['wall_seconds']:.3f} by the clock), {100 * row['utilisation']:.0f}% of "
            f"the peak; predicted {errors}"
        )


def _case(name: str) -> tuple[Recipe, int]:
    """The recipe of a case, and the number of the stage that is measured."""
    recipe, batch, _, overrides = CASES[name]
    settings = [*COMMON, f"stages.*.batch={batch}", *(o for o in overrides if o != LAST)]
    loaded = load_recipe(recipe, settings)
    return loaded, len(loaded.stages) - 1 if LAST in overrides else loaded.longest_stage


def _size(name: str, hours: float | None) -> dict[str, Any]:
    """A size of the paper on 96 H100, and its operations counted by torch."""
    recipe = load_recipe(name)
    found = plan(recipe, Offer(96, "h100", hours=hours), Console(stderr=True))
    keep = ("parameters", "total", "machine", "disk")
    memory = {stage["name"]: stage["memory"] for stage in found["stages"]}
    counted = {stage.name: _counted(recipe, number) for number, stage in enumerate(recipe.stages)}
    return {**{key: found[key] for key in keep}, "memory": memory, "forward_flops_of_a_clip": counted}


def _counted(recipe: Recipe, number: int) -> dict[str, int]:
    """Operations of a clip's forward pass by the formulas and by torch's counter, over the same objective."""
    stage, objective = recipe.stages[number], skeleton(recipe)
    weights = {name: max(ends) for name, ends in (stage.weights or {}).items()}
    with (
        mock.patch("nextvid.models.attention.SHORT", 0),
        imagined(recipe, stage, objective, 1) as (forward, batch),
        FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter,
    ):
        forward(batch, weights)
    found, formula = counter.get_flop_counts(), clip_flops(recipe)[number].forward
    parts = (f"{type(objective).__name__}.{part}" for part in formula)
    return {
        "formula": sum(formula.values()),
        "flop_counter": sum(sum(found.get(part, {}).values()) for part in parts),
    }


def _memory(name: str) -> dict[str, Any]:
    (recipe, number), processes = _case(name), CASES[name][2]
    stage = recipe.stages[number]
    share, micro = clips_of(stage, processes)
    trace = trace_of(recipe, stage, gradients_stay(recipe, stage, processes), cpu=True)
    peak = peak_of(held_by(skeleton(recipe), recipe, processes), trace, stage, share, micro)
    allocated, resident = (_alone(name, what)["bytes"] for what in ("allocated", "resident"))
    return {
        "stage": stage.name,
        "processes": processes,
        "clips": share,
        "micro_batch": micro,
        "parts": peak.parts(),
        "predicted": peak.total,
        "allocated": allocated,
        "error_to_allocated": peak.total / allocated - 1,
        "resident": resident,
        "error_to_resident": peak.total / resident - 1,
    }


def _times(steps: int) -> dict[str, Any]:
    names = [name for name in CASES if "," not in name]
    rows = {name: _alone(name, "time", steps) for name in names}
    peak = max(row.pop("peak") for row in rows.values())
    shares = {name: row["flops"] / row["cpu_seconds"] / peak for name, row in rows.items()}
    for name, row in rows.items():
        row["utilisation"] = shares[name]
        row["error"] = {calibrated: shares[name] / share - 1 for calibrated, share in shares.items()}
    return {"peak": peak, "steps": steps, "rows": rows}


def _alone(name: str, what: str, steps: int = 2) -> dict[str, Any]:
    """Measure a case in a process of its own, or in the first of as many as it has."""
    processes = CASES[name][2]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--case", name, "--what", what]
    print(f"{name}: {what}", file=sys.stderr)
    done = subprocess.run([*command, "--steps", str(steps)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _allocated(recipe: Recipe, number: int, steps: int) -> dict[str, int]:
    """The highest sum of what the CPU allocator has given out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _train(recipe, number, steps)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return {"bytes": highest}


def _resident(recipe: Recipe, number: int, steps: int) -> dict[str, int]:
    """How far the highest resident size is above that before the model was made."""
    torch.ones(256, 256) @ torch.ones(256, 256)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    _train(recipe, number, steps)
    highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": highest - pages * resource.getpagesize()}


def _timed(recipe: Recipe, number: int, steps: int) -> dict[str, float]:
    """Medians of steps after the first, and the best product, in seconds of the processor."""
    peak = _peak()
    seconds = _train(recipe, number, steps + 1)[1:]
    return {
        "flops": step_flops(recipe)[number],
        "peak": max(peak, _peak()),
        "cpu_seconds": statistics.median(cpu for cpu, _ in seconds),
        "wall_seconds": statistics.median(wall for _, wall in seconds),
    }


def _peak() -> float:
    """As ``matmul_peak`` in float32, but by the processor's time: others may hold the core meanwhile."""
    matrix = torch.ones(2048, 2048)
    seconds = []
    for _ in range(6):
        started = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - started)
    return 2 * 2048**3 / min(seconds[1:])


def _train(recipe: Recipe, number: int, steps: int) -> list[tuple[float, float]]:
    """Processor's and clock's seconds of each of the first steps of a stage, on noise."""
    stage, draw, seconds = recipe.stages[number], torch.Generator().manual_seed(0), []
    with world_of(recipe.training.timeout, "cpu") as world:
        trainer = build_trainer(recipe, world)
        trainer.progress.step = sum(s.steps for s in recipe.stages[:number])
        share, _ = clips_of(stage, world.ranks)
        for step in range(steps):
            shape = (share, stage.frames, 3, stage.size, stage.size)
            frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
            cpu, wall = time.process_time(), time.perf_counter()
            train_step(trainer, Batch(frames, [step * share + i for i in range(share)]))
            seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
            trainer.progress.step += 1
    return seconds


if __name__ == "__main__":
    main()
