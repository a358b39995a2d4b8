"""Frames cut into clips: the same cuts as of the whole, every frame once, and little read ahead."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvid.data.cuts import NEIGHBOURS, cuts
from nextvid.footage.shots import MOST_FRAMES, Moment, Pieces, with_cuts

BLACK = np.zeros((8, 8, 3), np.float32)


def moments(times: list[float], pictures: np.ndarray | None = None) -> list[Moment]:
    seconds = [*np.diff(times).tolist(), 0.1]
    thumbs = [BLACK] * len(times) if pictures is None else list(pictures)
    return [Moment(number, times[number], seconds[number], thumbs[number]) for number in range(len(times))]


@given(st.integers(1, 80), st.integers(0, 2**32 - 1), st.floats(0.0, 0.3))
def test_cuts_are_those_of_the_whole(count: int, seed: int, chance: float) -> None:
    draw = np.random.default_rng(seed)
    steps = np.where(draw.random(count) < chance, 0.5, 0.02) * draw.random(count)
    pictures = np.broadcast_to((np.cumsum(steps) % 1.0)[:, None, None, None], (count, 8, 8, 3)).astype(np.float32)
    marked = list(with_cuts(moments([number / 10 for number in range(count)], pictures)))
    assert [moment.frame for moment, _ in marked] == list(range(count))
    assert [moment.frame for moment, begins in marked if begins] == cuts(pictures)


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.booleans()), min_size=1, max_size=200),
    st.floats(0.5, 20.0),
)
def test_every_frame_is_in_one_clip_that_is_short_enough_and_of_one_shot(
    steps: list[tuple[float, bool]], seconds: float
) -> None:
    times = np.cumsum([0.0, *(step for step, _ in steps[:-1])]).tolist()
    begins = [False, *(cut for _, cut in steps[1:])]
    made = list(Pieces(zip(moments(times), begins, strict=True), seconds))
    assert [moment.frame for piece in made for moment in piece.moments] == list(range(len(times)))
    shots = np.cumsum(begins)
    for piece in made:
        assert 0 < piece.seconds <= seconds * 1.01
        assert piece.moments[-1].time < piece.end
        assert {int(shots[moment.frame]) for moment in piece.moments} == {piece.shot}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("gap", [30.0, 1e4, 1e6])
def test_a_gap_however_long_is_no_part_of_a_clip(gap: float, cut: bool) -> None:
    times = [*(number * 0.15 for number in range(100)), 15.0 + gap]
    begins = [*[False] * 100, cut]
    made = list(Pieces(zip(moments(times), begins, strict=True), 10.0))
    assert [moment.frame for piece in made for moment in piece.moments] == list(range(101))
    assert all(piece.moments[-1].time <= piece.end and piece.seconds <= 10.01 for piece in made)
    assert len(made) <= 4


def test_a_last_frame_that_stands_still_for_years_is_one_clip_that_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        (piece,) = Pieces([(Moment(0, 0.0, 1e6, BLACK), False)], 10.0)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    assert piece.seconds == 10.0


def test_a_moment_of_another_recording_begins_a_shot() -> None:
    alike = [replace(moment, joined=moment.frame == 3) for moment in moments([0.0, 0.1, 0.2, 0.3, 0.4])]
    assert [begins for _, begins in with_cuts(alike)] == [False, False, False, True, False]


def test_a_shot_gives_equal_parts_once_it_is_known_to_end() -> None:
    def lengths(seconds: float) -> list[float]:
        steady = moments([number / 10 for number in range(round(seconds * 10))])
        return [round(piece.seconds, 6) for piece in Pieces(((moment, False) for moment in steady), 10.0)]

    assert lengths(4) == [4]
    assert lengths(10) == [10]
    assert lengths(16) == [8, 8]
    assert lengths(20) == [10, 10]
    assert lengths(26) == [10, 8, 8]
    assert lengths(47) == [10, 10, 10, 8.5, 8.5]


def test_no_more_than_two_clips_are_held_of_footage_without_end() -> None:
    for fps in (10, 1000):
        read = itertools.count()
        endless = (Moment(number, number / fps, 1 / fps, BLACK) for number in read)
        made = iter(Pieces(with_cuts(endless), 10.0))
        for number in range(1, 4):
            next(made)
            assert next(read) <= min(10 * fps, MOST_FRAMES) * (number + 1) + NEIGHBOURS + number + 2
