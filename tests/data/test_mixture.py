import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvid.data.clip import Broken, BrokenFile, ClipSpec
from nextvid.data.mixture import ATTEMPTS, ROUND, Choice, Mixture
from nextvid.errors import UserError
from nextvid.randomness import sample_key

SPEC = ClipSpec(4, 6.0, 16)


class Noise:
    """A clip of noise; a share of the draws meets a broken file."""

    def __init__(self, name: str, broken: float = 0.0, items: int = 3) -> None:
        self.name = name
        self.broken = broken
        self.items = items

    def describe(self, item):
        return f"{self.name}/{item}.mp4"

    def clip(self, draw, spec, item):
        if draw.random() < self.broken:
            raise BrokenFile(self.describe(item), "unreadable")
        return draw.integers(0, 256, (spec.frames, spec.size, spec.size, 3), dtype=np.uint8)


def mixture(seed=0, broken=0.0):
    return Mixture([Noise("a", broken), Noise("b"), Noise("c")], [1.0, 2.0, 5.0], seed)


def test_a_sample_is_what_the_contract_says():
    sample = mixture().sample(17, SPEC)
    assert (sample.frames.shape, sample.frames.dtype) == ((4, 3, 16, 16), torch.uint8)
    assert sample.frames.is_contiguous()
    assert sample.key == sample_key(0, 17)
    assert sample.broken == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_nothing_depends_on_the_order_of_calls(seed, numbers):
    one, other = mixture(seed, 0.5), mixture(seed, 0.5)
    forwards = [one.sample(number, SPEC) for number in numbers]
    backwards = [other.sample(number, SPEC) for number in reversed(numbers)][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert torch.equal(first.frames, second.frames)
        assert (first.key, first.source, first.broken) == (second.key, second.source, second.broken)


def test_seeds_and_numbers_give_other_samples():
    frames = [mixture(seed).sample(number, SPEC).frames for seed in range(3) for number in range(3)]
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(frames, 2))


def choices(mixed, numbers):
    return [mixed.choice(number) for number in numbers]


@given(st.integers(0, 2**40), st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(0, 1000))
def test_weights_are_exact_to_one_in_every_round(seed, weights, turn):
    mixed = Mixture([Noise(str(number)) for number in range(len(weights))], [float(w) for w in weights], seed)
    drawn = choices(mixed, range(turn * ROUND, (turn + 1) * ROUND))
    counts = np.bincount([choice.source for choice in drawn], minlength=len(weights))
    assert (abs(counts - ROUND * np.array(weights) / sum(weights)) < 1).all()


@given(
    st.integers(0, 2**40),
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 20)), min_size=1, max_size=4),
)
def test_every_item_comes_once_before_any_comes_again(seed, sizes):
    sources = [Noise(str(number), items=items) for number, (items, _) in enumerate(sizes)]
    mixed = Mixture(sources, [float(weight) for _, weight in sizes], seed)
    drawn = choices(mixed, range(2 * ROUND + 100))
    for source, (items, _) in enumerate(sizes):
        order = [choice.item for choice in drawn if choice.source == source]
        epochs = [order[first : first + items] for first in range(0, len(order), items)]
        assert all(sorted(epoch) == list(range(items)) for epoch in epochs[:-1])
        assert len(set(epochs[-1])) == len(epochs[-1])
        if items > 10 and len(epochs) > 2:
            assert epochs[0] != epochs[1], "each epoch has an order of its own"


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, ATTEMPTS - 1)), min_size=1, max_size=20))
def test_choices_are_the_same_in_any_order(asked):
    one, other = mixture(5), mixture(5)
    forwards = [one.choice(number, attempt) for number, attempt in asked]
    assert forwards == [other.choice(number, attempt) for number, attempt in reversed(asked)][::-1]


def test_substitutes_follow_the_weights():
    counts = np.bincount([mixture().choice(number, 1).source for number in range(4000)], minlength=3)
    expected = 4000 * np.array([1, 2, 5]) / 8
    assert (abs(counts - expected) < 4 * np.sqrt(expected)).all()


def test_a_choice_is_described_by_its_file():
    assert mixture().describe(Choice(1, 2)) == "b/2.mp4"


def test_a_broken_file_is_replaced_named_and_changes_no_other_sample():
    whole, damaged = mixture(), mixture(broken=0.9)
    seen = 0
    for number in range(200):
        expected, sample = whole.sample(number, SPEC), damaged.sample(number, SPEC)
        seen += len(sample.broken)
        for attempt, entry in enumerate(sample.broken):
            path = damaged.describe(damaged.choice(number, attempt))
            assert entry == Broken(path, "unreadable", number, attempt)
            assert path.startswith("a/")
        assert damaged.choice(number) == whole.choice(number)
        if expected.source != 0:
            assert torch.equal(sample.frames, expected.frames)
    assert seen > 10


def test_nothing_but_broken_files_stops_with_their_names():
    with pytest.raises(UserError, match=rf"{ATTEMPTS} draws.*a/[012]\.mp4 \(unreadable\)"):
        Mixture([Noise("a", 1.0)], [1.0], 0).sample(0, SPEC)


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_impossible_weights(weights):
    with pytest.raises(UserError, match=r"data\.sources"):
        Mixture([Noise("a"), Noise("b")], weights, 0)


@pytest.mark.parametrize("count", [ROUND, ROUND + 1])
def test_a_weight_that_would_hardly_ever_be_drawn_is_refused(count):
    weights = [1.0, float(count - 1)]
    if count == ROUND:
        assert sum(choice.source == 0 for choice in choices(Mixture([Noise("a")] * 2, weights, 0), range(ROUND))) == 1
        return
    with pytest.raises(UserError, match="1/4096"):
        Mixture([Noise("a")] * 2, weights, 0)
