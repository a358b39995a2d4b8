"""What a classifier got right: accuracies with 95% intervals, over all clips, the five best answers, and class by class."""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor

NORMAL_95 = 1.959963984540054
BEST = 5

Interval = tuple[float, float]


def wilson(correct: int, total: int) -> Interval:
    """The 95% Wilson score interval of a proportion, as two fractions."""
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is no proportion")
    share, z2 = correct / total, NORMAL_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = NORMAL_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    low = 0.0 if correct == 0 else centre - spread
    high = 1.0 if correct == total else centre + spread
    return max(0.0, low), min(1.0, high)


class ClassScore(BaseModel):
    """One class of the test split: its clips, and the share of them that was named rightly."""

    name: str
    clips: int
    top1: float
    ci95: Interval


class Scores(BaseModel):
    """Accuracies as fractions of the test clips, with 95% intervals.

    ``top5`` counts a clip whose class is among the five most probable (None where there are five classes or fewer).
    ``mean_class`` is the mean over the classes that occur of each one's accuracy. ``confusion``: clips by true class (row) and
    answered class (column).
    """

    model_config = ConfigDict(frozen=True)

    top1: float
    ci95: Interval
    top5: float | None
    top5_ci95: Interval | None
    mean_class: float
    mean_class_ci95: Interval
    clips: int
    per_class: list[ClassScore]
    confusion: list[list[int]]


def score(
    probabilities: Float[Tensor, "clips classes"], truth: Int64[Tensor, " clips"], names: Sequence[str]
) -> Scores:
    """The scores of ``probabilities`` (any numbers that rank the classes) against the true classes."""
    clips, classes = probabilities.shape
    answers = probabilities.argmax(-1)
    correct = int((answers == truth).sum())
    top5 = None
    if classes > BEST:
        top5 = int((probabilities.topk(BEST, dim=-1).indices == truth[:, None]).any(-1).sum())
    confusion = torch.bincount(truth * classes + answers, minlength=classes**2).view(classes, classes)
    mean, interval = mean_class_accuracy(confusion)
    return Scores(
        top1=correct / clips,
        ci95=wilson(correct, clips),
        top5=None if top5 is None else top5 / clips,
        top5_ci95=None if top5 is None else wilson(top5, clips),
        mean_class=mean,
        mean_class_ci95=interval,
        clips=clips,
        per_class=_by_class(confusion, names),
        confusion=confusion.tolist(),
    )


def mean_class_accuracy(confusion: Int64[Tensor, "classes classes"]) -> tuple[float, Interval]:
    """The mean of the accuracies of the classes that occur, and its 95% interval.

    The interval takes classes as given and clips as drawn: the variance of the mean is the sum of each class's
    ``p (1 - p) / n`` over the square of the number of classes, with ``p`` after two further clips, one right and one wrong, so
    that a class of few clips that are all right is not certain.
    """
    clips = confusion.sum(1)
    occurs = clips > 0
    right, of = confusion.diagonal()[occurs].double(), clips[occurs].double()
    mean = float((right / of).mean())
    likely = (right + 1) / (of + 2)
    spread = NORMAL_95 * float((likely * (1 - likely) / of).sum().sqrt()) / len(of)
    return mean, (max(0.0, mean - spread), min(1.0, mean + spread))


def _by_class(confusion: Int64[Tensor, "classes classes"], names: Sequence[str]) -> list[ClassScore]:
    rows = zip(names, confusion.sum(1).tolist(), confusion.diagonal().tolist(), strict=True)
    return [
        ClassScore(name=name, clips=clips, top1=right / clips, ci95=wilson(right, clips))
        for name, clips, right in rows
        if clips
    ]


def class_map(names: Sequence[str]) -> str:
    """Tells a list of classes, in its order, from any other."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
