"""However a step is computed, it is the same step."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import nano_recipe
from together import shared_recipe

from nextvid.config import Recipe
from nextvid.data.loader import Batch
from nextvid.randomness import sample_key
from nextvid.training.trainer import StepResult, Trainer, build_trainer, train_step


def a_step(recipe: Recipe) -> tuple[Trainer, StepResult]:
    trainer = build_trainer(recipe)
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 4, 3, 16, 16), dtype=torch.uint8, generator=draw)
    trainer.progress.step = 3  # the encoder's rate is 0 at the first
    return trainer, train_step(trainer, Batch(frames, [sample_key(0, number) for number in range(4)]))


def assert_same(a: tuple[Trainer, StepResult], b: tuple[Trainer, StepResult], **tolerance: Any) -> None:
    for name, value in a[1].figures.items():
        assert b[1].figures[name] == pytest.approx(value, rel=tolerance.get("rtol", 0) or 1e-12)
    others = b[0].objective.state_dict()
    for name, value in a[0].objective.state_dict().items():
        torch.testing.assert_close(others[name], value, **(tolerance or {"rtol": 0, "atol": 0}))


def test_recomputed_activations_change_no_bit_and_keep_less() -> None:
    kept = {"bytes": 0}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept["bytes"] += tensor.nbytes
        return tensor

    found, sizes = [], []
    for recomputed in (False, True):
        kept["bytes"] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found.append(a_step(shared_recipe(activation_checkpointing=recomputed)))
        sizes.append(kept["bytes"])
    assert_same(*found)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_add_up_to_the_batch(micro_batch: int) -> None:
    assert_same(a_step(shared_recipe()), a_step(shared_recipe(micro_batch=micro_batch)), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_blocks_compute_the_same(recomputed: bool) -> None:
    """In a process of its own: what checks shapes here is not to be compiled."""
    code = (
        "from test_parallel import a_step, assert_same; from together import shared_recipe; "
        f"other = shared_recipe(compile=True, activation_checkpointing={recomputed}); "
        "assert_same(a_step(shared_recipe()), a_step(other), rtol=1e-3, atol=1e-5)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_parts_have_gradient_norms_that_make_up_the_whole() -> None:
    _, result = a_step(nano_recipe())
    assert set(result.norms) == {"encoder", "predictor", "decoder"}
    assert result.figures["grad_norm"] ** 2 == pytest.approx(sum(norm**2 for norm in result.norms.values()), rel=1e-5)
