"""Figures that show whether features are alive, beside the losses."""

import torch
from jaxtyping import Float
from torch import Tensor

Features = Float[Tensor, "batch latent_frames places width"]


def feature_spread(features: Features) -> float:
    """Mean over channels of the deviation over samples, at each place and frame: 0 where all clips look alike."""
    return features.float().std(dim=0).mean().item()


def positions_only_loss(features: Features) -> float:
    """The alignment loss of a predictor that knows the position of a token and nothing of its clip.

    It would give the mean over clips at each place and frame, so its loss is the (unbiased) variance over clips there.
    """
    return features.float().var(dim=0).mean().item()


def alignment_skill(alignment: float, features: Features) -> float:
    """How much of what position alone cannot tell is predicted: 1 all, 0 none, negative: worse than position alone."""
    return 1.0 - alignment / max(positions_only_loss(features), 1e-12)


def effective_rank(features: Features, at_most: int = 2048) -> float:
    """RankMe (arXiv 2210.02885): the exponential of the entropy of the singular values of tokens, centred."""
    tokens = features.float().flatten(0, 2)
    tokens = tokens[:: max(1, -(-len(tokens) // at_most))]
    values = torch.linalg.svdvals(tokens - tokens.mean(dim=0))
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(p * p.log()).sum()).item()
