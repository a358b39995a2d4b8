"""Conditional flow matching on straight paths (Lipman et al., arXiv 2210.02747).

``h_tau = (1 - tau) h0 + tau h1`` runs from noise ``h0`` at ``tau = 0`` to data ``h1`` at ``tau = 1`` with velocity ``h1 - h0``.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "batch latent_frames places channels"]
Times = Float[Tensor, "batch latent_frames"]
Prediction = Literal["velocity", "clean"]

NEAREST_TO_DATA = 0.05
"""``1 - tau`` is held at or above this where a clean prediction is turned into a velocity (arXiv 2511.13720)."""


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
def integrate(g: Callable[[Latents, Times], Latents], h0: Latents, steps: int, prediction: Prediction) -> Latents:
    """Follow the flow from noise ``h0`` to a sample in ``steps`` equal Euler steps."""
    h = h0
    for step in range(steps):
        tau = torch.full(h.shape[:2], step / steps, device=h.device)
        h = h + velocity_of(g(h, tau), h, tau, prediction) / steps
    return h
