"""What one would rather look at than read of a probe: its mistakes, near clips, what it attends to, a map of the test clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from nextvid.evaluation.features import Supply
from nextvid.evaluation.probe import FittedProbe

FrameStack = UInt8[np.ndarray, "frames height width 3"]
FramesOf = Callable[[int], FrameStack]
"""The frames of a clip by its number in its split."""
TokensOf = Callable[[Tensor], Tensor]
"""The tokens ``(some, tokens, width)`` of the test clips of these numbers."""

MOST_POINTS = 1000
PERPLEXITY = 30.0
STEPS = 500
WIDTH_BEFORE_MAP = 50
"""Channels that t-SNE is given; more are taken down to so many principal components."""
KEPT_SIDE, KEPT_FRAMES = 160, 64
"""A clip is kept with at most so many pixels a side, and so many frames."""
TRAIN_ROWS = 8192
TEST_ROWS = 64


@dataclass(frozen=True)
class Misread:
    """A test clip that the probe gives a wrong class, and the probabilities of that class and of the true one."""

    frames: FrameStack
    truth: str
    answer: str
    probability: float
    truth_probability: float


class Neighbour(NamedTuple):
    """A train clip, its class, and its cosine similarity to the clip that was asked for."""

    frames: FrameStack
    label: str
    similarity: float


@dataclass(frozen=True)
class Neighbours:
    """A test clip and the train clips whose pooled features are nearest to its own, nearest first."""

    frames: FrameStack
    label: str
    nearest: list[Neighbour]


@dataclass(frozen=True)
class Attended:
    """A test clip and where the probe reads it: a weight a token, of sum 1, over the layers and the heads together."""

    frames: FrameStack
    weights: Float[np.ndarray, "time rows columns"]
    truth: str
    answer: str


@dataclass(frozen=True)
class FeatureMap2d:
    """Test clips in two dimensions, so that clips with like features are near each other; classes by number."""

    points: Float[np.ndarray, "clips 2"]
    labels: Int64[np.ndarray, " clips"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """What a page of a probe shows beside its figures; what could not be made is empty."""

    misread: list[Misread]
    neighbours: list[Neighbours]
    attended: list[Attended]
    points: FeatureMap2d | None


class TokenGrid(NamedTuple):
    """How the tokens of a row lie: layer by layer, in each segment by segment, in each latent frames of rows and columns."""

    groups: int
    segments: int
    time: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Material:
    """Clips of one split to look at: frames by number, the class of each, and a vector each."""

    frames: FramesOf
    labels: Int64[Tensor, " clips"]
    pooled: Float[Tensor, "clips width"]


class Amount(NamedTuple):
    """How many clips of each kind are shown."""

    misread: int = 12
    queries: int = 6
    nearest: int = 4
    attended: int = 6


def look(
    fitted: FittedProbe,
    test_tokens: Float[Tensor, "clips tokens channels"] | TokensOf,
    grid: tuple[int, int, int, int, int] | None,
    frames: FramesOf,
    truth: Int64[Tensor, " clips"],
    probabilities: Float[Tensor, "clips classes"],
    names: Sequence[str],
    *,
    train: Material | None = None,
    test_pooled: Float[Tensor, "clips width"] | None = None,
    amount: Amount | None = None,
    seed: int = 0,
) -> Look:
    """A handful of test clips, seen from all sides; frames and tokens are fetched for what is shown, and for nothing else.

    ``grid``: a :class:`TokenGrid`, or None where tokens have no places, and then no attention is shown. ``frames``: of a test
    clip, those that its first segment is made of. ``test_pooled``: the vectors of near clips and of the map; by default the mean
    of each clip's tokens, which reads them all once.
    """
    amount = amount or Amount()
    tokens_of = test_tokens.__getitem__ if isinstance(test_tokens, Tensor) else test_tokens
    pooled = _pooled(tokens_of, len(truth)) if test_pooled is None else test_pooled.float()
    known = pooled if train is None else train.pooled.float()
    centre, spread = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    level = (pooled - centre) / spread
    misread = _misread(frames, truth, probabilities, names, amount.misread)
    neighbours = []
    if train is not None:
        queries = one_of_each(truth, amount.queries, seed)
        found = nearest_clips(level, (known - centre) / spread, queries, amount.nearest)
        neighbours = _neighbours(queries, *found, frames, truth, train, names)
    attended = []
    if grid is not None:
        shown = _clear_cases(truth, probabilities, amount.attended)
        attended = _attended(fitted, tokens_of(shown), TokenGrid(*grid), shown, frames, truth, probabilities, names)
    return Look(misread, neighbours, attended, _map(level, truth, names, seed))


def first_views(supply: Supply, samples: Int64[Tensor, " samples"]) -> TokensOf:
    """What :func:`look` takes as tokens: those of the first view of each of ``samples``, whose place is the clip's number."""

    def tokens_of(places: Int64[Tensor, " some"]) -> Float[Tensor, "some tokens channels"]:
        rows = (samples[places, None] * supply.views + torch.arange(supply.views)).flatten()
        return torch.cat([tokens.cpu()[:: supply.views] for _, tokens in supply.batches([(0, rows)])])

    return tokens_of


