"""Tokens made when they are asked for: clips are read, augmented and encoded anew every time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvid.data.clip import LabelledClips
from nextvid.data.view_reader import Reader, ViewTensor
from nextvid.errors import UserError
from nextvid.evaluation.encoders import FrozenEncoder
from nextvid.evaluation.features import Features, Plan, Rows, track
from nextvid.evaluation.probe import autocast

READ_CLIPS = 64
"""Clips, of all views and segments together, that are read at once."""

RowTokens = Float[Tensor, "rows tokens width"]


def labels_of(clips: LabelledClips) -> dict[str, Int64[Tensor, " samples"]]:
    """The class of every clip under every task."""
    labels = [clips.labels(index) for index in range(len(clips))]
    return {task: torch.tensor([label[task] for label in labels], dtype=torch.int64) for task in clips.tasks}


@dataclass
class FreshTokens:
    """A :class:`nextvid.evaluation.features.Supply` of one encoder's tokens of ``layers``, read by ``reader``.

    The tokens of all segments of a view are joined, layer by layer. ``encode_batch``: clips that are encoded at once.
    """

    encoder: FrozenEncoder
    layers: Sequence[int]
    reader: Reader
    tasks: dict[str, tuple[str, ...]]
    labels: dict[str, Int64[Tensor, " samples"]]
    views: int
    segments: int
    encode_batch: int = 64
    device: torch.device = torch.device("cpu")
    precision: str = "float32"

    @property
    def groups(self) -> int:
        """Layers that are read."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.encoder.width

    def __len__(self) -> int:
        """The number of samples."""
        return len(next(iter(self.labels.values())))

    def batches(self, plan: Plan) -> Iterator[tuple[Rows, RowTokens]]:
        """See :class:`nextvid.evaluation.features.Supply`; rows are those of whole samples."""
        return (found[0] for found in self.side_by_side([self], plan))

    @staticmethod
    def side_by_side(supplies: "Sequence[FreshTokens]", plan: Plan) -> Iterator[list[tuple[Rows, RowTokens]]]:
        """What each supply of the same reader makes of every batch, whose clips are read once."""
        one = supplies[0]
        at_once = max(1, READ_CLIPS // (one.views * one.segments))
        batches = []
        for epoch, rows in plan:
            samples = _samples(rows, one.views)
            batches.append([(epoch, samples[i : i + at_once]) for i in range(0, max(1, len(samples)), at_once)])
        found = one.reader.read([part for batch in batches for part in batch])
        for batch in batches:
            parts = [[supply._encoded(*read) for supply in supplies] for read in islice(found, len(batch))]
            yield [_joined(list(of_one)) for of_one in zip(*parts, strict=True)]

    def _encoded(self, samples: list[int], clips: ViewTensor) -> tuple[Rows, RowTokens]:
        rows = (torch.tensor(samples, dtype=torch.int64)[:, None] * self.views + torch.arange(self.views)).flatten()
        if not samples:
            return rows, torch.empty(0, 0, self.width)
        return rows, self.encode(clips)

    def encode(self, clips: ViewTensor) -> RowTokens:
        """The tokens of every view: those of all its segments, one layer after the other; on the encoder's device."""
        kept, views, segments = clips.shape[:3]
        flat = clips.flatten(0, 2)
        with torch.inference_mode(), autocast(self.device, self.precision):
            parts = [self.encoder.encode(part.to(self.device), self.layers) for part in flat.split(self.encode_batch)]
        layers = [torch.cat(layer).float().flatten(1, 2) for layer in zip(*parts, strict=True)]
        joined = [layer.unflatten(0, (kept * views, segments)).flatten(1, 2) for layer in layers]
        tokens = torch.cat(joined, dim=1)
        if not tokens.isfinite().all():
            raise UserError(
                f"{self.encoder.name} gives features that are no numbers: look at the encoder, or at its precision"
            )
        return tokens


def _joined(parts: list[tuple[Rows, RowTokens]]) -> tuple[Rows, RowTokens]:
    read = [part for part in parts if len(part[0])] or parts[:1]
    return torch.cat([rows for rows, _ in read]), torch.cat([tokens for _, tokens in read])


def _samples(rows: Rows, views: int) -> list[int]:
    """The samples of rows that hold all views of each. Raises ``ValueError`` for others."""
    samples = rows[::views] // views
    whole = (samples[:, None] * views + torch.arange(views)).flatten()
    if not torch.equal(whole, rows):
        raise ValueError("rows to read must be all views of each sample, one after the other")
    return samples.tolist()


def in_memory(supply: FreshTokens, title: str, progress: bool = True) -> Features:
    """All tokens of a supply, read once and kept in float32; samples that could not be read are left out."""
    rows_at_once = max(1, READ_CLIPS // (supply.views * supply.segments)) * supply.views
    plan = [(0, rows) for rows in torch.arange(len(supply) * supply.views).split(rows_at_once)]
    tokens: Tensor | None = None
    kept: list[Rows] = []
    done = 0
    for rows, part in track(supply.batches(plan), len(plan), title, progress):
        if not len(rows):
            continue
        if tokens is None:
            tokens = torch.empty(len(supply) * supply.views, *part.shape[1:])
        tokens[done : done + len(rows)] = part
        kept.append(rows[:: supply.views] // supply.views)
        done += len(rows)
    if tokens is None:
        raise UserError("not one clip could be read: see which files are broken, and mend them")
    samples = torch.cat(kept)
    labels = {task: column[samples] for task, column in supply.labels.items()}
    return Features(tokens[:done], labels, supply.tasks, supply.views, supply.groups, samples)
