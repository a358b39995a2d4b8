"""Fitting a grid of probes: who learns and who chooses, the steps, and the choice."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvid.errors import Stopped, UserError
from nextvid.evaluation.features import Features, Rows, Standardise, Supply, track
from nextvid.evaluation.fit import Fit, State, rank
from nextvid.evaluation.fresh import FreshTokens
from nextvid.evaluation.probe import SCORING_ROWS, FittedProbe, ProbeConfig, ProbeResult
from nextvid.evaluation.scores import score
from nextvid.randomness import generator
from nextvid.training.distributed import World

STATISTICS_ROWS = 2048
"""Rows of a split that is not in memory by which its channels are standardised."""
STOP_EVERY = 10
"""Steps after which processes ask one another whether to stop."""

Groups = Int64[Tensor, " samples"]


@runtime_checkable
class Keeper(Protocol):
    """Keeps a fit on disk while it goes on, so that it can be stopped."""

    def restore(self) -> tuple[int, State] | None:
        """The step and the state that were kept last; None where nothing was kept."""
        ...

    def keep(self, step: int, state: Callable[[], State], now: bool = False) -> None:
        """Called after every step, and free to do nothing until enough time has passed, but ``now``."""
        ...


def train_probe(
    train: Supply,
    test: Supply,
    task: str,
    config: ProbeConfig | None = None,
    *,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Fit a grid of probes on ``train``, choose one on its held-out part, score that one on ``test`` once.

    Raises ``UserError`` as ``fit_probe`` does, and where the two splits do not belong together.
    """
    check_splits(train, test, task)
    fitted = fit_probe(train, task, config or ProbeConfig(), progress=progress, device=device)
    samples, probabilities = fitted.probabilities(test, f"testing {task}", progress=progress)
    return result_of(fitted, train, test.labels[task][samples], task, probabilities)


def check_splits(train: Supply, test: Supply, task: str) -> None:
    """Raise ``UserError`` where two splits do not belong together, a label is of no class, or a class cannot be learnt."""
    if train.tasks != test.tasks:
        raise UserError("train and test differ in their tasks or classes: take both from one benchmark")
    if (
        isinstance(train, Features)
        and isinstance(test, Features)
        and (train.tokens.shape[1:] != test.tokens.shape[1:] or train.groups != test.groups)
    ):
        raise UserError("train and test features differ in their token shape: extract both alike")
    names = _names(train, task)
    for split, supply in (("train", train), ("test", test)):
        labels = supply.labels[task]
        strange = ((labels < 0) | (labels >= len(names))).nonzero().flatten()
        if len(strange):
            raise UserError(
                f"{split} clip {int(strange[0])} has label {int(labels[strange[0]])} for {task}, which is none of 0 to "
                f"{len(names) - 1}: mend the labels"
            )
    known = set(train.labels[task].tolist())
    unknown = sorted(set(test.labels[task].tolist()) - known)
    if unknown:
        raise UserError(
            f"the test split has clips of {names[unknown[0]]!r} ({len(unknown)} of its classes), and the train split has "
            "none, so that no probe can name them: add train clips of every class that is tested, or leave those classes out of "
            "the test split"
        )


def _names(supply: Supply, task: str) -> tuple[str, ...]:
    if task not in supply.tasks:
        raise UserError(f"these clips have no labels for task {task!r}; they have {', '.join(sorted(supply.tasks))}")
    return supply.tasks[task]


def result_of(
    fitted: FittedProbe,
    train: Supply,
    truth: Int64[Tensor, " samples"],
    task: str,
    probabilities: Float[Tensor, "samples classes"],
) -> ProbeResult:
    """The figures of a fitted probe whose test clips of classes ``truth`` have been given ``probabilities``.

    Raises ``UserError`` where no test clip could be read.
    """
    if not len(truth):
        raise UserError("not one clip of the test split could be read: see which files are broken, and mend them")
    return ProbeResult(
        task=task,
        scores=score(probabilities, truth, train.tasks[task]),
        classes=len(train.tasks[task]),
        train_clips=len(train),
        held_out_clips=fitted.held_out_clips,
        held_out_top1=fitted.best.held_out_top1,
        best_lr=fitted.best.lr,
        best_weight_decay=fitted.best.weight_decay,
        depth=fitted.probe.depth,
        heads=fitted.probe.heads,
        standardised=fitted.standardise is not None,
        standardise_effect=fitted.standardise_effect,
        grid=fitted.grid,
    )