def most_confident_mistakes(
    probabilities: Float[Tensor, "clips classes"], truth: Int64[Tensor, " clips"], count: int
) -> Int64[Tensor, " mistakes"]:
    """At most ``count`` clips whose most probable class is not the true one: of each true class the surest, then the next."""
    sure, answers = probabilities.max(-1)
    return _spread_over_classes(truth, sure, answers != truth, count)


def nearest_clips(
    test: Float[Tensor, "test width"],
    train: Float[Tensor, "train width"],
    queries: Int64[Tensor, " queries"],
    count: int,
) -> tuple[Int64[Tensor, "queries nearest"], Float[Tensor, "queries nearest"]]:
    """The ``count`` train clips that are nearest to each of the test clips ``queries`` by cosine, and how near they are."""
    asked = F.normalize(test[queries].float(), dim=-1)
    parts = [asked @ F.normalize(part.float(), dim=-1).T for part in train.split(TRAIN_ROWS)]
    similar, nearest = torch.cat(parts, dim=1).topk(min(count, len(train)), dim=1)
    return nearest, similar


def points_of(pooled: Float[Tensor, "clips width"], seed: int = 0) -> Float[np.ndarray, "clips 2"]:
    """Clips in two dimensions by t-SNE, the same for the same seed. Raises ``ValueError`` for more than ``MOST_POINTS``."""
    clips = len(pooled)
    if clips > MOST_POINTS:
        raise ValueError(f"a map is made of at most {MOST_POINTS} clips, not {clips}")
    values = pooled.double().numpy()
    if clips < 4 or np.ptp(values, axis=0).max() < 1e-9:
        return _first_components(values, 2)
    from sklearn.manifold import TSNE  # noqa: PLC0415  # a second to import, for what few commands do
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    values = _first_components(values, min(WIDTH_BEFORE_MAP, max(2, values.shape[1])))
    perplexity = min(PERPLEXITY, (clips - 1) / 3)
    method = TSNE(init="pca", perplexity=perplexity, max_iter=STEPS, random_state=seed, n_jobs=1)
    with threadpool_limits(
        1
    ):  # its threads wait for one another in a loop: on a busy machine one is several times faster
        made = method.fit_transform(values)
    return made.astype(np.float64)


def attention_maps(
    attention: Float[Tensor, "clips tokens"], grid: TokenGrid
) -> Float[Tensor, "clips time rows columns"]:
    """How much of each place of the first segment is read, over all layers; sums to 1. Raises ``ValueError`` for another grid."""
    if attention.shape[1] != np.prod(grid):
        raise ValueError(f"{attention.shape[1]} tokens do not lie in {' x '.join(str(part) for part in grid)}")
    first = attention.float().unflatten(1, tuple(grid)).sum(1)[:, 0]
    return first / first.sum((1, 2, 3), keepdim=True).clamp_min(1e-12)


def one_of_each(truth: Int64[Tensor, " clips"], count: int, seed: int = 0) -> Int64[Tensor, " chosen"]:
    """At most ``count`` clips, drawn so that no class has a second one before every class has one."""
    order = torch.rand(len(truth), generator=torch.Generator().manual_seed(seed))
    return _spread_over_classes(truth, order, torch.ones_like(truth, dtype=torch.bool), count)


def _spread_over_classes(
    truth: Int64[Tensor, " clips"], rank: Float[Tensor, " clips"], allowed: Bool[Tensor, " clips"], count: int
) -> Int64[Tensor, " chosen"]:
    """The highest ``rank`` of each class that is allowed, highest first, then the second of each, until there are ``count``."""
    turns: dict[int, int] = {}
    ordered: list[tuple[int, int, int]] = []
    for clip in rank.argsort(descending=True, stable=True).tolist():
        if allowed[clip]:
            label = int(truth[clip])
            turns[label] = turns.get(label, -1) + 1
            ordered.append((turns[label], len(ordered), clip))
    return torch.tensor([clip for _, _, clip in sorted(ordered)[:count]], dtype=torch.int64)


