"""Multi-block masks: how much they keep, that they favour no place, and that a sample's mask is its own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvid.masking import MaskConfig, TubeConfig, draw_batch, draw_hidden, draw_visible, hidden_places, visible_count
from nextvid.randomness import generator

SHORT, LONG = MaskConfig(8, 0.15), MaskConfig(2, 0.7)
EVERYTHING = MaskConfig(12, 1.0)

grids = st.sampled_from([(1, 1), (1, 2), (2, 5), (6, 6), (9, 3), (16, 16)])
masks = st.sampled_from([SHORT, LONG, EVERYTHING, MaskConfig(1, 0.01), MaskConfig(3, 0.3, (0.2, 4.0))])
keys = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize(("mask", "share"), [(SHORT, 0.38), (LONG, 0.19)])
def test_the_shares_of_the_paper(mask: MaskConfig, share: float) -> None:
    kept = visible_count(mask, 16, 16) / 256
    assert kept == pytest.approx(share, abs=0.005)
    draw = generator("test")
    left = [1 - draw_hidden(mask, draw, 16, 16).mean() for _ in range(1000)]
    assert np.mean(left) == pytest.approx(kept, abs=0.01)


@given(grid=grids, mask=masks, key=keys)
def test_a_mask_is_sorted_places_of_the_fixed_number(grid: tuple[int, int], mask: MaskConfig, key: int) -> None:
    places = math.prod(grid)
    visible = draw_visible(mask, key, "mask 0", *grid)
    assert len(visible) == visible_count(mask, *grid)
    assert (np.diff(visible) > 0).all()
    assert visible[0] >= 0
    assert visible[-1] < places


@pytest.mark.parametrize(("grid", "fewest"), [((1, 1), 1), ((3, 5), 1), ((4, 4), 1), ((1, 17), 2), ((16, 16), 16)])
def test_a_sixteenth_is_always_kept(grid: tuple[int, int], fewest: int) -> None:
    assert visible_count(EVERYTHING, *grid) == fewest


@given(grid=grids, mask=masks, key=keys)
def test_blocks_decide_first_and_chance_only_evens_out(grid: tuple[int, int], mask: MaskConfig, key: int) -> None:
    """What is shown is part of what the blocks leave, or the whole of it and more."""
    hidden = draw_hidden(mask, generator("mask 0", key), *grid).ravel()
    visible, left = set(draw_visible(mask, key, "mask 0", *grid).tolist()), set(np.flatnonzero(~hidden).tolist())
    assert visible <= left or left <= visible


@given(grid=grids, mask=masks, key=keys)
def test_one_block_is_a_rectangle_of_its_area_and_aspect(grid: tuple[int, int], mask: MaskConfig, key: int) -> None:
    hidden = draw_hidden(MaskConfig(1, mask.scale, mask.aspect), generator("one", key), *grid)
    rows, columns = hidden.any(axis=1), hidden.any(axis=0)
    assert np.array_equal(hidden, rows[:, None] & columns[None, :])
    for line in (rows, columns):
        assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() == 2
    ideal = [math.sqrt(mask.scale * math.prod(grid) * shape) for shape in mask.aspect]
    assert max(1, min(grid[0], math.floor(ideal[0]))) <= rows.sum() <= max(1, min(grid[0], math.ceil(ideal[1])))


def test_all_blocks_of_a_sample_have_one_shape() -> None:
    """Two blocks of a twentieth seldom overlap: then the hidden area is twice that of one."""
    areas = [draw_hidden(MaskConfig(2, 0.05), generator("two", i), 16, 16).sum() for i in range(200)]
    alone = [draw_hidden(MaskConfig(1, 0.05), generator("two", i), 16, 16).sum() for i in range(200)]
    assert all(two <= 2 * one for two, one in zip(areas, alone, strict=True))
    assert sum(two == 2 * one for two, one in zip(areas, alone, strict=True)) > 100


@given(mask=masks, chosen=st.lists(keys, min_size=1, max_size=4, unique=True), data=st.data())
def test_a_mask_depends_on_its_key_only(mask: MaskConfig, chosen: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(chosen))))
    batch = draw_batch(mask, chosen, "mask 1", 6, 6)
    assert draw_batch(mask, [chosen[i] for i in order], "mask 1", 6, 6).tolist() == batch[list(order)].tolist()
    for row, key in zip(batch, chosen, strict=True):
        assert draw_visible(mask, key, "mask 1", 6, 6).tolist() == row.tolist()


def test_samples_and_generators_have_masks_of_their_own() -> None:
    drawn = {tuple(draw_visible(SHORT, key, purpose, 6, 6)) for key in range(50) for purpose in ("mask 0", "mask 1")}
    assert len(drawn) > 95


@pytest.mark.parametrize("mask", [SHORT, LONG])
def test_no_side_is_favoured(mask: MaskConfig) -> None:
    """Mirrored left to right or up and down, how often a place is shown stays the same, to five deviations."""
    draws, height, width = 2000, 6, 5
    shown = np.zeros(height * width)
    for key in range(draws):
        shown[draw_visible(mask, key, "mask 0", height, width)] += 1
    shown = shown.reshape(height, width)
    deviation = np.sqrt(2 * shown * (1 - shown / draws) + 1)
    for mirrored in (shown[::-1], shown[:, ::-1]):
        assert (np.abs(shown - mirrored) < 5 * deviation).all()


@pytest.mark.parametrize(("mask", "given_up"), [(SHORT, True), (LONG, False)])
def test_what_chance_takes_or_gives_back_is_spread_evenly(mask: MaskConfig, given_up: bool) -> None:
    """V-JEPA 2 keeps the first ids. Here places given up (or shown although blocks hide them) come from anywhere."""
    height = width = 8
    early = late = 0
    for key in range(1500):
        hidden = draw_hidden(mask, generator("mask 0", key), height, width).ravel()
        shown = np.zeros(height * width, dtype=bool)
        shown[draw_visible(mask, key, "mask 0", height, width)] = True
        by_chance = np.flatnonzero(~shown & ~hidden if given_up else shown & hidden)
        early, late = early + (by_chance < 32).sum(), late + (by_chance >= 32).sum()
    assert early + late > 500
    # Places of one sample come together, so the deviation is a few times that of independent ones.
    assert abs(early - late) < 0.15 * (early + late)


@given(grid=grids, key=keys)
def test_no_blocks_hide_nothing(grid: tuple[int, int], key: int) -> None:
    assert draw_visible(MaskConfig(0), key, "mask 0", *grid).tolist() == list(range(math.prod(grid)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": -1}, {"blocks": 1, "scale": 0.0}, {"blocks": 1, "scale": 1.1},
        {"blocks": 1, "aspect": (0.0, 1.0)}, {"blocks": 1, "aspect": (2.0, 1.0)},
    ],
)  # fmt: skip
def test_masks_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError, match="a mask needs blocks"):
        MaskConfig(**wrong)


# Tubes.


@pytest.mark.parametrize(
    ("ratio", "side", "kept"), [(0.9, 14, 20), (0.75, 14, 49), (0.9, 8, 7), (0.0, 4, 16), (0.99, 2, 1)]
)
def test_tubes_keep_what_their_authors_keep(ratio: float, side: int, kept: int) -> None:
    assert visible_count(TubeConfig(ratio), side, side) == kept


@given(ratio=st.floats(0, 1, exclude_max=True), grid=grids, key=st.integers(0, 2**40))
def test_tubes_are_sorted_distinct_places(ratio: float, grid: tuple[int, int], key: int) -> None:
    seen = draw_visible(TubeConfig(ratio), key, "mask 0", *grid)
    assert len(seen) == visible_count(TubeConfig(ratio), *grid) >= 1
    assert (np.diff(seen) > 0).all()
    assert seen[0] >= 0
    assert seen[-1] < math.prod(grid)


def test_tubes_favour_no_place_and_no_neighbour() -> None:
    mask, side, draws = TubeConfig(0.75), 4, 4000
    seen = np.zeros((draws, side * side), dtype=bool)
    for key in range(draws):
        seen[key, draw_visible(mask, key, "mask 0", side, side)] = True
    assert np.abs(seen.mean(axis=0) - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / draws)
    together = (seen[:, 5] & seen[:, 6]).mean()
    assert together == pytest.approx(4 * 3 / (16 * 15), abs=5 * math.sqrt(0.05 / draws))


@given(kept=st.integers(1, 12), key=st.integers(0, 1000))
def test_hidden_places_are_all_the_others(kept: int, key: int) -> None:
    visible = draw_batch(TubeConfig(1 - kept / 12), [key, key + 1], "mask 0", 3, 4)
    hidden = hidden_places(visible, 12)
    assert torch.equal(torch.cat([visible, hidden], dim=1).sort(dim=1).values, torch.arange(12).expand(2, -1))
    assert torch.equal(hidden, hidden.sort(dim=1).values)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2.0])
def test_an_impossible_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        TubeConfig(ratio)
