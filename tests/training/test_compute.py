"""What a recipe costs, and another of the same cost."""

import numpy as np
import pytest
from builders import small_recipe
from hypothesis import given
from hypothesis import strategies as st
from nano import nano_recipe

from nextvid.config import load_recipe
from nextvid.errors import UserError
from nextvid.training.compute import clip_flops, cumulative_flops, total_flops, with_flops


def test_steps_add_up_stage_by_stage() -> None:
    recipe = nano_recipe()
    first, second = (flops.step for flops in clip_flops(recipe))
    spent = cumulative_flops(recipe)
    assert len(spent) == recipe.steps == 12
    assert spent[5] == 6 * 3 * first
    assert spent[-1] == total_flops(recipe) == 6 * 3 * first + 6 * 2 * second
    assert (np.diff(spent) > 0).all()


@given(times=st.floats(0.8, 40))
def test_another_recipe_of_the_same_cost(times: float) -> None:
    recipe = nano_recipe()
    asked = round(times * total_flops(recipe))
    found = with_flops(recipe, asked)
    longest = max(range(2), key=lambda n: recipe.stages[n].steps)
    a_step = clip_flops(recipe)[longest].step * recipe.stages[longest].batch
    assert abs(total_flops(found) - asked) <= a_step / 2 + 1
    assert [s.steps for n, s in enumerate(found.stages) if n != longest] == [6]


def test_too_little_compute_for_the_other_stages() -> None:
    with pytest.raises(UserError, match="leave no step for its longest stage 'first'"):
        with_flops(nano_recipe(), total_flops(nano_recipe()) // 4)


def test_large_models_are_counted_without_being_made() -> None:
    recipe = small_recipe(encoder={"size": "vit_g"})
    parameters = 1_012.2e6
    tokens = 2 * (16 // 16) ** 2
    encoder = clip_flops(recipe)[0].forward["reference"]
    assert encoder == pytest.approx(2 * parameters * tokens, rel=0.02)


@pytest.mark.parametrize("size", ["small", "base", "vit_l", "vit_h"])
def test_totals_beyond_64_bits(size: str) -> None:
    recipe = load_recipe(f"videomae-{size}")
    a_clip = clip_flops(recipe)[0].step
    clips = sum(stage.steps * stage.batch for stage in recipe.stages)
    assert clips == pytest.approx(1600 * 240_000, rel=0.01)
    assert total_flops(recipe) == a_clip * clips > 2**63
    assert cumulative_flops(recipe)[-1] == pytest.approx(total_flops(recipe), rel=1e-9)


def test_the_control_costs_what_tiny_costs() -> None:
    tiny, control = load_recipe("tiny"), load_recipe("videomae-tiny")
    assert total_flops(control) == pytest.approx(total_flops(tiny), rel=0.01)
