"""Same-video retrieval: does a clip lie nearest to another clip of its own video? No label is needed."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nextvid.errors import UserError
from nextvid.evaluation.readers.pooled import standardised
from nextvid.evaluation.readers.shares import share_of
from nextvid.evaluation.scores import BEST, Interval

BLOCK_VALUES = 1 << 23
TIE = 1e-6
"""Cosines nearer to one another than this are equal."""


class Retrieval(BaseModel):
    """Recall among the ``videos`` clips of the gallery, with Wilson 95% intervals over queries."""

    model_config = ConfigDict(frozen=True)

    top1: float
    ci95: Interval
    top5: float
    top5_ci95: Interval
    mean_reciprocal_rank: float
    chance: float
    """Of ``top1``."""
    chance_top5: float
    videos: int


def retrieve(
    queries: Float[Tensor, "videos channels"],
    gallery: Float[Tensor, "videos channels"],
    *,
    standardise: bool = True,
) -> Retrieval:
    """Row *i* of both is of video *i*: each query ranks the whole gallery by cosine, and its own video should come first.

    Gallery clips that are as similar as the right one share its ranks: each order of them is as likely, so that vectors that
    are all alike score chance. ``standardise``: by the statistics of both together. It is asked whether a video is told from
    others by anything at all, colours and a watermark included: compare with what pixels reach. Two files of one scene count
    as errors. Raises ``UserError`` for fewer than two videos.
    """
    videos = len(queries)
    if videos < 2:
        raise UserError(f"retrieval needs 2 videos at least, and there is {videos}: give more videos")
    if standardise:
        both = torch.cat([queries, gallery])
        queries, gallery = standardised(both, queries), standardised(both, gallery)
    above, tied = ranks_of(queries, gallery)
    top1, interval = share_of(_recall(above, tied, 1), videos)
    top5, interval5 = share_of(_recall(above, tied, BEST), videos)
    return Retrieval(
        top1=top1,
        ci95=interval,
        top5=top5,
        top5_ci95=interval5,
        mean_reciprocal_rank=_mean_reciprocal(above, tied, videos),
        chance=1 / videos,
        chance_top5=min(1.0, BEST / videos),
        videos=videos,
    )


def ranks_of(
    queries: Float[Tensor, "videos channels"], gallery: Float[Tensor, "videos channels"]
) -> tuple[Int64[Tensor, " videos"], Int64[Tensor, " videos"]]:
    """For every query how many clips are more similar than its own video's, and how many others are equally so."""
    known = F.normalize(gallery.double(), dim=-1)
    above, tied = [], []
    for rows in torch.arange(len(queries)).split(max(1, BLOCK_VALUES // len(gallery))):
        similar = F.normalize(queries[rows].double(), dim=-1) @ known.T
        apart = similar - similar.gather(1, rows[:, None])
        above.append((apart > TIE).sum(1))
        tied.append((apart.abs() <= TIE).sum(1) - 1)
    return torch.cat(above), torch.cat(tied)


def _recall(above: Int64[Tensor, " videos"], tied: Int64[Tensor, " videos"], best: int) -> float:
    """The expected number of queries whose own video is among the ``best`` first."""
    return float(((best - above) / (tied + 1.0)).clamp(0, 1).sum())


def _mean_reciprocal(above: Int64[Tensor, " videos"], tied: Int64[Tensor, " videos"], videos: int) -> float:
    reciprocals = 1 / torch.arange(1, videos + 1, dtype=torch.float64)
    summed = torch.cat([torch.zeros(1, dtype=torch.float64), reciprocals.cumsum(0)])
    return float(((summed[above + tied + 1] - summed[above]) / (tied + 1)).mean())
