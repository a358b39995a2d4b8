"""Shares of videos with 95% intervals, where a tie counts in part and where one video is asked several times."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nextvid.evaluation.scores import NORMAL_95, Interval, wilson

SLACK = 1e-9


def share_of(right: float, total: int) -> tuple[float, Interval]:
    """A share and its Wilson interval; where ``right`` is no whole number, from the one below to the one above."""
    low, _ = wilson(max(0, math.floor(right + SLACK)), total)
    _, high = wilson(min(total, math.ceil(right - SLACK)), total)
    return right / total, (low, high)


def clustered(means: Float[Tensor, " clusters"]) -> tuple[float, Interval]:
    """The mean over clusters, such as videos, of each one's own accuracy, and its 95% interval.

    Clusters are taken as drawn, whatever goes on inside them: the variance of the mean is that between clusters over their
    number. Two further clusters, one all right and one all wrong, count in that variance, so that a few clusters that agree
    are not certain.
    """
    likely = torch.cat([means.double(), torch.tensor([0.0, 1.0], dtype=torch.float64)])
    mean = float(means.double().mean())
    spread = NORMAL_95 * float(likely.std(correction=1)) / math.sqrt(len(means))
    return mean, (max(0.0, mean - spread), min(1.0, mean + spread))
