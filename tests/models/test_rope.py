"""Rotary positions: true rotations of the planes that METHOD names, relative in time, height and width."""

import pytest
import torch
from builders import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextvid.models.rope import axis_width, grid_positions, grid_rotations, rotate, rotations

head_widths = st.sampled_from([6, 12, 16, 20, 32, 64, 80])
places = st.tuples(st.integers(0, 200), st.integers(0, 60), st.integers(0, 60))


def turn(x: Tensor, position: tuple[int, ...]) -> Tensor:
    """``x``, a head ``(head_width,)``, rotated to ``position``."""
    rotation = rotations(torch.tensor([[position]]), x.shape[-1])
    return rotate(x[None, None, None], rotation)[0, 0, 0]


def heads(head_width: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = seeded(seed)
    return torch.randn(head_width, generator=draw), torch.randn(head_width, generator=draw)


@pytest.mark.parametrize(("head_width", "axis", "rest"), [(64, 20, 4), (80, 26, 2), (32, 10, 2)])
def test_widths_of_the_axes(head_width: int, axis: int, rest: int) -> None:
    assert axis_width(head_width) == axis
    x, _ = heads(head_width, seed=0)
    turned = {name: turn(x, position) != x for name, position in (("t", (1, 0, 0)), ("y", (0, 1, 0)), ("x", (0, 0, 1)))}
    for number, name in enumerate(("t", "y", "x")):
        inside = torch.zeros(head_width, dtype=torch.bool)
        inside[number * axis : (number + 1) * axis] = True
        assert torch.equal(turned[name], inside), f"moving along {name} turns other dimensions than its own"
    assert torch.equal(turn(x, (5, 6, 7))[-rest:], x[-rest:])


@given(head_width=st.integers(1, 80).map(lambda half: 2 * half))
def test_an_axis_is_the_widest_even_third(head_width: int) -> None:
    axis = axis_width(head_width)
    assert axis % 2 == 0
    assert 3 * axis <= head_width < 3 * (axis + 2)


@given(head_width=head_widths, place=places, seed=st.integers(0, 100))
def test_each_pair_keeps_its_length_and_can_be_turned_back(head_width: int, place: tuple[int, ...], seed: int) -> None:
    x, _ = heads(head_width, seed)
    turned = turn(x, place)
    torch.testing.assert_close(turned.view(-1, 2).norm(dim=1), x.view(-1, 2).norm(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turn(turned, tuple(-p for p in place)), x, rtol=1e-4, atol=1e-5)


@given(head_width=head_widths, place=places, seed=st.integers(0, 100))
def test_a_pair_turns_by_the_angle_of_its_frequency(head_width: int, place: tuple[int, ...], seed: int) -> None:
    x, _ = heads(head_width, seed)
    pairs = torch.view_as_complex(x.view(-1, 2).double())
    axis = axis_width(head_width)
    angles = [p * 10_000.0 ** (-2 * i / axis) for p in place for i in range(axis // 2)]
    angles += [0.0] * (head_width // 2 - len(angles))
    turned = pairs * torch.polar(
        torch.ones(len(angles), dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
    )
    expected = torch.view_as_real(turned).flatten()
    torch.testing.assert_close(turn(x, place).double(), expected, rtol=1e-5, atol=1e-5)


@given(head_width=head_widths, a=places, b=places, shift=places, seed=st.integers(0, 100))
def test_products_depend_on_differences_of_positions_only(
    head_width: int, a: tuple[int, ...], b: tuple[int, ...], shift: tuple[int, ...], seed: int
) -> None:
    q, k = heads(head_width, seed)
    there = [tuple(p + s for p, s in zip(place, shift, strict=True)) for place in (a, b)]
    torch.testing.assert_close(turn(q, a) @ turn(k, b), turn(q, there[0]) @ turn(k, there[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_products_do_depend_on_differences_along_each_axis(step: tuple[int, ...]) -> None:
    q, k = heads(32, seed=0)
    assert abs(turn(q, (0, 0, 0)) @ turn(k, step) - q @ k) > 1e-2


def test_a_stream_may_run_for_days() -> None:
    q, k = heads(64, seed=0)
    days = 50_000_000
    torch.testing.assert_close(
        turn(q, (days + 3, 1, 2)) @ turn(k, (days, 4, 0)), turn(q, (3, 1, 2)) @ turn(k, (0, 4, 0))
    )


def test_grid_positions_are_time_row_column() -> None:
    positions = grid_positions(2, 2, 3, first_frame=5)
    assert positions[1].tolist() == [[6, 0, 0], [6, 0, 1], [6, 0, 2], [6, 1, 0], [6, 1, 1], [6, 1, 2]]
    assert positions[:, 0, 0].tolist() == [5, 6]


def test_rotation_keeps_the_type() -> None:
    x = torch.randn(1, 3, 2, 12, dtype=torch.bfloat16)
    assert rotate(x, rotations(torch.zeros(1, 3, 3, dtype=torch.long), 12)).dtype == torch.bfloat16


def test_a_single_token_is_turned_to_every_position() -> None:
    x, rotation = (
        torch.randn(1, 1, 2, 12, generator=seeded(0)),
        rotations(grid_positions(2, 2, 2).flatten(0, 1)[None], 12),
    )
    assert torch.equal(rotate(x, rotation), rotate(x.expand(-1, 8, -1, -1), rotation))


def test_rotations_of_a_grid_serve_training_though_inference_asked_first() -> None:
    grid_rotations.cache_clear()
    with torch.inference_mode():
        kept = grid_rotations(2, 2, 3, 12, torch.device("cpu"), 4)
    assert torch.equal(kept, rotations(grid_positions(2, 2, 3, 4), 12))
    x = torch.randn(1, 12, 2, 12, requires_grad=True)
    rotate(x, kept.flatten(0, 1)[None]).sum().backward()
    assert x.grad is not None
