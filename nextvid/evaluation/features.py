"""Frozen features: clips rendered once, encoded once, kept as tokens beside their labels."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from nextvid.data.clip import ClipSpec, LabelledClips
from nextvid.data.transforms import normalise
from nextvid.errors import UserError

Encode = Callable[[Tensor], Tensor]
"""Uint8 frames ``(B, F, 3, H, W)`` in, tokens ``(B, T, N, D)`` or ``(B, L, D)`` out."""

Item = TypeVar("Item")

PATIENCE_SECONDS = 2.0
LINE_SECONDS = 10.0
CHUNK_CLIPS = 256


def track(items: Iterable[Item], total: int, title: str, progress: bool = True) -> Iterator[Item]:
    """Pass ``items`` on and show, on standard error, how many are done and the time left.

    A terminal gets a bar after two seconds, anything else a line every ten.
    """
    console = Console(stderr=True)
    if not progress:
        return iter(items)
    return _track_by_bar(items, total, title, console) if console.is_terminal else _track_by_lines(items, total, title)


def _track_by_bar(items: Iterable[Item], total: int, title: str, console: Console) -> Iterator[Item]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=total)
    start = time.monotonic()
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not bar.live.is_started and time.monotonic() - start > PATIENCE_SECONDS:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()


def _track_by_lines(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > LINE_SECONDS:
            last = now
            left = (now - start) * (total - done) / done
            print(f"{title}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RenderedClips:
    """A split of a benchmark in memory, ready for any number of encoders."""

    frames: UInt8[Tensor, "clips frames 3 height width"]
    labels: dict[str, Int64[Tensor, " clips"]]
    tasks: dict[str, tuple[str, ...]]
    """The class names of every task."""


Rows = Int64[Tensor, " _"]
Plan = Iterable[tuple[int, Rows]]
"""Batches that are asked for: the epoch (by which augmentation is drawn) and the rows of each."""


@runtime_checkable
class Supply(Protocol):
    """Tokens of one split for a probe to read, row by row.

    A sample is ``views`` rows, one after the other. A row's tokens are those of ``groups`` layers, one layer after the other, in
    equal parts. ``labels`` and ``tasks`` are by sample.
    """

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """The class names of every task."""
        ...

    @property
    def labels(self) -> dict[str, Int64[Tensor, " samples"]]:
        """The class of every sample under every task."""
        ...

    @property
    def views(self) -> int:
        """Rows of a sample."""
        ...

    @property
    def groups(self) -> int:
        """Layers whose tokens a row holds."""
        ...

    @property
    def width(self) -> int:
        """Channels of a token."""
        ...

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def batches(self, plan: Plan) -> Iterator[tuple[Rows, Float[Tensor, "batch tokens channels"]]]:
        """For every batch of ``plan`` the rows that could be read, and their tokens."""
        ...


@dataclass(frozen=True)
class Features:
    """A :class:`Supply` in memory: the tokens of a frozen encoder over one split, in the split's order."""

    tokens: Float[Tensor, "rows tokens channels"]
    labels: dict[str, Int64[Tensor, " samples"]]
    tasks: dict[str, tuple[str, ...]]
    """The class names of every task."""
    views: int = 1
    groups: int = 1
    samples: Int64[Tensor, " samples"] | None = None
    """Their numbers in the split, where some could not be read."""

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.tokens.shape[-1]

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.tokens) // self.views

    def batches(self, plan: Plan) -> Iterator[tuple[Rows, Float[Tensor, "batch tokens channels"]]]:
        """See :class:`Supply`; every row is there."""
        for _, rows in plan:
            yield rows, self.tokens[rows]


def render(
    clips: LabelledClips, spec: ClipSpec, indices: Sequence[int] | None = None, progress: bool = True
) -> RenderedClips:
    """All clips of a split (or those of ``indices``) with their labels, in order.

    Raises ``UserError`` when there is no clip at all.
    """
    chosen = range(len(clips)) if indices is None else indices
    if not len(chosen):
        raise UserError(f"benchmark {clips.name!r} has no clips: a probe needs some in each split")
    frames = torch.empty(len(chosen), spec.frames, 3, spec.size, spec.size, dtype=torch.uint8)
    rows = track(zip(frames, chosen, strict=True), len(chosen), f"rendering {clips.name}", progress)
    for row, index in rows:
        row.copy_(torch.from_numpy(np.moveaxis(clips.clip(index, spec), -1, 1)))
    labels = [clips.labels(index) for index in chosen]
    columns = {task: torch.tensor([label[task] for label in labels]) for task in clips.tasks}
    return RenderedClips(frames, columns, dict(clips.tasks))


