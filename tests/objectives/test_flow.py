"""Flow matching on straight paths."""

import math

import pytest
import torch
from builders import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextvid.objectives.flow import NEAREST_TO_DATA, flow_loss, integrate, noisy_latents, velocity_of

seeds = st.integers(0, 1000)


def path(seed: int, latest: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """h1, h0 and times up to ``latest``."""
    draw = seeded(seed)
    h1, h0 = (torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    return h1, h0, latest * torch.rand(2, 3, generator=draw, dtype=torch.float64)


@given(seed=seeds)
def test_a_path_runs_straight_from_noise_to_data(seed: int) -> None:
    h1, h0, tau = path(seed)
    assert torch.equal(noisy_latents(h1, h0, torch.zeros_like(tau)), h0)
    assert torch.equal(noisy_latents(h1, h0, torch.ones_like(tau)), h1)
    step = 1e-3
    speed = (noisy_latents(h1, h0, tau + step) - noisy_latents(h1, h0, tau)) / step
    torch.testing.assert_close(speed, h1 - h0)


def test_each_frame_has_its_own_time() -> None:
    h1, h0, _ = path(0)
    noisy = noisy_latents(h1, h0, torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64))
    assert torch.equal(noisy[0, 0], h0[0, 0])
    assert torch.equal(noisy[0, 1], h1[0, 1])
    assert torch.equal(noisy[1, 0], h1[1, 0])


@given(seed=seeds)
def test_the_loss_is_zero_at_the_truth_and_a_mean_square_elsewhere(seed: int) -> None:
    h1, h0, tau = path(seed)
    assert flow_loss((h1 - h0).float(), h1.float(), h0.float(), tau.float(), "velocity") < 1e-12
    assert flow_loss(h1.float(), h1.float(), h0.float(), tau.float(), "clean") == 0
    off_by_one = flow_loss(h1 - h0 + 1, h1, h0, tau, "velocity")
    assert off_by_one.item() == pytest.approx(1.0, rel=1e-5)


@given(seed=seeds)
def test_a_clean_prediction_is_charged_as_the_velocity_that_it_stands_for(seed: int) -> None:
    h1, h0, tau = path(seed, latest=1 - NEAREST_TO_DATA)
    guess = torch.randn(h1.shape, generator=seeded(seed + 1), dtype=torch.float64)
    velocity = velocity_of(guess, noisy_latents(h1, h0, tau), tau, "clean")
    charged = flow_loss(guess, h1, h0, tau, "clean")
    torch.testing.assert_close(
        charged.double(), flow_loss(velocity, h1, h0, tau, "velocity").double(), rtol=1e-4, atol=0
    )


def test_next_to_the_data_the_weight_is_held() -> None:
    h1, h0, tau = path(0)
    at_the_end = torch.ones_like(tau)
    assert flow_loss(h1 + 1, h1, h0, at_the_end, "clean").item() == pytest.approx(NEAREST_TO_DATA**-2, rel=1e-5)
    assert velocity_of(h1 + 1, h1, at_the_end, "clean").isfinite().all()


@given(seed=seeds, steps=st.integers(1, 40))
def test_the_true_velocity_leads_to_the_data(seed: int, steps: int) -> None:
    h1, h0, _ = path(seed)
    torch.testing.assert_close(integrate(lambda _h, _tau: h1 - h0, h0, steps, "velocity"), h1)


@given(seed=seeds, steps=st.integers(1, int(1 / NEAREST_TO_DATA)))
def test_the_true_clean_latents_are_reached(seed: int, steps: int) -> None:
    h1, h0, _ = path(seed)
    torch.testing.assert_close(integrate(lambda _h, _tau: h1, h0, steps, "clean"), h1)


@pytest.mark.parametrize("steps", [25, 50, 200])
def test_many_steps_leave_a_trace_of_the_noise(steps: int) -> None:
    """Within ``NEAREST_TO_DATA`` of the data the velocity is held back: at most 1/e of that share of the noise is left."""
    h1, h0, _ = path(0)
    left = (integrate(lambda _h, _tau: h1, h0, steps, "clean") - h1) / (h0 - h1)
    assert left.abs().max() < NEAREST_TO_DATA / math.e


def test_times_and_latents_go_to_the_model_step_by_step() -> None:
    h1, h0, _ = path(0)
    seen: list[tuple[Tensor, Tensor]] = []

    def g(h: Tensor, tau: Tensor) -> Tensor:
        seen.append((h, tau))
        return h1 - h0

    integrate(g, h0, 4, "velocity")
    assert [tau.unique().tolist() for _, tau in seen] == [[0.0], [0.25], [0.5], [0.75]]
    for h, tau in seen:
        torch.testing.assert_close(h, noisy_latents(h1, h0, tau.double()))
