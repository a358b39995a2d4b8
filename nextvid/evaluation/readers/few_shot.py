"""Few shots: k labelled clips a class are averaged, and the nearest mean names the test clips; again and again."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nextvid.errors import UserError
from nextvid.evaluation.features import track
from nextvid.evaluation.readers.pooled import Pooled, Vectors, check_pooled, standardised
from nextvid.evaluation.scores import Interval
from nextvid.randomness import generator

SHOTS = (1, 5, 10)
TRIALS = 20


class FewShot(BaseModel):
    """The mean over ``trials`` draws of the accuracy on all test clips, with its 95% interval over draws (Student's t).

    The interval says how much hangs on which clips are drawn, not on which clips are tested.
    """

    model_config = ConfigDict(frozen=True)

    shots: int
    """Labelled clips a class."""
    top1: float
    ci95: Interval
    trials: int
    classes: int
    test_clips: int
    each: list[float]
    """The accuracy of every draw."""


def few_shot(
    train: Pooled,
    test: Pooled,
    *,
    shots: Sequence[int] = SHOTS,
    trials: int = TRIALS,
    seed: int = 0,
    standardise: bool = True,
    progress: bool = True,
) -> list[FewShot]:
    """For each of ``shots``: vectors of unit length are averaged class by class; the mean of largest cosine answers.

    The draws of more shots hold those of fewer. ``standardise``: by the statistics of all train clips, without their labels.
    Raises ``UserError`` where a class has too few train clips.
    """
    check_pooled(train, test)
    if trials < 2 or not shots or min(shots) < 1:
        raise UserError(f"few shots need 2 trials and 1 shot at least, and trials is {trials}, shots {list(shots)}")
    classes = train.labels.unique()
    members = [(train.labels == label).nonzero().flatten() for label in classes.tolist()]
    for label, rows in zip(classes.tolist(), members, strict=True):
        if len(rows) < max(shots):
            raise UserError(
                f"class {train.names[label]!r} has {len(rows)} train clips, and {max(shots)} shots need {max(shots)}: give "
                "more clips of it, or ask for fewer shots"
            )
    known, asked = (
        F.normalize(standardised(train.vectors, vectors) if standardise else vectors, dim=-1)
        for vectors in (train.vectors, test.vectors)
    )
    right: dict[int, list[float]] = {count: [] for count in shots}
    for trial in track(range(trials), trials, "few shots", progress):
        orders = [_shuffled(rows, seed, trial, label) for rows, label in zip(members, classes.tolist(), strict=True)]
        for count, each in right.items():
            means = torch.stack([known[order[:count]].mean(0) for order in orders])
            each.append(_accuracy(means, classes, asked, test.labels))
    return [_scored(count, each, len(classes), len(test)) for count, each in right.items()]


def _shuffled(rows: Int64[Tensor, " clips"], seed: int, trial: int, label: int) -> Int64[Tensor, " clips"]:
    return rows[torch.from_numpy(generator("few shot", seed, trial, label).permutation(len(rows)))]


def _accuracy(
    means: Vectors, classes: Int64[Tensor, " samples"], asked: Tensor, truth: Int64[Tensor, " tested"]
) -> float:
    answers = classes[(asked @ F.normalize(means, dim=-1).T).argmax(-1)]
    return float((answers == truth).double().mean())


def _scored(shots: int, each: list[float], classes: int, test_clips: int) -> FewShot:
    from scipy.stats import t  # noqa: PLC0415

    found = torch.tensor(each, dtype=torch.float64)
    mean = float(found.mean())
    spread = float(t.ppf(0.975, len(each) - 1)) * float(found.std()) / math.sqrt(len(each))
    interval = max(0.0, mean - spread), min(1.0, mean + spread)
    return FewShot(
        shots=shots, top1=mean, ci95=interval, trials=len(each), classes=classes, test_clips=test_clips, each=each
    )
