"""Clip order: in which of 3! = 6 orders are three clips of a video shown? (Xu et al. 2019, Video Clip Order Prediction.)

What can be told without knowing how things go: titles and fades at a video's ends, a codec's picture getting worse, or a
camera's exposure settling, where all videos were made alike; and that the end of one clip looks like the beginning of the
next where little time lies between them. What raw pixels reach says how much of that there is. Many videos have no order that
anyone could tell.
"""

from itertools import permutations

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nextvid.evaluation.features import Rows
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers.crossing import FOLDS, MadeSupply, cross_fitted_logits
from nextvid.evaluation.readers.shares import clustered
from nextvid.evaluation.scores import Interval

CLIPS = 3
ORDERS = tuple(permutations(range(CLIPS)))
TASK = "clip order"
CLASSES = tuple("-".join(str(clip + 1) for clip in order) for order in ORDERS)
CODE_CHANNELS, WHOLE_CHANNELS = 12, 16


class Order(BaseModel):
    """``top1``: the share of shown sequences whose order is named, with a 95% interval that takes videos as drawn."""

    model_config = ConfigDict(frozen=True)

    top1: float
    ci95: Interval
    chance: float = 1 / len(ORDERS)
    videos: int
    sequences: int


def clip_order(
    tokens: Float[Tensor, "videos 3 time channels"],
    config: ProbeConfig | None = None,
    *,
    folds: int = FOLDS,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Order:
    """``tokens``: of three clips of each video in the order of time, each clip encoded by itself, averaged over places.

    Each video is shown in all six orders; the probe reads the tokens of the three clips as shown, each with a code of its
    place (first, second, third) in further channels. It learns on some videos and is asked about the others
    (:func:`cross_fitted_logits`). Raises ``UserError`` for too few videos.
    """
    videos, orders = len(tokens), torch.tensor(ORDERS)
    codes = place_codes(tokens.shape[-1])
    rows = torch.arange(videos * len(orders))

    def make(asked: Rows) -> Float[Tensor, "batch shown channels"]:
        shown = tokens[asked[:, None] // len(orders), orders[asked % len(orders)]]
        coded = codes[:, None].expand(len(asked), -1, tokens.shape[2], -1)
        return torch.cat([shown.float(), coded], dim=-1).flatten(1, 2)

    supply = MadeSupply(
        make=make,
        rows=rows,
        labels={TASK: rows % len(orders)},
        tasks={TASK: CLASSES},
        width=tokens.shape[-1] + codes.shape[-1],
    )
    logits = cross_fitted_logits(
        supply, TASK, rows // len(orders), config or ProbeConfig(), folds=folds, device=device, progress=progress
    )
    return score_order(logits.view(videos, len(orders), len(orders)))


def score_order(logits: Float[Tensor, "videos 6 6"]) -> Order:
    """The figures of ``logits``: video, then the order that it was shown in, then class."""
    right = (logits.argmax(-1) == torch.arange(len(ORDERS))).double().mean(1)
    top1, interval = clustered(right)
    return Order(top1=top1, ci95=interval, videos=len(logits), sequences=len(logits) * len(ORDERS))


def place_codes(width: int) -> Float[Tensor, "3 code_channels"]:
    """Channels that say at which place a clip is shown, so many that ``width`` and they come to a multiple of 16.

    So a probe can have 16 heads. A channel is 1 for the tokens of one place and 0 for those of the other two.
    """
    channels = CODE_CHANNELS + -(width + CODE_CHANNELS) % WHOLE_CHANNELS
    return torch.eye(CLIPS)[:, torch.arange(channels) % CLIPS]
