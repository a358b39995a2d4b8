"""Figures that show whether features are alive, beside the losses."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nextvid.objectives.protocol import Health

Features = Float[Tensor, "batch latent_frames places width"]


LEAST_SPREAD, ONE_DIRECTION = 0.02, 1.5
"""Features that differ by less from clip to clip, or use fewer directions, have collapsed."""
COPIED = 2.0
"""From this ``copying`` on, predictions are nearer to the frame before than that frame is to the one that they predict.

A copy but for an error e, of frames that are d apart, has 1 + d²/e². Healthy runs, which cannot foresee everything, stand near 1.
"""


def figures(found: Health, terms: dict[str, float]) -> dict[str, float]:
    """What a row of ``metrics.jsonl`` says of features, and the skill behind every loss that has a blind rival.

    One clip alone has no spread and no rival.
    """
    several = len(found.features) > 1
    skills = {f"{name}_skill": skill(terms[name], blind) for name, blind in found.blind.items() if name in terms}
    ratio = {"alignment_over_flow": terms["alignment"] / terms["flow"]} if {"alignment", "flow"} <= terms.keys() else {}
    return {
        **({"feature_spread": feature_spread(found.features)} if several else {}),
        "effective_rank": effective_rank(found.features),
        **(skills if several else {}),
        **ratio,
        **found.further,
    }


def alarms(row: dict[str, Any]) -> dict[str, str]:
    """What a row shows to have gone wrong with features, by name, with figures and what to do."""
    found = {}
    spread, rank, copied = (row.get(name) for name in ("feature_spread", "effective_rank", "copying"))
    if spread is not None and spread < LEAST_SPREAD:
        found["collapse"] = f"feature_spread is {spread:.3g}: the features of all clips look alike. {_AGAINST_COLLAPSE}"
    elif rank is not None and rank < ONE_DIRECTION:
        found["collapse"] = f"effective_rank is {rank:.3g}: features use one direction only. {_AGAINST_COLLAPSE}"
    if copied is not None and copied > COPIED:
        found["copying"] = (
            f"copying is {copied:.3g}: predictions repeat the frame before, and are nearer to it than it is to the frame "
            "that they predict. Use footage that moves more or fewer frames a second, or hide more of each frame"
        )
    return found


_AGAINST_COLLAPSE = (
    "It does not come back: start anew with lower learning rates and, where there is one, a stages.*.ema nearer to 1"
)


def feature_spread(features: Features) -> float:
    """Mean over channels of the deviation over samples, at each place and frame: 0 where all clips look alike."""
    return features.float().std(dim=0).mean().item()


def skill(loss: float, blind: float) -> float:
    """How much of what a predictor that knows nothing of the clip gets wrong is right: 1 all, 0 none, negative: less."""
    return 1.0 - loss / max(blind, 1e-12)


def effective_rank(features: Features, at_most: int = 2048) -> float:
    """RankMe (arXiv 2210.02885): the exponential of the entropy of the singular values of tokens, centred."""
    tokens = features.float().flatten(0, 2)
    tokens = tokens[:: max(1, -(-len(tokens) // at_most))]
    centred = (tokens - tokens.mean(dim=0)).double()
    # Singular values by way of the covariance, which is small: a fifth of the time.
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(p * p.log()).sum()).item()
