"""The predictor (what it may see is in tests/objectives/test_never_happens.py)."""

import pytest
import torch
from builders import Case, cases, make_visible, randomise, seeded
from hypothesis import given
from hypothesis import strategies as st

from nextvid.models.predictor import Predictor, PredictorConfig

CONTEXT_WIDTH = 10


def make_predictor(case: Case) -> Predictor:
    config = PredictorConfig(case.model_width, case.depth, case.heads, 2 * case.model_width)
    return randomise(Predictor(config, CONTEXT_WIDTH), case.seed)


def make_context(case: Case, kept: int) -> torch.Tensor:
    """Of all frames but the last."""
    return torch.randn(case.batch, case.frames - 1, kept, CONTEXT_WIDTH, generator=seeded(case.seed))


@given(case=cases(), data=st.data())
def test_a_prediction_at_every_place_whatever_is_visible(case: Case, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, case.places), "kept")
    z = make_predictor(case)(make_context(case, kept), make_visible(case, kept), *case.grid)
    assert z.shape == (case.batch, case.frames - 1, case.places, CONTEXT_WIDTH)


@given(case=cases(), data=st.data())
def test_the_order_of_the_context_does_not_matter(case: Case, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, case.places), "kept")
    order = torch.tensor(data.draw(st.permutations(range(kept)), "order"))
    predictor, context, visible = make_predictor(case), make_context(case, kept), make_visible(case, kept)
    with torch.no_grad():
        z = predictor(context, visible, *case.grid)
        shuffled = predictor(context[:, :, order], visible[:, order], *case.grid)
    torch.testing.assert_close(shuffled, z, rtol=1e-4, atol=1e-4)


def test_each_place_and_time_asks_for_itself() -> None:
    case = Case(frames=4, height=2, width=2, batch=1)
    z = make_predictor(case)(make_context(case, 4), make_visible(case, 4), *case.grid)[0].flatten(0, 1).detach()
    assert torch.cdist(z, z).add(torch.eye(len(z))).min() > 1e-3


def test_the_context_is_read_by_every_block_and_never_changed() -> None:
    case = Case(depth=3)
    predictor, read = make_predictor(case), []
    for block in predictor.blocks:
        block.attention.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[1]))
    predictor(make_context(case, 3), make_visible(case, 3), *case.grid)
    assert len(read) == 3
    assert all(context is read[0] for context in read)


def test_the_query_starts_at_zero() -> None:
    assert not Predictor(PredictorConfig(24, 1, 2, 48), CONTEXT_WIDTH).query.any()


def test_a_single_latent_frame_has_no_next_one() -> None:
    case = Case(frames=1)
    with pytest.raises(ValueError, match="at least two latent frames"):
        make_predictor(case)(make_context(case, 3), make_visible(case, 3), *case.grid)


@pytest.mark.parametrize(
    "shape", [(24, 2, 5, 48), (24, 2, 8, 48), (0, 2, 2, 48), (24, 0, 2, 48), (24, 2, 0, 48), (24, 2, 2, 0)]
)
def test_an_impossible_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"width=|depth=|heads=|mlp_hidden="):
        PredictorConfig(*shape)
