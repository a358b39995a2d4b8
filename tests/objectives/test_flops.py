"""What a method says that it costs, against a counter of the operations that it really runs."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from builders import small_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from nextvid.config import Recipe
from nextvid.data.loader import Batch
from nextvid.objectives import CONFIGS, Objective

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
}
"""torch's counter takes attention on a CPU for free."""
PART = {"width": 24, "depth": 2, "heads": 2, "mlp_hidden": 40}


def recipe_of(objective: dict[str, Any], **changes: Any) -> Recipe:
    encoder = {"width": 24, "depth": 2, "heads": 2, "mlp_hidden": 40, "patch": 4, **changes.pop("encoder", {})}
    stage = {"name": "only", "steps": 1, "batch": 1, "frames": 6, "fps": 6, "size": 16, **changes}
    lr = dict.fromkeys(
        ("encoder", "predictor", "decoder") if objective["name"] == "nextvid" else ("encoder", "decoder"), 1
    )
    return small_recipe(encoder=encoder, objective=objective, stages=[{**stage, "lr": lr}])


@pytest.fixture(autouse=True, scope="module")
def frame_by_frame() -> Iterator[None]:
    """Short clips would be attended to in one call with a mask, which computes more than is needed."""
    with mock.patch("nextvid.models.attention.SHORT", 0):
        yield


def counted(objective: Objective, recipe: Recipe) -> dict[str, int]:
    """Operations of one clip's forward pass by part."""
    stage = recipe.stages[0]
    objective.begin_stage(stage)
    batch = Batch(torch.zeros(1, stage.frames, 3, stage.size, stage.size, dtype=torch.uint8), [3])
    weights = {name: ends[0] for name, ends in (stage.weights or {}).items()}
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        objective(batch, weights)
    found = counter.get_flop_counts()
    name = type(objective).__name__
    return {part: sum(found.get(f"{name}.{part}", {}).values()) for part in objective.flops(stage).forward}


def check(recipe: Recipe) -> None:
    objective = recipe.objective.build(recipe.encoder)
    assert objective.flops(recipe.stages[0]).forward == counted(objective, recipe)


@settings(max_examples=25)
@given(
    frames=st.integers(2, 4),
    attention=st.sampled_from(["frame_causal", "full"]),
    read=st.sampled_from(["pixels", "cosine"]),
    draws=st.integers(1, 3),
    masks=st.lists(
        st.sampled_from([{"blocks": 2, "scale": 0.2}, {"blocks": 0}, {"ratio": 0.5}]), min_size=1, max_size=2
    ),
    flow=st.sampled_from([0, 1]),
)
def test_nextvid(frames: int, attention: str, read: str, draws: int, masks: list[dict[str, Any]], flow: int) -> None:
    check(
        recipe_of(
            {"name": "nextvid", "predictor": PART, "decoder": PART},
            encoder={"attention": attention, "input": read},
            frames=2 * frames, draws=draws, masks=masks, weights={"flow": flow, "alignment": 1},
        )
    )  # fmt: skip


@given(frames=st.integers(1, 4), ratio=st.floats(0.1, 0.99), attention=st.sampled_from(["frame_causal", "full"]))
def test_videomae(frames: int, ratio: float, attention: str) -> None:
    check(
        recipe_of(
            {"name": "videomae", "decoder": PART},
            encoder={"attention": attention}, frames=2 * frames, masks=[{"ratio": ratio}],
        )
    )  # fmt: skip


def test_a_step_is_three_passes_and_one_of_what_is_frozen() -> None:
    recipe = recipe_of({"name": "nextvid", "predictor": PART, "decoder": PART})
    found = recipe.objective.build(recipe.encoder).flops(recipe.stages[0])
    trained = sum(flops for part, flops in found.forward.items() if part != "reference")
    assert found.backward == 2 * trained
    assert found.step == 3 * trained + found.forward["reference"]


def test_what_is_not_computed_costs_nothing() -> None:
    costs = [
        recipe.objective.build(recipe.encoder).flops(recipe.stages[0]).forward["decoder"]
        for weights in ({"flow": 1, "alignment": 1}, {"flow": 0, "alignment": 1})
        for recipe in [recipe_of({"name": "nextvid", "predictor": PART, "decoder": PART}, weights=weights)]
    ]
    assert costs[0] > costs[1] == 0


@pytest.mark.parametrize(("reference", "frozen"), [("ema", "reference"), ("online", "encoder")])
def test_a_reference_without_gradient_is_counted_where_it_is_run(reference: str, frozen: str) -> None:
    recipe = recipe_of({"name": "nextvid", "predictor": PART, "decoder": PART, "reference": reference})
    check(recipe)
    found = recipe.objective.build(recipe.encoder).flops(recipe.stages[0])
    assert list(found.frozen) == [frozen]
    assert found.step == 3 * sum(found.trained.values()) + found.frozen[frozen]


def test_every_method_is_checked_here() -> None:
    assert set(CONFIGS) == {"nextvid", "videomae"}, "a new method needs a test of its operations"


@pytest.mark.parametrize(("pattern", "share"), [("full", 1.0), ("frame_causal", 0.625)])
def test_attention_of_four_frames(pattern: str, share: float) -> None:
    def cost(attention: str, depth: int) -> int:
        recipe = recipe_of(
            {"name": "videomae", "decoder": PART}, encoder={"attention": attention, "depth": depth}, frames=8
        )
        return recipe.objective.build(recipe.encoder).flops(recipe.stages[0]).forward["encoder"]

    kept = 2 * 4
    everything = 4 * 24 * kept**2
    assert cost("full", 2) - cost(pattern, 2) == 2 * round((1 - share) * everything)