def _clear_cases(
    truth: Int64[Tensor, " clips"], probabilities: Float[Tensor, "clips classes"], count: int
) -> Int64[Tensor, " chosen"]:
    """Of clips that are named rightly two thirds, of the others the rest, as far as there are so many; the surest ones."""
    sure, answers = probabilities.max(-1)
    wrong = most_confident_mistakes(probabilities, truth, count)
    right = _spread_over_classes(truth, sure, answers == truth, count)
    few = min(len(wrong), count - min(len(right), count - count // 3))
    return torch.cat([right[: count - few], wrong[:few]])


def _misread(
    frames: FramesOf,
    truth: Int64[Tensor, " clips"],
    probabilities: Float[Tensor, "clips classes"],
    names: Sequence[str],
    count: int,
) -> list[Misread]:
    found = []
    for clip in most_confident_mistakes(probabilities, truth, count).tolist():
        label, answer = int(truth[clip]), int(probabilities[clip].argmax())
        sure, of_truth = float(probabilities[clip, answer]), float(probabilities[clip, label])
        found.append(Misread(small(frames(clip)), names[label], names[answer], sure, of_truth))
    return found


def _neighbours(
    queries: Int64[Tensor, " queries"],
    nearest: Int64[Tensor, "queries nearest"],
    similar: Float[Tensor, "queries nearest"],
    frames: FramesOf,
    truth: Int64[Tensor, " clips"],
    train: Material,
    names: Sequence[str],
) -> list[Neighbours]:
    return [
        Neighbours(
            small(frames(query)),
            names[int(truth[query])],
            [
                Neighbour(small(train.frames(near)), names[int(train.labels[near])], score)
                for near, score in zip(beside, scores, strict=True)
            ],
        )
        for query, beside, scores in zip(queries.tolist(), nearest.tolist(), similar.tolist(), strict=True)
    ]


def _attended(
    fitted: FittedProbe,
    tokens: Float[Tensor, "shown tokens channels"],
    grid: TokenGrid,
    shown: Int64[Tensor, " shown"],
    frames: FramesOf,
    truth: Int64[Tensor, " clips"],
    probabilities: Float[Tensor, "clips classes"],
    names: Sequence[str],
) -> list[Attended]:
    if not len(shown):
        return []
    maps = attention_maps(fitted.attention(tokens), grid).numpy()
    answers = probabilities.argmax(-1)
    return [
        Attended(small(frames(clip), grid.time), weights, names[int(truth[clip])], names[int(answers[clip])])
        for clip, weights in zip(shown.tolist(), maps, strict=True)
    ]


def small(frames: FrameStack, time: int = 1) -> UInt8[np.ndarray, "kept kept_height kept_width 3"]:
    """A clip with at most ``KEPT_SIDE`` pixels a side and, by even steps, ``KEPT_FRAMES`` frames or ``time`` if that is more."""
    most = max(KEPT_FRAMES, time)
    kept = frames[(np.arange(most) * len(frames)) // most] if len(frames) > most else frames
    height, width = kept.shape[1:3]
    ratio = KEPT_SIDE / max(height, width)
    if ratio >= 1:
        return kept
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in kept])


def _pooled(tokens_of: TokensOf, clips: int) -> Float[Tensor, "clips width"]:
    return torch.cat([tokens_of(part).float().mean(1) for part in torch.arange(clips).split(TEST_ROWS)])


def _map(
    pooled: Float[Tensor, "clips width"], truth: Int64[Tensor, " clips"], names: Sequence[str], seed: int
) -> FeatureMap2d:
    """The map of all clips, or of as many as a map may have, drawn by the seed."""
    order = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(seed))
    chosen = order[:MOST_POINTS].sort().values
    return FeatureMap2d(points_of(pooled[chosen], seed), truth[chosen].numpy(), tuple(names))


def _first_components(values: Float[np.ndarray, "clips width"], count: int) -> Float[np.ndarray, "clips {count}"]:
    """The first ``count`` principal components, with zeros where there are fewer."""
    centred = values - values.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    parts = (left * sizes)[:, :count]
    return np.pad(parts, ((0, 0), (0, count - parts.shape[1])))
