"""One vector a clip: what every reader but the attentive probe reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nextvid.errors import UserError
from nextvid.evaluation.features import Rows, Standardise, Supply, track
from nextvid.evaluation.fitting import Groups, split
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.scores import Scores

READ_ROWS = 64

Vectors = Float[Tensor, "samples channels"]


@dataclass(frozen=True)
class Pooled:
    """A split as one vector a sample, under one task. ``samples``: which of the split's samples could be read, rising."""

    vectors: Vectors
    labels: Int64[Tensor, " samples"]
    names: tuple[str, ...]
    """The class names."""
    samples: Int64[Tensor, " samples"]
    all_labels: Int64[Tensor, " all_samples"]
    """Of every sample of the split, read or not: who is held out does not depend on what could be read."""

    def __len__(self) -> int:
        """The number of samples that could be read."""
        return len(self.vectors)

    def parts(self, config: ProbeConfig, groups: Groups | None = None) -> tuple[Rows, Rows]:
        """Rows that are learnt from and rows that choose: those of the attentive probe (``fitting.split``), rising.

        ``groups`` is by sample of the whole split. Raises ``UserError`` where there are too few.
        """
        _, held = split(self.all_labels, config, groups)
        chooses = torch.isin(self.samples, held)
        if not chooses.any() or chooses.all():
            raise UserError(
                f"of {len(self.all_labels)} train clips {len(self)} could be read, too few to hold "
                f"{config.held_out:.0%} of them out: mend the broken files, or give more"
            )
        return (~chooses).nonzero().flatten(), chooses.nonzero().flatten()


class Reading(BaseModel):
    """What a reader with one setting to choose made of the test clips.

    ``chosen`` did best on the held-out part of train, whose accuracies are ``held_out`` by setting.
    """

    model_config = ConfigDict(frozen=True)

    scores: Scores
    setting: str
    """What was chosen: ``C`` or ``k``."""
    chosen: float
    held_out_top1: float
    held_out: dict[str, float]
    held_out_clips: int
    train_clips: int
    standardised: bool


def pool(supply: Supply, task: str, *, progress: bool = True) -> Pooled:
    """The mean over a sample's tokens, and over its views; of several layers one mean a layer, side by side.

    So the vectors are ``(samples, layers * channels)``, in float32. Raises ``UserError`` for an unknown task, or where nothing
    can be read.
    """
    if task not in supply.tasks:
        raise UserError(f"these clips have no labels for task {task!r}; they have {', '.join(sorted(supply.tasks))}")
    rows = len(supply) * supply.views
    plan = [(0, part) for part in torch.arange(rows).split(READ_ROWS)]
    means = torch.zeros(rows, supply.groups * supply.width)
    known = torch.zeros(rows, dtype=torch.bool)
    for read, tokens in track(supply.batches(plan), len(plan), f"pooling for {task}", progress):
        if len(read):
            means[read] = tokens.float().unflatten(1, (supply.groups, -1)).mean(2).flatten(1).cpu()
            known[read] = True
    whole = known.view(-1, supply.views).all(1)
    if not whole.any():
        raise UserError("not one clip could be read: see which files are broken, and mend them")
    vectors = means.view(-1, supply.views, means.shape[1]).mean(1)
    labels = supply.labels[task]
    return Pooled(vectors[whole], labels[whole], supply.tasks[task], whole.nonzero().flatten(), labels)


def standardised(reference: Float[Tensor, "clips channels"], vectors: Vectors) -> Vectors:
    """``vectors`` with every channel at mean 0 and deviation 1 by the statistics of ``reference``."""
    return Standardise.fit(reference[:, None]).apply(vectors[:, None])[:, 0]


def check_pooled(train: Pooled, test: Pooled) -> None:
    """Raise ``UserError`` where two splits do not belong together, or test has a class that train has not."""
    if train.names != test.names:
        raise UserError("train and test differ in their classes: take both from one benchmark")
    if train.vectors.shape[1] != test.vectors.shape[1]:
        raise UserError(
            f"train vectors have {train.vectors.shape[1]} channels and test vectors {test.vectors.shape[1]}: extract both "
            "with one encoder, from the same layers"
        )
    unknown = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if unknown:
        raise UserError(
            f"the test split has clips of {test.names[unknown[0]]!r} ({len(unknown)} of its classes), and the train split has "
            "none that can be read: add train clips of every class that is tested, or leave those classes out of the test split"
        )
