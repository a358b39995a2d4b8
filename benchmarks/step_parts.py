"""Where a step's time goes in any version of this repository; :mod:`step_speed` runs it with one on the path.

    PYTHONPATH=CHECKOUT python benchmarks/step_parts.py RECIPE --steps 15 key=value …

It wraps what every version's step calls, where later versions have a clock inside (``nextvid bench step``), and prints JSON.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from nextvid.config import load_recipe
from nextvid.data.loader import BatchPlan, make_batch
from nextvid.training.footage import build_mixtures
from nextvid.training.trainer import build_trainer, train_step

SECONDS: dict[str, float] = defaultdict(float)
WARM_UP = 3


def main() -> None:
    """Time the steps of the longest stage on two batches that are made beforehand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=15)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    trainer: Any = build_trainer(recipe)
    number = max(range(len(recipe.stages)), key=lambda n: recipe.stages[n].steps)
    stage = recipe.stages[number]
    trainer.progress.step = sum(s.steps for s in recipe.stages[:number])
    mixture = build_mixtures(recipe, Path("nowhere"), Console(quiet=True))[number]
    pool = [
        make_batch(mixture, BatchPlan(n * stage.batch, stage.batch, stage.frames, stage.fps, stage.size))
        for n in (0, 1)
    ]
    _watch(trainer)
    for number in range(WARM_UP):
        train_step(trainer, pool[number % 2])
    SECONDS.clear()
    whole = []
    for number in range(arguments.steps):
        started = time.perf_counter()
        train_step(trainer, pool[number % 2])
        whole.append(time.perf_counter() - started)
    parts = {name: seconds / arguments.steps for name, seconds in SECONDS.items()}
    print(json.dumps({"step_seconds": sorted(whole)[len(whole) // 2], "parts": parts}))


def _watch(trainer: Any) -> None:
    for name, child in trainer.objective.named_children():
        child.forward = _timed(name, child.forward)
    trainer.objective.forward = _timed("forward", trainer.objective.forward)
    trainer.objective.after_step = _timed("EMA", trainer.objective.after_step)
    trainer.optimiser.step = _timed("optimiser", trainer.optimiser.step)
    nn.utils.clip_grad_norm_ = _timed("optimiser", nn.utils.clip_grad_norm_)
    torch.Tensor.backward = _timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            SECONDS[name] += time.perf_counter() - started

    return run


if __name__ == "__main__":
    main()
