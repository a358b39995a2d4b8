"""The arrow of time: is a clip played forwards or backwards? (Wei et al. 2018, Learning and Using the Arrow of Time.)

What can be told without knowing how things move: pictures that a codec predicts from earlier ones lose detail with the
distance from a key frame, fades and dissolves of an edit have a direction, a frame that is shown twice because the video is
slower than the clip leaves its rhythm, and a camera's exposure settles after a change. A tubelet holds two frames in
order, so that raw pixels see such things too: what counts is how far an encoder is ahead of them. A still video gives
the same clip twice and cannot be told at all.
"""

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers.crossing import FOLDS, MadeSupply, cross_fitted_logits
from nextvid.evaluation.readers.shares import share_of
from nextvid.evaluation.scores import Interval

TASK = "arrow of time"
CLASSES = ("forwards", "backwards")


class Arrow(BaseModel):
    """``top1``: the share of videos that are told, with its Wilson 95% interval; ``clip_top1``: of clips, each judged alone."""

    model_config = ConfigDict(frozen=True)

    top1: float
    ci95: Interval
    clip_top1: float
    chance: float = 0.5
    videos: int
    clips: int
    """Each is shown twice, forwards and backwards."""


def arrow_of_time(
    tokens: Float[Tensor, "clips 2 tokens channels"],
    videos: Int64[Tensor, " clips"],
    config: ProbeConfig | None = None,
    *,
    folds: int = FOLDS,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Arrow:
    """``tokens``: of each clip's frames in their order, and in the opposite order, encoded anew.

    An attentive probe of two classes learns on some videos and is asked about the others (:func:`cross_fitted_logits`).
    Raises ``UserError`` for too few videos.
    """
    clips = len(tokens)
    both = torch.arange(2 * clips)
    supply = MadeSupply(
        make=lambda rows: tokens[rows // 2, rows % 2],
        rows=both,
        labels={TASK: both % 2},
        tasks={TASK: CLASSES},
        width=tokens.shape[-1],
    )
    logits = cross_fitted_logits(
        supply,
        TASK,
        videos.repeat_interleave(2),
        config or ProbeConfig(),
        folds=folds,
        device=device,
        progress=progress,
    )
    return score_arrow(logits.view(clips, 2, 2), videos)


def score_arrow(logits: Float[Tensor, "clips 2 2"], videos: Int64[Tensor, " clips"]) -> Arrow:
    """The figures of ``logits``: clip, then shown forwards or backwards, then class.

    A video is told where, in the mean over its clips, the margin by which the forward clip is called forwards and the margin
    by which the backward clip is called backwards add up to more than 0: whatever the probe says of both alike cancels. A sum
    of exactly 0 tells nothing, and counts as half.
    """
    margins = logits[..., 0] - logits[..., 1]
    together = (margins[:, 0] - margins[:, 1]).double()
    units = videos.unique(return_inverse=True)[1]
    count = int(units.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, units, together)
    top1, interval = share_of(float(_told(sums).sum()), count)
    alone = torch.stack([margins[:, 0], -margins[:, 1]])
    return Arrow(top1=top1, ci95=interval, clip_top1=float(_told(alone).mean()), videos=count, clips=len(logits))


def _told(margins: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return 0.5 + 0.5 * margins.double().sign()
