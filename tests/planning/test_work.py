"""What a recipe asks for: the paper's totals, and operations as torch counts them."""

from unittest import mock

import pytest
import torch
from nano import nano_recipe
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from nextvid.config import load_recipe
from nextvid.planning.live import imagined
from nextvid.planning.machines import GPUS
from nextvid.planning.time import speed_of
from nextvid.planning.work import parts_of, skeleton, work_of
from nextvid.training.compute import clip_flops, total_flops

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}


@pytest.mark.parametrize(("size", "encoder"), [("vit_l", 303.9e6), ("vit_h", 631.6e6), ("vit_g", 1012.2e6)])
def test_the_papers_totals(size: str, encoder: float) -> None:
    recipe = load_recipe(size)
    work, parts = work_of(recipe), parts_of(skeleton(recipe))
    assert sum(stage.steps for stage in work) == 132_000
    assert sum(stage.tokens for stage in work) == pytest.approx(830e9, rel=1e-3)
    assert sum(stage.samples for stage in work) == pytest.approx(405e6, rel=2e-3)
    assert work[3].samples == 4 * work[3].clips == 4 * 12_000 * 768
    assert sum(stage.flops for stage in work) == total_flops(recipe)
    assert parts["encoder"].parameters == pytest.approx(encoder, rel=1e-4)
    assert (parts["reference"].parameters, parts["reference"].trained) == (parts["encoder"].parameters, 0)
    assert parts["encoder"].trained == parts["encoder"].parameters


def test_the_hours_of_the_paper_imply_an_eighth_of_the_peak() -> None:
    flops, h100 = total_flops(load_recipe("vit_g")), GPUS["h100"]
    speed = speed_of(h100, 96, "bfloat16", flops, hours=146.0)
    assert speed.utilisation == pytest.approx(flops / (96 * 989.4e12 * 146 * 3600))
    assert speed.utilisation == pytest.approx(0.120, abs=0.001)
    assert speed.seconds(flops) / 3600 == pytest.approx(146)
    assert speed_of(h100, 96, "bfloat16", flops, None).seconds(flops) == pytest.approx(
        146 * 3600 * speed.utilisation / h100.utilisation
    )


def test_parts_and_tokens_of_a_small_recipe() -> None:
    recipe = nano_recipe()
    first, second = work_of(recipe)
    assert (first.clips, first.tokens, first.samples) == (18, 18 * 2 * 4, 18 * 4 / 16)
    assert (second.clips, second.tokens) == (12, 12 * 3 * 4)
    objective = recipe.objective.build(recipe.encoder)
    for name, part in parts_of(objective).items():
        child = objective.get_submodule(name)
        assert part.parameters == sum(p.numel() for p in child.parameters())
        assert part.bytes == sum(t.nbytes for t in (*child.parameters(), *child.buffers()))


@pytest.mark.parametrize("name", ["small", pytest.param("base", marks=pytest.mark.slow)])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    recipe = load_recipe(name)
    for number in (1, 3):
        stage, objective = recipe.stages[number], skeleton(recipe)
        with (
            mock.patch("nextvid.models.attention.SHORT", 0),
            imagined(recipe, stage, objective, 1) as (forward, batch),
            FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter,
        ):
            forward(batch, {"flow": 0.5, "alignment": 1.0})
        counted, formula = counter.get_flop_counts(), clip_flops(recipe)[number].forward
        assert {part: sum(counted[f"NextVid.{part}"].values()) for part in formula} == formula
