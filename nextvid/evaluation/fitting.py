"""Fitting a grid of probes: who learns and who chooses, the steps, and the choice."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from nextvid.errors import Stopped, UserError
from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.features import Features, Rows, Standardise, Supply, track
from nextvid.evaluation.grid import GridAdamW, ProbeGrid
from nextvid.evaluation.probe import SCORING_ROWS, FittedProbe, GridMember, ProbeConfig, ProbeResult, autocast
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

    def restore(self, grid: ProbeGrid, optimiser: GridAdamW) -> tuple[int, Standardise | None] | None:
        """The step and the statistics that were kept; weights and moments are filled in. None where nothing was kept."""
        ...

    def keep(self, grid: ProbeGrid, optimiser: GridAdamW, step: int, standardise: Standardise | None) -> None:
        """Keep all; called after every step, and free to do nothing until enough time has passed."""
        ...

    def keep_now(self, grid: ProbeGrid, optimiser: GridAdamW, step: int, standardise: Standardise | None) -> None:
        """Keep all at once."""
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
    keeper: Callable[[str], Keeper] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> FittedProbe:
    """Train every member of the grid on one part of ``train`` and choose the best on the other.

    ``groups``: clips of one group, such as those of one video, are all learnt from or all held out. ``keeper``: by a name, who
    keeps the fit on disk. ``stop``: asked now and then; where any process says so all is kept and ``Stopped`` raised. Raises
    ``UserError`` for an unknown task or too few clips to hold some out.
    """
    names = _names(train, task)
    if train.views != 1:
        raise UserError(f"a probe learns from one view a sample, and the train split has {train.views}")
    learn, held_out = split(train.labels[task], config, groups)
    fits = {}
    for standardised in [True, False] if config.standardise == "both" else [config.standardise]:
        fit = _Fit(
            train, task, len(names), config, bool(standardised), torch.device(device), world or World(), progress
        )
        fits[standardised] = fit.run(learn, held_out, keeper(_word(bool(standardised))) if keeper else None, stop)
    best = max(fits.values(), key=lambda fitted: _rank(fitted.best))
    if len(fits) == 1:
        return best
    effect = {_word(bool(standardised)): fitted.best.held_out_top1 for standardised, fitted in fits.items()}
    return best.model_copy(update={"standardise_effect": effect})


def _word(standardised: bool) -> str:
    return "with" if standardised else "without"


def _rank(member: GridMember) -> tuple[float, float]:
    loss = math.inf if member.held_out_loss is None else member.held_out_loss
    return member.held_out_top1, -loss


def split(
    labels: Int64[Tensor, " samples"], config: ProbeConfig, groups: Groups | None = None
) -> tuple[Int64[Tensor, " learn"], Int64[Tensor, " held_out"]]:
    """Which train clips the probes learn from and which choose among them: a function of the seed, labels and groups alone.

    Where all clips of a class would be held out, they are learnt from instead.
    """
    clips = len(labels)
    units = torch.arange(clips) if groups is None else groups.unique(return_inverse=True)[1]
    wanted = round(clips * config.held_out)
    if not 0 < wanted < clips or int(units.max()) == 0:
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


class _Fit:
    """One grid over one supply."""

    def __init__(
        self,
        train: Supply,
        task: str,
        classes: int,
        config: ProbeConfig,
        standardised: bool,
        device: torch.device,
        world: World,
        progress: bool,
    ) -> None:
        self.train, self.task, self.classes, self.config = train, task, classes, config
        self.standardised, self.device, self.world, self.progress = standardised, device, world, progress
        self.labels = train.labels[task].to(device)
        self.grid: ProbeGrid | None = None
        self.standardise: Standardise | None = None
        self.in_memory: Float[Tensor, "rows tokens channels"] | None = None

    def run(self, learn: Rows, held_out: Rows, keeper: Keeper | None, stop: Callable[[], bool]) -> FittedProbe:
        """Train, choose, and give the chosen one."""
        members = self.config.members()
        if self.standardised:
            self.standardise = statistics(self.train, learn, self.world, self.progress)
        grid = self._grid(len(members))
        rates, decays = torch.tensor(members, device=self.device).unbind(1)
        optimiser = GridAdamW(grid, rates, decays)
        kept = keeper.restore(grid, optimiser) if keeper else None
        first, self.standardise = kept or (0, self.standardise)
        self._learn(grid, optimiser, learn, first, keeper, stop)
        table = self._choose(grid, held_out)
        best = max(range(len(members)), key=lambda index: _rank(table[index]))
        return FittedProbe(
            probe=grid.member(best),
            standardise=self.standardise,
            best=table[best],
            grid=table,
            held_out_clips=len(held_out),
            precision=self.config.precision,
        )

    def _grid(self, members: int) -> ProbeGrid:
        config = self.config
        probe = AttentiveProbe(self.train.width, self.classes, config.heads, config.seed, config.depth).to(self.device)
        return ProbeGrid([probe] * members)

    def _learn(
        self,
        grid: ProbeGrid,
        optimiser: GridAdamW,
        learn: Rows,
        first: int,
        keeper: Keeper | None,
        stop: Callable[[], bool],
    ) -> None:
        batches = list(_shuffled(learn, self.config))
        plan = [(epoch, rows.tensor_split(self.world.ranks)[self.world.rank]) for epoch, rows in batches[first:]]
        title = f"probing {self.task}"
        steps = zip(batches[first:], self._prepared(grid, plan), strict=True)
        show = self.progress and self.world.first
        for step, ((_, whole), (rows, tokens)) in enumerate(track(steps, len(plan), title, show), first):
            self._backward(grid, rows, tokens, len(whole))
            optimiser.step(0.5 + 0.5 * math.cos(math.pi * step / len(batches)))
            if step % STOP_EVERY == 0 and self.world.most([int(stop())])[0]:
                if keeper:
                    keeper.keep_now(grid, optimiser, step + 1, self.standardise)
                raise Stopped(f"stopped at step {step + 1} of {len(batches)} of a probe")
            if keeper:
                keeper.keep(grid, optimiser, step + 1, self.standardise)

    def _backward(
        self, grid: ProbeGrid, rows: Rows, tokens: Float[Tensor, "batch tokens channels"], batch: int
    ) -> None:
        """Gradients of the mean loss over all processes' clips."""
        if len(rows):
            with autocast(self.device, self.config.precision):
                logits = grid(tokens.float()).float()
            truth = self.labels[rows.to(self.device)].expand(grid.members, -1)
            (F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="sum") / batch).backward()
        if self.world.ranks > 1:
            grid.sum_gradients(dist.all_reduce)

    def _prepared(
        self, grid: ProbeGrid, plan: list[tuple[int, Rows]]
    ) -> Iterator[tuple[Rows, Float[Tensor, "batch tokens channels"]]]:
        """Tokens on the device as the grid takes them; what lies in memory is prepared once for all epochs."""
        if isinstance(self.train, Features):
            if self.in_memory is None:
                self.in_memory = self._all_prepared(grid, self.train.tokens)
            for _, rows in plan:
                yield rows, self.in_memory[rows]
            return
        for rows, tokens in self.train.batches(plan):
            yield rows, self._prepare(grid, tokens) if len(rows) else tokens

    def _prepare(
        self, grid: ProbeGrid, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        moved = tokens.to(self.device)
        return grid.prepare(self.standardise.apply(moved) if self.standardise else moved.float())

    @torch.no_grad()
    def _all_prepared(
        self, grid: ProbeGrid, tokens: Float[Tensor, "rows tokens channels"]
    ) -> Float[Tensor, "rows tokens channels"]:
        """In float16, which is safe for values of unit variance."""
        small = grid.depth == 1 or self.standardise is not None
        prepared = torch.empty(tokens.shape, dtype=torch.float16 if small else torch.float32, device=self.device)
        for target, part in zip(prepared.split(SCORING_ROWS), tokens.split(SCORING_ROWS), strict=True):
            target.copy_(self._prepare(grid, part))
        return prepared

    @torch.inference_mode()
    def _choose(self, grid: ProbeGrid, held_out: Rows) -> list[GridMember]:
        """Every member's accuracy and loss on the held-out clips; one that has diverged scores 0."""
        correct = torch.zeros(grid.members, dtype=torch.float64)
        loss = torch.zeros(grid.members, dtype=torch.float64)
        read = 0
        plan = [(0, rows) for rows in held_out[self.world.rank :: self.world.ranks].split(SCORING_ROWS)]
        for rows, tokens in self._prepared(grid, plan):
            if not len(rows):
                continue
            with autocast(self.device, self.config.precision):
                logits = grid(tokens.float()).float()
            truth = self.labels[rows.to(self.device)]
            correct += (logits.argmax(-1) == truth).sum(1).cpu()
            loss -= logits.log_softmax(-1)[:, torch.arange(len(rows)), truth].sum(1).cpu()
            read += len(rows)
        found = self.world.gather((correct, loss, read))
        correct, loss = sum(part[0] for part in found), sum(part[1] for part in found)
        read = max(1, sum(part[2] for part in found))
        sound = loss.isfinite().tolist()
        return [
            GridMember(
                lr=lr,
                weight_decay=decay,
                held_out_top1=float(correct[index]) / read if sound[index] else 0.0,
                held_out_loss=float(loss[index]) / read if sound[index] else None,
            )
            for index, (lr, decay) in enumerate(self.config.members())
        ]


def statistics(train: Supply, learn: Rows, world: World, progress: bool) -> Standardise:
    """Of all rows where they lie in memory, else of up to ``STATISTICS_ROWS`` that are learnt from, in two passes."""
    if isinstance(train, Features):
        return Standardise.fit(train.tokens, train.groups)
    chosen = learn[:STATISTICS_ROWS][world.rank :: world.ranks]
    plan = [(0, rows) for rows in chosen.split(SCORING_ROWS)]
    sums, count = torch.zeros(()), 0
    squares = torch.zeros(())
    for rows, tokens in track(train.batches(plan), len(plan), "standardising", progress and world.first):
        if len(rows):
            grouped = tokens.unflatten(1, (train.groups, -1)).double()
            sums = sums + grouped.sum((0, 2)).cpu()
            squares = squares + grouped.square().sum((0, 2)).cpu()
            count += len(rows) * tokens.shape[1] // train.groups
    found = [part for part in world.gather((sums, squares, count)) if part[2]]
    if not found:
        raise UserError("not one clip of the train split could be read: see which files are broken, and mend them")
    count = sum(part[2] for part in found)
    mean = sum(part[0] for part in found) / count
    variance = (sum(part[1] for part in found) / count - mean.square()).clamp_min(0)
    return Standardise.of(mean.float(), variance)


def _shuffled(rows: Rows, config: ProbeConfig) -> Iterator[tuple[int, Rows]]:
    for epoch in range(config.epochs):
        order = torch.from_numpy(generator("probe epoch", config.seed, epoch).permutation(len(rows)))
        yield from ((epoch, batch) for batch in rows[order].split(config.batch))
