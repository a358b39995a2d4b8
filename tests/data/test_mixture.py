import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvid.data.clip import BrokenFile, ClipSpec
from nextvid.data.mixture import ATTEMPTS, Mixture
from nextvid.errors import UserError
from nextvid.randomness import sample_key

SPEC = ClipSpec(4, 6.0, 16)


class Noise:
    """A clip of noise; a share of the draws meets a broken file."""

    def __init__(self, name: str, broken: float = 0.0) -> None:
        self.name = name
        self.broken = broken

    def clip(self, draw, spec):
        if draw.random() < self.broken:
            raise BrokenFile(f"{self.name}/{draw.integers(3)}.mp4", "unreadable")
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


def test_weights_are_respected():
    mixed, tiny = mixture(), ClipSpec(1, 1.0, 1)
    counts = np.bincount([mixed.sample(number, tiny).source for number in range(4000)], minlength=3)
    expected = 4000 * np.array([1, 2, 5]) / 8
    assert (abs(counts - expected) < 4 * np.sqrt(expected)).all()


def test_a_broken_file_is_replaced_named_and_changes_no_other_sample():
    whole, damaged = mixture(), mixture(broken=0.9)
    seen = 0
    for number in range(200):
        expected, sample = whole.sample(number, SPEC), damaged.sample(number, SPEC)
        seen += len(sample.broken)
        assert all(path.startswith("a/") and reason == "unreadable" for path, reason in sample.broken)
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