def frozen(encoder: nn.Module) -> Encode:
    """An encoder that takes frames in [-1, 1] as an ``Encode``; it is put in evaluation mode."""
    encoder.eval()
    return lambda frames: encoder(normalise(frames))


def encode_all(
    encode: Encode,
    frames: UInt8[Tensor, "clips frames 3 height width"],
    batch: int = 64,
    progress: bool = True,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "clips tokens channels"]:
    """The tokens of every clip, without gradient, flattened over time and space, on the CPU in ``dtype``.

    float16 halves the memory, but loses features whose mean is large beside their deviation.
    """
    tokens: Tensor | None = None
    starts = range(0, len(frames), batch)
    for start in track(starts, len(starts), "encoding", progress):
        with torch.inference_mode():
            part = encode(frames[start : start + batch].to(device)).flatten(1, -2)
        if tokens is None:
            tokens = torch.empty(len(frames), *part.shape[1:], dtype=dtype)
        tokens[start : start + len(part)] = part
    if tokens is None:
        raise UserError("there are no clips to encode")
    return tokens


def extract(
    encode: Encode,
    clips: LabelledClips,
    spec: ClipSpec,
    batch: int = 64,
    progress: bool = True,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Features:
    """Render and encode a split. For several encoders ``render`` once and call ``features`` for each."""
    rendered = render(clips, spec, progress=progress)
    return features(encode, rendered, batch, progress, device=device, dtype=dtype)


def features(
    encode: Encode,
    rendered: RenderedClips,
    batch: int = 64,
    progress: bool = True,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Features:
    """The features of one encoder on clips that are rendered already."""
    tokens = encode_all(encode, rendered.frames, batch, progress, device=device, dtype=dtype)
    return Features(tokens, rendered.labels, rendered.tasks)


@dataclass(frozen=True)
class Standardise:
    """Takes each channel of each layer to mean 0 and deviation 1 over the clips and tokens that it was fitted on.

    Young encoders' features are anisotropic, and an attentive probe reads them badly without this; AIM's probe has a
    BatchNorm without affine for the same reason.
    """

    mean: Float[Tensor, "groups channels"]
    deviation: Float[Tensor, "groups channels"]

    @classmethod
    def fit(cls, tokens: Float[Tensor, "clips tokens channels"], groups: int = 1) -> "Standardise":
        """The statistics of ``tokens``, summed in float64; a channel that never changes is only centred."""
        parts = tokens.split(CHUNK_CLIPS)
        sums = torch.stack([_grouped(part, groups).sum((0, 2), dtype=torch.float64) for part in parts]).sum(0)
        count = tokens.shape[0] * tokens.shape[1] // groups
        centre = (sums / count).float()
        squares = [_squared_distances(part, centre) for part in parts]
        return cls.of(centre, torch.stack(squares).sum(0) / count)

    @classmethod
    def of(cls, centre: Float[Tensor, "groups channels"], variance: Float[Tensor, "groups channels"]) -> "Standardise":
        """From a mean and a variance; a channel that never changes is only centred."""
        deviation = variance.sqrt()
        still = deviation <= 1e-6 * centre.double().abs().clamp_min(1e-6)
        return cls(centre, torch.where(still, 1.0, deviation).float())

    def apply(self, tokens: Float[Tensor, "clips tokens channels"]) -> Float[Tensor, "clips tokens channels"]:
        """The standardised tokens in float32."""
        mean, deviation = (part[:, None].to(tokens.device) for part in (self.mean, self.deviation))
        return ((_grouped(tokens.float(), len(mean)) - mean) / deviation).flatten(1, 2)


def _grouped(
    tokens: Float[Tensor, "clips tokens channels"], groups: int
) -> Float[Tensor, "clips groups tokens_of_a_group channels"]:
    return tokens.unflatten(1, (groups, -1))


def _squared_distances(
    tokens: Float[Tensor, "clips tokens channels"], centre: Float[Tensor, "groups channels"]
) -> Float[Tensor, "groups channels"]:
    """The sum over clips and tokens of the squared distance from ``centre``, in float64."""
    apart = _grouped(tokens.float(), len(centre)) - centre[:, None].to(tokens.device)
    return apart.square().sum((0, 2), dtype=torch.float64)
