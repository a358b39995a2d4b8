"""Figures that show whether features are alive, beside the losses."""

import torch
from jaxtyping import Float
from torch import Tensor

from nextvid.objectives.protocol import Health

Features = Float[Tensor, "batch latent_frames places width"]


def figures(found: Health, terms: dict[str, float]) -> dict[str, float]:
    """What a row of ``metrics.jsonl`` says of features, and the skill behind every loss that has a blind rival."""
    return {
        "feature_spread": feature_spread(found.features),
        "effective_rank": effective_rank(found.features),
        **{f"{name}_skill": skill(terms[name], blind) for name, blind in found.blind.items() if name in terms},
    }


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
