"""Keyed randomness: a draw depends on its key and its purpose, and on nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvid.randomness import generator, key_of, normal, sample_key, uniform

keys = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5, unique=True)
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


def test_keys_are_the_same_on_every_machine() -> None:
    assert key_of("sample", 0, 0) == 4667277444736951684
    assert generator("mask", 1).integers(0, 1000, 5).tolist() == [537, 13, 153, 544, 648]


@given(parts=st.lists(st.integers() | st.text("aé 0", max_size=4), min_size=1, max_size=4))
def test_a_key_fits_in_63_bits_and_repeats(parts: list[int | str]) -> None:
    assert 0 <= key_of(*parts) < 2**63
    assert key_of(*parts) == key_of(*parts)


def test_keys_differ() -> None:
    made = {sample_key(seed, number) for seed in range(20) for number in range(500)}
    assert len(made) == 20 * 500
    assert key_of("1") != key_of(1)
    assert key_of("a", "b") != key_of("ab")


@pytest.mark.parametrize("draw", [normal, uniform])
@given(keys=keys, shape=shapes, data=st.data())
def test_a_row_depends_on_its_key_only(draw, keys: list[int], shape: tuple[int, ...], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(keys))))
    whole = draw(keys, "h0", shape)
    assert whole.shape == (len(keys), *shape)
    assert torch.equal(draw([keys[i] for i in order], "h0", shape), whole[list(order)])
    assert torch.equal(draw(keys[-1:], "h0", shape), whole[-1:])


@pytest.mark.parametrize("draw", [normal, uniform])
def test_purposes_and_keys_draw_differently(draw) -> None:
    assert not torch.equal(draw([1], "a", (4,)), draw([1], "b", (4,)))
    assert not torch.equal(draw([1], "a", (4,)), draw([2], "a", (4,)))


def test_nothing_else_is_disturbed_or_disturbs() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = normal([3], "x", (5,)), uniform([3], "x", (5,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    np.random.default_rng(1).random(10)
    assert torch.equal(normal([3], "x", (5,)), first[0])
    assert torch.equal(uniform([3], "x", (5,)), first[1])


def test_normal_is_normal_and_uniform_is_uniform() -> None:
    noise, even = normal(list(range(100)), "x", (200,)), uniform(list(range(100)), "x", (200,))
    assert noise.mean().abs() < 0.03
    assert (noise.std() - 1).abs() < 0.03
    assert (noise.abs() < 1.0).float().mean() == pytest.approx(0.6827, abs=0.02)
    assert even.min() >= 0
    assert even.max() < 1
    assert torch.histc(even, 10, 0, 1).sub(2000).abs().max() < 5 * 2000**0.5
    across_keys = torch.corrcoef(noise[:10])
    assert across_keys.fill_diagonal_(0).abs().max() < 0.35