def fit_probe(
    train: Supply,
    task: str,
    config: ProbeConfig,
    *,
    groups: Groups | None = None,
    progress: bool = True,
    device: torch.device | str = "cpu",
    world: World | None = None,
    keeper: Keeper | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> FittedProbe:
    """Train every member of the grid on one part of ``train`` and choose the best on the other.

    ``groups``: clips of one group, such as those of one video, are all learnt from or all held out. ``keeper`` keeps the fit on
    disk. ``stop``: asked now and then; where any process says so all is kept and ``Stopped`` raised. Raises ``UserError`` for an
    unknown task or too few clips to hold some out.
    """
    return fit_probes(
        [train],
        task,
        config,
        groups=groups,
        progress=progress,
        device=device,
        world=world,
        keeper=keeper,
        stop=stop,
    )[0]


def fit_probes(
    trains: Sequence[Supply],
    task: str,
    config: ProbeConfig,
    *,
    held: Sequence[Supply] | None = None,
    groups: Groups | None = None,
    progress: bool = True,
    device: torch.device | str = "cpu",
    world: World | None = None,
    keeper: Keeper | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[FittedProbe]:
    """:func:`fit_probe` of several encoders over the same clips, step by step: what is fresh is read once for all of them.

    ``held``: by the same rows, what held-out clips are read from, where ``trains`` are augmented.
    """
    names = _names(trains[0], task)
    if trains[0].views != 1:
        raise UserError(f"a probe learns from one view a sample, and the train split has {trains[0].views}")
    world = world or World()
    learn, held_out = split(trains[0].labels[task], config, groups)
    kinds = (True, False) if config.standardise == "both" else (config.standardise,)
    fits = [
        [Fit(train, task, len(names), config, kind, torch.device(device), world) for kind in kinds] for train in trains
    ]
    show = progress and world.first
    kept = _restored(keeper, world)
    if kept:
        for name, fit in _named(fits):
            fit.restore(name, kept[1])
    elif True in kinds:
        for same, found in zip(fits, statistics(trains, learn, world, show), strict=True):
            same[0].standardise = found
    _learn(trains, fits, learn, kept[0] if kept else 0, keeper, stop, show)
    _judge(held or trains, fits, held_out, show)
    return [_chosen(same, held_out) for same in fits]


def _restored(keeper: Keeper | None, world: World) -> tuple[int, State] | None:
    """What was kept. Raises ``UserError`` where not all processes find the same."""
    with world.together():
        kept = keeper.restore() if keeper else None
    steps = world.gather(kept[0] if kept else None)
    if any(step != steps[0] for step in steps):
        raise UserError(
            f"the processes do not find one fit to go on with (steps {steps}): give an --out that all of them share"
        )
    return kept


def _named(fits: list[list[Fit]]) -> list[tuple[str, Fit]]:
    return [(f"{number}.{place}.", fit) for number, same in enumerate(fits) for place, fit in enumerate(same)]


def _learn(
    trains: Sequence[Supply],
    fits: list[list[Fit]],
    learn: Rows,
    first: int,
    keeper: Keeper | None,
    stop: Callable[[], bool],
    show: bool,
) -> None:
    all_fits = _named(fits)
    one = all_fits[0][1]
    world, batches = one.world, list(_shuffled(learn, one.config))

    def state() -> State:
        return {name + key: tensor for name, fit in all_fits for key, tensor in fit.state().items()}

    plan = [(epoch, rows.tensor_split(world.ranks)[world.rank]) for epoch, rows in batches[first:]]
    steps = track(tokens_of(trains, plan), len(plan), f"probing {one.task}", show)
    for step, found in enumerate(steps, first):
        whole = len(batches[step][1])
        for same, (rows, tokens) in zip(fits, found, strict=True):
            for fit in same:
                fit.step(rows, tokens, whole, 0.5 + 0.5 * math.cos(math.pi * step / len(batches)))
        if (world.ranks == 1 or step % STOP_EVERY == 0) and world.most([int(stop())])[0]:
            if keeper:
                keeper.keep(step + 1, state, now=True)
            raise Stopped(f"stopped at step {step + 1} of {len(batches)} of a probe")
        if keeper:
            keeper.keep(step + 1, state)
    if keeper:
        keeper.keep(len(batches), state, now=True)


def _judge(trains: Sequence[Supply], fits: list[list[Fit]], held_out: Rows, show: bool) -> None:
    world = fits[0][0].world
    plan = [(0, rows) for rows in held_out[world.rank :: world.ranks].split(SCORING_ROWS)]
    for found in track(tokens_of(trains, plan), len(plan), "choosing", show):
        for same, (rows, tokens) in zip(fits, found, strict=True):
            for fit in same:
                fit.judge(rows, tokens)


def _chosen(same: list[Fit], held_out: Rows) -> FittedProbe:
    fitted = {fit.standardised: fit.chosen(len(held_out)) for fit in same}
    best = max(fitted.values(), key=lambda probe: rank(probe.best))
    if best.best.held_out_loss is None:
        raise UserError("every probe of the grid has diverged: lower lrs (features that are no numbers do the same)")
    if len(fitted) == 1:
        return best
    effect = {_word(standardised): probe.best.held_out_top1 for standardised, probe in fitted.items()}
    return best.model_copy(update={"standardise_effect": effect})


def tokens_of(
    trains: Sequence[Supply], plan: list[tuple[int, Rows]]
) -> Iterator[list[tuple[Rows, Float[Tensor, "batch tokens channels"]]]]:
    """For every batch of ``plan`` what each supply gives; those that read the same clips anew read them once."""
    first = trains[0]
    if len(trains) > 1 and all(isinstance(t, FreshTokens) and t.reader is first.reader for t in trains):  # type: ignore[attr-defined]
        return FreshTokens.side_by_side([t for t in trains if isinstance(t, FreshTokens)], plan)
    return map(list, zip(*(train.batches(plan) for train in trains), strict=True))


def _word(standardised: bool) -> str:
    return "with" if standardised else "without"


def split(
    labels: Int64[Tensor, " samples"], config: ProbeConfig, groups: Groups | None = None
) -> tuple[Int64[Tensor, " learn"], Int64[Tensor, " held_out"]]:
    """Which train clips the probes learn from and which choose among them: a function of the seed, labels and groups alone.

    Where all clips of a class would be held out, they are learnt from instead.
    """
    clips = len(labels)
    units = torch.arange(clips) if groups is None else groups.unique(return_inverse=True)[1]
    wanted = max(1, round(clips * config.held_out))
    if wanted >= clips or int(units.max()) == 0:
        raise UserError(
            f"{clips} train clips are too few to hold {config.held_out:.0%} of them out: give more, or set held_out"
        )
    order = torch.from_numpy(generator("held out", config.seed).permutation(int(units.max()) + 1))
    place = order.argsort()[units]
    order = place.argsort(stable=True)
    last = place[order[wanted - 1]]
    held = place <= last
    for label in labels[held].unique().tolist():
        if not (labels[~held] == label).any():
            back = units[held & (labels == label)].unique()
            held &= ~torch.isin(units, back)
    if not held.any() or held.all():
        raise UserError(
            f"{clips} train clips are too few to hold {config.held_out:.0%} of them out and still learn every class from the "
            "rest: give more clips of each class, or set held_out"
        )
    return order[~held[order]], order[held[order]]


def statistics(trains: Sequence[Supply], learn: Rows, world: World, show: bool) -> list[Standardise]:
    """Of all rows where they lie in memory, else of up to ``STATISTICS_ROWS`` that are learnt from."""
    if all(isinstance(train, Features) for train in trains):
        return [Standardise.fit(train.tokens, train.groups) for train in trains if isinstance(train, Features)]
    chosen = learn[:STATISTICS_ROWS][world.rank :: world.ranks]
    plan = [(0, rows) for rows in chosen.split(SCORING_ROWS)]
    sums = [torch.zeros(2, train.groups, train.width, dtype=torch.float64) for train in trains]
    counts = [0 for _ in trains]
    for found in track(tokens_of(trains, plan), len(plan), "standardising", show):
        for number, (train, (rows, tokens)) in enumerate(zip(trains, found, strict=True)):
            if len(rows):
                grouped = tokens.unflatten(1, (train.groups, -1)).double()
                sums[number] += torch.stack([grouped.sum((0, 2)), grouped.square().sum((0, 2))]).cpu()
                counts[number] += len(rows) * tokens.shape[1] // train.groups
    parts = world.gather((sums, counts))
    return [_standardise([part[0][i] for part in parts], sum(part[1][i] for part in parts)) for i in range(len(trains))]


def _standardise(sums: list[Float[Tensor, "2 groups channels"]], count: int) -> Standardise:
    if not count:
        raise UserError("not one clip of the train split could be read: see which files are broken, and mend them")
    mean, square = torch.stack(sums).sum(0) / count
    return Standardise.of(mean.float(), (square - mean.square()).clamp_min(0))


def _shuffled(rows: Rows, config: ProbeConfig) -> Iterator[tuple[int, Rows]]:
    for epoch in range(config.epochs):
        order = torch.from_numpy(generator("probe epoch", config.seed, epoch).permutation(len(rows)))
        yield from ((epoch, batch) for batch in rows[order].split(config.batch))
