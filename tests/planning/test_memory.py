"""The plan's memory beside what real steps allocate, and what follows from sharding it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nano import nano_recipe
from torch.profiler import ProfilerActivity, profile

from nextvid.config import Recipe, load_recipe
from nextvid.data.loader import Batch
from nextvid.planning.disk import disk_of
from nextvid.planning.live import CASTS, FIXED, GRADIENTS, Trace, trace_of
from nextvid.planning.memory import Peak, bytes_of_clip, clips_of, gradients_stay, held_by, largest_micro_batch, peak_of
from nextvid.planning.work import skeleton
from nextvid.training.checkpoint import MODEL, OPTIMISER
from nextvid.training.optim import moments
from nextvid.training.trainer import Trainer, build_trainer, train_step


def recipe_with(stage: dict[str, Any], training: dict[str, Any]) -> Recipe:
    recipe = nano_recipe()
    stages = [recipe.stages[0].model_copy(update=stage)]
    return recipe.model_copy(
        update={"stages": stages, "training": recipe.training.model_copy(update={"device": "cpu", **training})}
    )


def planned(recipe: Recipe, devices: int = 1) -> Peak:
    stage = recipe.stages[0]
    share, micro = clips_of(stage, devices)
    trace = trace_of(recipe, stage, gradients_stay(recipe, stage, devices), cpu=True)
    return peak_of(held_by(skeleton(recipe), recipe, devices), trace, stage, share, micro)


def trained(recipe: Recipe, steps: int = 2) -> Trainer:
    trainer, stage = build_trainer(recipe), recipe.stages[0]
    for step in range(steps):
        shape = (stage.batch, stage.frames, 3, stage.size, stage.size)
        train_step(trainer, Batch(torch.zeros(shape, dtype=torch.uint8), list(range(stage.batch))))
        trainer.progress.step = step + 1
    return trainer


def allocated(recipe: Recipe) -> int:
    """The highest sum of all that the CPU allocator gives out in two steps, the model included."""
    trained(recipe)  # what is kept for the next call is made before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trained(recipe)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())


@pytest.mark.parametrize(
    ("stage", "training"),
    [
        ({"batch": 7}, {}),
        ({"batch": 31, "draws": 3}, {}),
        ({"batch": 9, "frames": 8, "size": 32}, {"activation_checkpointing": True}),
        ({"batch": 12, "micro_batch": 4}, {}),
        ({"batch": 6, "size": 64}, {"precision": "bfloat16"}),
    ],
    ids=["plain", "draws", "computed again", "micro batches", "bfloat16"],
)
def test_what_is_planned_is_what_real_steps_allocate(stage: dict[str, Any], training: dict[str, Any]) -> None:
    recipe = recipe_with(stage, training)
    assert planned(recipe).total == pytest.approx(allocated(recipe), rel=0.03)


def test_moments_of_a_part_that_no_loss_reaches_are_planned_though_there_are_none() -> None:
    recipe = recipe_with({"batch": 7, "weights": {"flow": (0.0, 0.0), "alignment": (1.0, 1.0)}}, {})
    unused = sum(2 * p.nbytes for p in skeleton(recipe).get_submodule("decoder").parameters())
    assert planned(recipe).total - unused == pytest.approx(allocated(recipe), rel=0.03)


def test_other_methods_are_planned_too() -> None:
    recipe = load_recipe("videomae-tiny", ["stages.*.batch=3"])
    peak = planned(recipe)
    assert peak.held.average == 0
    assert peak.total == pytest.approx(allocated(recipe), rel=0.03)


def test_simulating_leaves_nothing_behind() -> None:
    recipe = recipe_with({"batch": 2}, {})
    before = trained(recipe).objective.encoder.patch_embed.weight
    planned(recipe)
    after = trained(recipe).objective.encoder.patch_embed.weight
    assert type(after.data) is torch.Tensor
    assert torch.equal(before, after)


def test_computing_again_and_micro_batches_take_less() -> None:
    plain = planned(recipe_with({"batch": 32}, {}))
    again = planned(recipe_with({"batch": 32}, {"activation_checkpointing": True}))
    parts = planned(recipe_with({"batch": 32, "micro_batch": 4}, {}))
    assert again.kept < 0.7 * plain.kept
    assert parts.kept == pytest.approx(plain.kept / 8, rel=0.1)
    assert parts.gradients == sum(p.nbytes for p in skeleton(nano_recipe()).parameters() if p.requires_grad)
    assert plain.batch == parts.batch == 32 * bytes_of_clip(nano_recipe().stages[0])


def test_parts_add_up() -> None:
    peak = planned(recipe_with({"batch": 8}, {"parallel": "fsdp"}), devices=4)
    assert sum(peak.parts().values()) == peak.total


def test_sharding_divides_what_is_held_and_gathers_the_largest_block() -> None:
    recipe = load_recipe("vit_l")
    objective = skeleton(recipe)
    alone, sharded = held_by(objective, recipe, 1), held_by(objective, recipe, 8)
    ddp = recipe.model_copy(update={"training": recipe.training.model_copy(update={"parallel": "ddp"})})
    assert held_by(objective, ddp, 8) == alone
    assert alone.gathered == 0
    for name in ("weights", "average", "moments"):
        assert getattr(sharded, name) == pytest.approx(getattr(alone, name) / 8, rel=1e-3)
    block = sum(p.numel() for p in objective.encoder.blocks[0].parameters())
    assert sharded.gathered == block * (5 * 2 + 2 * 4)
    assert alone.weights + alone.average == sum(p.nbytes for p in objective.parameters())


@pytest.mark.slow
def test_buckets_of_ddp_keep_the_gradients() -> None:
    alone, ddp, fsdp = (
        planned(recipe_with({"batch": 8 * devices}, {"parallel": parallel}), devices)
        for devices, parallel in ((1, "ddp"), (2, "ddp"), (2, "fsdp"))
    )
    weights = sum(p.nbytes for p in skeleton(nano_recipe()).parameters() if p.requires_grad)
    assert (alone.gradients, ddp.gradients, fsdp.gradients) == (0, weights, 0)


@pytest.mark.slow
def test_on_a_gpu_attention_is_one_operation() -> None:
    def both(name: str, *overrides: str) -> tuple[Trace, Trace]:
        recipe = load_recipe(name, list(overrides))
        cpu, gpu = (trace_of(recipe, recipe.stages[0], False, cpu) for cpu in (True, False))
        return cpu, gpu

    cpu, gpu = both("videomae-tiny")  # full attention, which is one operation here too
    assert np.array_equal(cpu.rows, gpu.rows)
    cpu, gpu = both("tiny", "training.precision=bfloat16")
    assert len(gpu.rows) < len(cpu.rows)
    assert gpu.rows[:, CASTS].max() == cpu.rows[:, CASTS].max() > 0


def trace(*rows: tuple[int, int, int, int], forward: int = 1) -> Trace:
    return Trace(np.array(rows, dtype=np.int64), forward)


def test_the_peak_moves_with_the_batch_and_the_shards() -> None:
    recipe = nano_recipe()
    stage, held = recipe.stages[0], held_by(skeleton(recipe), recipe, 1)
    moments_of = trace((0, 10, 100, 50), (400, 10, 0, 20))
    few, many = (peak_of(held, moments_of, stage, 1, clips) for clips in (1, 20))
    assert (few.gradients, few.casts, few.kept, few.transient) == (400, 10, 20, 0)
    assert (many.gradients, many.casts, many.kept, many.transient) == (0, 10, 1100, 0)
    sharded = peak_of(replace(held, shards=8, gathered=1), moments_of, stage, 1, 2)
    assert (sharded.gradients, sharded.casts, sharded.kept) == (0, 0, 200)


def test_the_largest_micro_batch_fits_and_the_next_one_does_not() -> None:
    recipe = recipe_with({"batch": 24}, {})
    stage, held = recipe.stages[0], held_by(skeleton(recipe), recipe, 1)
    rows = trace_of(recipe, stage, gradients=True, cpu=True)
    for clips in (1, 2, 3, 4, 6, 8, 12):
        needed = peak_of(held, rows, stage, 24, clips).total
        assert largest_micro_batch(held, rows, stage, 24, needed) == clips
        assert largest_micro_batch(held, rows, stage, 24, needed - 1) == max(
            (n for n in range(1, clips) if 24 % n == 0), default=0
        )
    assert largest_micro_batch(held, rows, stage, 24, held.total) == 0


def test_a_trace_has_a_row_a_moment() -> None:
    recipe = recipe_with({"batch": 2}, {})
    found = trace_of(recipe, recipe.stages[0], gradients=False, cpu=True)
    weights = sum(p.nbytes for p in skeleton(recipe).parameters() if p.requires_grad)
    assert found.rows[: found.forward, GRADIENTS].max() == 0
    assert 0.5 * weights < found.rows[:, GRADIENTS].max() <= weights
    assert found.rows[:, CASTS].max() == 0
    assert found.rows[:, FIXED].min() >= 0


def test_disk_is_what_a_checkpoint_holds() -> None:
    recipe = recipe_with({"batch": 2}, {})
    trainer = trained(recipe, steps=1)
    held = {MODEL: trainer.objective.state_dict(), OPTIMISER: moments(trainer.optimiser)}
    size = sum(tensor.nbytes for tensors in held.values() for tensor in tensors.values())
    disk = disk_of(skeleton(recipe), recipe)
    assert disk.checkpoint == size
    assert disk.export == sum(
        t.nbytes for encoder in trainer.objective.exports().values() for t in encoder.state_dict().values()
    )


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"checkpoint_every": 4, "keep_checkpoints": 2}, {8, 12}),
        ({"checkpoint_every": 5, "keep_checkpoints": 2}, {10, 12}),
        ({"checkpoint_every": 2, "keep_checkpoints": 1, "keep_every": 4}, {4, 8, 12}),
        ({"checkpoint_every": 2, "keep_checkpoints": 3, "keep_every": 6}, {6, 8, 10, 12}),
        ({"checkpoint_every": 50, "keep_checkpoints": 9}, {12}),
    ],
)
def test_what_a_finished_run_keeps(changes: dict[str, int], kept: set[int]) -> None:
    recipe = nano_recipe()
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})
    disk = disk_of(skeleton(recipe), recipe)
    assert disk.kept == len(kept)
    assert disk.most == (len(kept) + 1) * disk.checkpoint + 2 * disk.export
