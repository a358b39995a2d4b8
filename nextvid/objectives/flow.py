"""Conditional flow matching on straight paths (Lipman et al., arXiv 2210.02747), and the solvers that draw from it.

``h_tau = (1 - tau) h0 + tau h1`` runs from noise ``h0`` at ``tau = 0`` to data ``h1`` at ``tau = 1`` with velocity ``h1 - h0``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from nextvid.errors import UserError, nearest

Latents = Float[Tensor, "batch latent_frames places channels"]
Times = Float[Tensor, "batch latent_frames"]
Field = Callable[[Latents, Times], Latents]
Prediction = Literal["velocity", "clean"]
Solver = Literal["euler", "heun", "adaptive"]

NEAREST_TO_DATA = 0.05
"""``1 - tau`` is held at or above this where a clean prediction is turned into a velocity (arXiv 2511.13720)."""
FIRST_STEP, SAFETY, SHRINK, GROW = 0.05, 0.9, 0.2, 5.0
"""Of the adaptive solver: its first step, and how its steps follow its error (Hairer, Nørsett & Wanner 1993, II.4)."""


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn from the flow. Raises ``UserError`` for a solver or a number that there cannot be.

    ``steps``: of ``euler`` (one evaluation of the decoder each) and ``heun`` (two). ``temperature``: the deviation of the
    noise that is started from; 0 starts from its mean. ``tolerance``: what the error of a step of ``adaptive`` may be,
    absolute and relative to the latents; it gives up after ``max_evaluations`` evaluations.
    """

    solver: Solver = "euler"
    steps: int = 25
    temperature: float = 1.0
    tolerance: float = 1e-3
    max_evaluations: int = 2000

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            known = get_args(Solver)
            raise UserError(f"there is no solver '{self.solver}'{nearest(self.solver, known)}; use {', '.join(known)}")
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must be 0 or more, and finite")
        if not 0 < self.tolerance < float("inf"):
            raise UserError(f"tolerance={self.tolerance} must be above 0, and finite")


DEFAULT_SAMPLING = Sampling()


def noisy_latents(h1: Latents, h0: Latents, tau: Times) -> Latents:
    """The point of the path at time ``tau``: ``(1 - tau) h0 + tau h1``."""
    t = tau[:, :, None, None]
    return (1 - t) * h0 + t * h1


def velocity_of(output: Latents, noisy: Latents, tau: Times, prediction: Prediction) -> Latents:
    """The decoder's output as a velocity; a clean prediction ``x`` points from the noisy latent to ``x``."""
    if prediction == "velocity":
        return output
    return (output - noisy) / (1 - tau[:, :, None, None]).clamp(min=NEAREST_TO_DATA)


def flow_loss(output: Latents, h1: Latents, h0: Latents, tau: Times, prediction: Prediction) -> Float[Tensor, ""]:
    """Mean of ``(g(h_tau, z, tau) - (h1 - h0))^2``; a clean prediction is weighted as the velocity it stands for."""
    if prediction == "velocity":
        return (output.float() - (h1 - h0)).square().mean()
    weight = (1 - tau[:, :, None, None]).clamp(min=NEAREST_TO_DATA) ** -2
    return (weight * (output.float() - h1).square()).mean()


@torch.no_grad()
def integrate(g: Field, h0: Latents, sampling: Sampling, prediction: Prediction) -> Latents:
    """Follow the flow from noise ``h0`` of deviation 1, scaled by the temperature, to a sample at ``tau = 1``.

    ``g`` must treat every latent frame by itself, as the decoder does: the adaptive solver gives each its own times. No
    solver lets a sample depend on the others of its batch. Raises ``UserError`` where the adaptive one does not arrive.
    """

    def velocity(h: Latents, tau: Times) -> Latents:
        return velocity_of(g(h, tau), h, tau, prediction)

    h = sampling.temperature * h0
    if sampling.solver == "euler":
        return _euler(velocity, h, sampling.steps)
    if sampling.solver == "heun":
        return _heun(velocity, h, sampling.steps, last_is_euler=prediction == "clean")
    if prediction == "velocity":
        return _adaptive(velocity, h, sampling, end=1.0)
    # Up to here the velocity is not held back, and from here one step leads to what is predicted.
    h = _adaptive(velocity, h, sampling, end=1 - NEAREST_TO_DATA)
    return h + NEAREST_TO_DATA * velocity(h, _times(h, 1 - NEAREST_TO_DATA))


def _euler(velocity: Field, h: Latents, steps: int) -> Latents:
    for step in range(steps):
        h = h + velocity(h, _times(h, step / steps)) / steps
    return h


def _heun(velocity: Field, h: Latents, steps: int, last_is_euler: bool) -> Latents:
    """Euler's step, then again with the mean of the velocities at both its ends.

    ``last_is_euler``: a clean prediction's velocity at ``tau = 1`` is 0 / 0 (Karras et al., arXiv 2206.00364, algorithm 1).
    """
    for step in range(steps):
        slope = velocity(h, _times(h, step / steps))
        ahead = h + slope / steps
        if step + 1 == steps and last_is_euler:
            return ahead
        h = h + (slope + velocity(ahead, _times(h, (step + 1) / steps))) / (2 * steps)
    return h


def _adaptive(velocity: Field, h: Latents, sampling: Sampling, end: float) -> Latents:
    """Bogacki & Shampine's pair of orders 3 and 2 (1989) from ``tau = 0`` to ``end``; each latent frame has its own steps."""
    tau, step = _times(h, 0.0), _times(h, FIRST_STEP)
    k1, evaluations = velocity(h, tau), 1
    while bool((tau < end).any()):
        if evaluations + 3 > sampling.max_evaluations:
            raise UserError(
                f"the adaptive solver has not reached the end of the flow within {sampling.max_evaluations} evaluations of the "
                f"decoder (tolerance {sampling.tolerance:g}, reached {tau.min():.3f} of 1): raise the tolerance, or use heun"
            )
        step = torch.minimum(step, end - tau)
        reached = torch.where(step < end - tau, tau + step, torch.full_like(tau, end))
        s = step[:, :, None, None]
        k2 = velocity(h + s / 2 * k1, tau + step / 2)
        k3 = velocity(h + 3 * s / 4 * k2, tau + 3 * step / 4)
        ahead = h + s * (2 * k1 + 3 * k2 + 4 * k3) / 9
        k4 = velocity(ahead, reached)
        evaluations += 3
        error = _error(s * (-5 * k1 + 6 * k2 + 8 * k3 - 9 * k4) / 72, h, ahead, sampling.tolerance)
        accepted = error <= 1
        tau = torch.where(accepted, reached, tau)
        h, k1 = (torch.where(accepted[:, :, None, None], new, old) for new, old in ((ahead, h), (k4, k1)))
        step = step * (SAFETY * error.clamp(min=1e-12) ** (-1 / 3)).nan_to_num(SHRINK).clamp(SHRINK, GROW)
    return h


def _error(wrong: Latents, before: Latents, after: Latents, tolerance: float) -> Times:
    """The root mean square of each latent frame's error, in units of what is tolerated."""
    allowed = tolerance * (1 + torch.maximum(before.abs(), after.abs()))
    return (wrong / allowed).square().mean(dim=(2, 3)).sqrt()


def _times(h: Latents, tau: float) -> Times:
    return torch.full(h.shape[:2], tau, device=h.device, dtype=h.dtype)
