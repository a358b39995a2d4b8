"""Flow matching on straight paths."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextvid.errors import UserError
from nextvid.objectives.flow import (
    NEAREST_TO_DATA,
    Prediction,
    Sampling,
    Solver,
    flow_loss,
    integrate,
    noisy_latents,
    velocity_of,
)

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
    torch.testing.assert_close(integrate(lambda _h, _tau: h1 - h0, h0, Sampling(steps=steps), "velocity"), h1)


@given(seed=seeds, steps=st.integers(1, int(1 / NEAREST_TO_DATA)))
def test_the_true_clean_latents_are_reached(seed: int, steps: int) -> None:
    h1, h0, _ = path(seed)
    torch.testing.assert_close(integrate(lambda _h, _tau: h1, h0, Sampling(steps=steps), "clean"), h1)


@pytest.mark.parametrize("steps", [25, 50, 200])
def test_many_steps_leave_a_trace_of_the_noise(steps: int) -> None:
    """Within ``NEAREST_TO_DATA`` of the data the velocity is held back: at most 1/e of that share of the noise is left."""
    h1, h0, _ = path(0)
    left = (integrate(lambda _h, _tau: h1, h0, Sampling(steps=steps), "clean") - h1) / (h0 - h1)
    assert left.abs().max() < NEAREST_TO_DATA / math.e


def test_times_and_latents_go_to_the_model_step_by_step() -> None:
    h1, h0, _ = path(0)
    seen: list[tuple[Tensor, Tensor]] = []

    def g(h: Tensor, tau: Tensor) -> Tensor:
        seen.append((h, tau))
        return h1 - h0

    integrate(g, h0, Sampling(steps=4), "velocity")
    assert [tau.unique().tolist() for _, tau in seen] == [[0.0], [0.25], [0.5], [0.75]]
    for h, tau in seen:
        torch.testing.assert_close(h, noisy_latents(h1, h0, tau.double()))


MEAN, DEVIATION = 0.7, 0.4


def towards_a_gaussian(prediction: Prediction) -> Callable[[Tensor, Tensor], Tensor]:
    """The perfect decoder of data ~ N(0.7, 0.4²): its flow leads from noise ``h0`` to ``0.7 + 0.4 h0``."""

    def g(h: Tensor, tau: Tensor) -> Tensor:
        t = tau[:, :, None, None]
        variance = (1 - t) ** 2 + (t * DEVIATION) ** 2
        slope = t * DEVIATION**2 if prediction == "clean" else t * DEVIATION**2 - (1 - t)
        return MEAN + slope / variance * (h - t * MEAN)

    return g


def miss(sampling: Sampling, prediction: Prediction = "velocity") -> float:
    """The root mean square distance from where the exact flow leads."""
    _, h0, _ = path(0)
    drawn = integrate(towards_a_gaussian(prediction), h0, sampling, prediction)
    return (drawn - (MEAN + DEVIATION * sampling.temperature * h0)).square().mean().sqrt().item()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_halving_the_steps_divides_the_error_by_two_to_the_order(solver: Solver, order: int) -> None:
    errors = [miss(Sampling(solver, steps)) for steps in (20, 40, 80)]
    assert [a / b for a, b in itertools.pairwise(errors)] == pytest.approx([2**order] * 2, rel=0.12)


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_heun_comes_nearer_than_euler_for_the_same_evaluations(prediction: Prediction) -> None:
    assert miss(Sampling("heun", 10), prediction) < miss(Sampling("euler", 20), prediction)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_the_adaptive_solver_meets_its_tolerance(tolerance: float, prediction: Prediction) -> None:
    # A clean prediction goes the last 5% in one step, to within this flow's own curvature there.
    spare = 0.004 if prediction == "clean" else 0.0
    assert miss(Sampling("adaptive", tolerance=tolerance), prediction) < tolerance + spare


def evaluations(sampling: Sampling) -> int:
    """How often the decoder is asked."""
    calls: list[Tensor] = []
    gaussian = towards_a_gaussian("velocity")

    def g(h: Tensor, tau: Tensor) -> Tensor:
        calls.append(tau)
        return gaussian(h, tau)

    integrate(g, path(0)[1], sampling, "velocity")
    return len(calls)


def test_the_adaptive_solver_works_no_harder_than_it_must() -> None:
    counts = [evaluations(Sampling("adaptive", tolerance=tolerance)) for tolerance in (1e-2, 1e-4, 1e-6)]
    assert counts[0] < 30
    assert counts == sorted(counts)
    # of order 3: a tolerance of a hundredth costs about 4.6 times as much once steps are many
    assert 2 < counts[2] / counts[1] < 6


def test_an_adaptive_solver_that_does_not_arrive_says_so() -> None:
    _, h0, _ = path(0)
    with pytest.raises(UserError, match="has not reached the end of the flow within 12 evaluations"):
        integrate(
            towards_a_gaussian("velocity"), h0, Sampling("adaptive", tolerance=1e-9, max_evaluations=12), "velocity"
        )
    with pytest.raises(UserError, match="raise the tolerance, or use heun"):
        integrate(lambda h, _: h * math.nan, h0, Sampling("adaptive", max_evaluations=50), "velocity")


@pytest.mark.parametrize("solver", ["euler", "heun", "adaptive"])
def test_a_sample_does_not_depend_on_its_batch(solver: Solver) -> None:
    _, h0, _ = path(0)
    g = lambda h, tau: torch.sin(5 * h) - tau[:, :, None, None]  # noqa: E731
    h0[1] *= 20
    together = integrate(g, h0, Sampling(solver, 8), "velocity")
    alone = torch.cat([integrate(g, row[None], Sampling(solver, 8), "velocity") for row in h0])
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["euler", "heun", "adaptive"])
def test_the_temperature_is_the_deviation_of_the_noise(solver: Solver) -> None:
    assert miss(Sampling(solver, 100, temperature=0.3)) < 0.02
    h1, h0, _ = path(0)
    cold = [
        integrate(towards_a_gaussian("velocity"), h, Sampling(solver, temperature=0.0), "velocity") for h in (h0, h1)
    ]
    assert torch.equal(*cold)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"solver": "adptive"}, "no solver 'adptive' .did you mean 'adaptive'"),
        ({"steps": 0}, "steps=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": math.inf}, "finite"),
        ({"tolerance": 0.0}, "tolerance=0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_sampled_by_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampling(**settings)
