"""Attentive probes by cross-fitting over videos: every video is tested once, by a probe that has seen none of its clips."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvid.errors import UserError
from nextvid.evaluation.features import Plan, Rows
from nextvid.evaluation.fitting import fit_probe
from nextvid.evaluation.probe import SCORING_ROWS, ProbeConfig
from nextvid.randomness import generator

FOLDS = 2
FEWEST_STEPS = 120
SMALLEST_BATCH = 8

Videos = Int64[Tensor, " samples"]
"""The video that each sample is of, by any number."""


@dataclass(frozen=True)
class MadeSupply:
    """A :class:`~nextvid.evaluation.features.Supply` whose tokens are put together when they are asked for.

    ``make`` gives the tokens ``(batch, tokens, channels)`` of samples by their numbers, and ``rows`` are those that this supply
    holds. So the sequences of six orders, or one half of the videos, take no memory of their own.
    """

    make: Callable[[Rows], Float[Tensor, "batch tokens channels"]]
    rows: Rows
    labels: dict[str, Int64[Tensor, " samples"]]
    tasks: dict[str, tuple[str, ...]]
    width: int
    views: int = 1
    groups: int = 1

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.rows)

    def batches(self, plan: Plan) -> Iterator[tuple[Rows, Float[Tensor, "batch tokens channels"]]]:
        """See ``Supply``; every row is there."""
        for _, asked in plan:
            yield asked, self.make(self.rows[asked])

    def take(self, rows: Rows) -> "MadeSupply":
        """The samples ``rows`` of this one."""
        return replace(self, rows=self.rows[rows], labels={task: labels[rows] for task, labels in self.labels.items()})


def folds_of(videos: Videos, folds: int, seed: int) -> Int64[Tensor, " samples"]:
    """The fold of every sample: a video lies in one, and folds differ by one video at most. Raises ``UserError``."""
    units = videos.unique(return_inverse=True)[1]
    count = int(units.max()) + 1
    if not 2 <= folds <= count // 2:
        raise UserError(
            f"{count} videos cannot be cross-fitted in {folds} folds, which takes two videos a fold: give more videos"
        )
    place = torch.from_numpy(generator("folds", seed).permutation(count)).argsort()
    return (place % folds)[units]


def cross_fitted_logits(
    supply: MadeSupply,
    task: str,
    videos: Videos,
    config: ProbeConfig,
    *,
    folds: int = FOLDS,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Float[Tensor, "samples classes"]:
    """The logits of every sample under the probe that was fitted, and chosen, on the other folds.

    The videos of the other folds are parted once more, by video, into those that a probe learns from and those that choose
    among the grid. Raises ``UserError`` for too few videos.
    """
    fold = folds_of(videos, folds, config.seed)
    found = torch.zeros(len(supply), len(supply.tasks[task]))
    for number in range(folds):
        rest, tested = (fold != number).nonzero().flatten(), (fold == number).nonzero().flatten()
        train = supply.take(rest)
        fitted = fit_probe(train, task, paced(config, len(rest)), groups=videos[rest], device=device, progress=progress)
        test = supply.take(tested)
        for rows, tokens in test.batches([(0, part) for part in torch.arange(len(tested)).split(SCORING_ROWS)]):
            found[tested[rows]] = fitted.logits(tokens)
    return found


def paced(config: ProbeConfig, samples: int) -> ProbeConfig:
    """``config`` for so few samples: smaller batches, and epochs enough for ``FEWEST_STEPS`` steps."""
    batch = min(config.batch, max(SMALLEST_BATCH, samples // 8))
    steps = max(1, math.ceil(samples * (1 - config.held_out) / batch))
    return config.model_copy(update={"batch": batch, "epochs": max(config.epochs, math.ceil(FEWEST_STEPS / steps))})
