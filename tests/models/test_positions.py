"""Where a token is, said by waves or by rotations: the same wherever and however many tokens are asked for."""

import math

import pytest
import torch
from builders import Case, cases, make_clip, make_encoder, make_visible
from hypothesis import given
from hypothesis import strategies as st

from nextvid.models.encoder import tokens_of
from nextvid.models.positions import placed
from nextvid.models.sincos import sincos_positions

CPU = torch.device("cpu")


@given(frames=st.integers(1, 5), places=st.integers(1, 9), half=st.integers(1, 20), first=st.integers(0, 1000))
def test_waves_are_those_of_the_transformer(frames: int, places: int, half: int, first: int) -> None:
    table = sincos_positions(frames, places, 2 * half, CPU, first)
    for frame, place in ((0, 0), (frames - 1, places - 1)):
        number = (first + frame) * places + place
        for j in (0, half - 1):
            angle = number / 10_000 ** (2 * j / (2 * half))
            assert table[frame, place, 2 * j].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[frame, place, 2 * j + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_no_two_tokens_of_a_clip_have_the_same_waves() -> None:
    table = sincos_positions(8, 196, 384, CPU).flatten(0, 1)
    distances = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.add(10 * torch.eye(len(table))).min() > 0.1


@pytest.mark.parametrize("positions", ["rope", "sincos"])
@given(case=cases(min_frames=1))
def test_all_places_by_name_are_all_places(positions: str, case: Case) -> None:
    encoder, clip = make_encoder(case, positions=positions, attention="full"), make_clip(case)
    every = torch.arange(case.places).expand(case.batch, -1)
    with torch.no_grad():
        torch.testing.assert_close(tokens_of(encoder(clip, every)), tokens_of(encoder(clip)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["rope", "sincos"])
@given(case=cases(), data=st.data())
def test_a_token_is_where_it_is_whatever_else_is_there(positions: str, case: Case, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, case.places), "kept")
    places, grid = make_visible(case, kept), (case.frames, *case.grid)
    x = torch.randn(case.batch, case.frames, case.places, case.model_width)
    index = places[:, None, :, None].expand(-1, case.frames, -1, case.model_width)
    some, turned = placed(x.gather(2, index), places, grid, positions, case.heads)
    whole, all_turned = placed(x, None, grid, positions, case.heads)
    torch.testing.assert_close(some, whole.unflatten(1, (case.frames, -1)).gather(2, index).flatten(1, 2))
    if positions == "sincos":
        assert turned is all_turned is None
    else:
        expected = all_turned.unflatten(1, (case.frames, -1))[0][:, places].transpose(0, 1).flatten(1, 2)
        assert torch.equal(turned, expected)


def test_waves_serve_training_though_inference_asked_first() -> None:
    sincos_positions.cache_clear()
    with torch.inference_mode():
        table = sincos_positions(2, 3, 12, CPU)
    weight = torch.ones(12, requires_grad=True)
    (weight * table).sum().backward()
    assert weight.grad is not None
