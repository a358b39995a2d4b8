"""The decoder (that it stays inside a frame is in tests/objectives/test_never_happens.py)."""

import pytest
import torch
from builders import Case, cases, make_decoder, seeded
from hypothesis import given

from nextvid.models.decoder import Decoder, DecoderConfig, time_features


@given(case=cases(min_frames=1))
def test_a_value_for_every_channel_of_every_place(case: Case) -> None:
    draw = seeded(case.seed)
    shape = (case.batch, case.frames, case.places)
    noisy, z = torch.randn(*shape, 5, generator=draw), torch.randn(*shape, 7, generator=draw)
    assert make_decoder(case)(noisy, z, torch.rand(shape[:2], generator=draw), *case.grid).shape == noisy.shape


def test_it_starts_by_drawing_nothing() -> None:
    decoder = Decoder(DecoderConfig(24, 2, 2, 48), channels=5, condition_width=7)
    assert not decoder(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 7), torch.rand(2, 3), 2, 2).any()


def test_places_are_told_apart() -> None:
    """The same noise and condition everywhere but at one place."""
    case = Case(batch=1, frames=1, height=1, width=4)
    noisy = torch.zeros(1, 1, 4, 5)
    noisy[:, :, 0] = 1
    drawn = make_decoder(case)(noisy, torch.zeros(1, 1, 4, 7), torch.full((1, 1), 0.5), *case.grid).detach()[0, 0]
    assert torch.cdist(drawn[1:], drawn[1:]).add(torch.eye(3)).min() > 1e-3


def test_time_features_are_those_of_dit() -> None:
    tau = torch.tensor([0.0, 0.25, 1.0])
    features = time_features(tau, width=6)
    frequencies = torch.tensor([10_000 ** (-i / 3) for i in range(3)])
    angles = 1000 * tau[:, None] * frequencies
    torch.testing.assert_close(features, torch.cat([angles.cos(), angles.sin()], dim=1), rtol=1e-4, atol=1e-4)


def test_times_close_together_are_told_apart() -> None:
    features = time_features(torch.linspace(0, 1, 101))
    assert torch.cdist(features, features).add(torch.eye(101)).min() > 1e-2


@pytest.mark.parametrize("shape", [(24, 2, 5, 48), (24, 2, 8, 48), (-4, 2, 2, 48), (24, 0, 2, 48), (24, 2, 0, 48)])
def test_an_impossible_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"width=|depth=|heads="):
        DecoderConfig(*shape)
