"""Batches of clips, made in worker processes and handed over in the order of their plans."""

import itertools
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nextvid.data.clip import Broken, ClipSpec, MadeUp
from nextvid.data.crew import Crew, Here, MixtureBench, Outcome, Postponed, Processes, Ring, Task, batch_bytes
from nextvid.data.mixture import ATTEMPTS, Mixture, nothing_but_broken
from nextvid.errors import UserError
from nextvid.randomness import sample_key

TRIES = 2
"""How often an attempt must hang or kill its worker to be lost: once may be a suspended machine, or want of memory."""


@dataclass(frozen=True)
class BatchPlan:
    """One step's batch: samples ``first_number`` to ``first_number + batch - 1`` of mixture ``mixture``."""

    first_number: int
    batch: int
    frames: int
    fps: float
    size: int
    mixture: int = 0

    @property
    def spec(self) -> ClipSpec:
        """The clip that each sample is."""
        return ClipSpec(self.frames, self.fps, self.size)

    @property
    def bytes(self) -> int:
        """The room that the batch takes on its way."""
        return batch_bytes(self.batch, self.spec)

    def part(self, rank: int, ranks: int) -> "BatchPlan":
        """The samples of process ``rank`` of ``ranks``. Raises ``UserError`` where they do not divide."""
        if self.batch % ranks:
            raise UserError(
                f"stages.batch={self.batch} cannot be shared evenly by {ranks} processes; make it a multiple of {ranks}"
            )
        share = self.batch // ranks
        return replace(self, first_number=self.first_number + rank * share, batch=share)


@dataclass(frozen=True)
class Batch:
    """Clips, uint8 ``(batch, frames, 3, size, size)``; the key of each; the files that failed on the way.

    ``latents``: where they are stored beside the footage, the target space's maps of every frame, not normalised.
    """

    frames: UInt8[Tensor, "batch frames 3 size size"]
    keys: list[int]
    broken: list[Broken] = field(default_factory=list)
    latents: Float[Tensor, "batch frames map_channels map_rows map_columns"] | None = None

    def part(self, begin: int, end: int) -> "Batch":
        """The clips from place ``begin`` up to ``end``, without the files that failed."""
        latents = None if self.latents is None else self.latents[begin:end]
        return Batch(self.frames[begin:end], self.keys[begin:end], latents=latents)

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; what is in pinned memory is on its way when this returns."""
        latents = None if self.latents is None else self.latents.to(device, non_blocking=True)
        return replace(self, frames=self.frames.to(device, non_blocking=True), latents=latents)


def batches(
    mixtures: Sequence[Mixture],
    plans: Iterable[BatchPlan],
    workers: int = 0,
    seed: int = 0,
    *,
    prefetch: int = 2,
    seconds: float = 60.0,
    lost: Iterable[Broken] = (),
    rank: int = 0,
    ranks: int = 1,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of ``plans``, in order, the same for any number of ``workers``, and across restarts.

    Workers share the clips of up to ``prefetch`` batches each. One that takes over ``seconds`` for a clip, or dies, is
    replaced; the second time at the same clip its file counts as broken (``Broken.lost``), here and wherever it is drawn
    later in the run.
    With ``workers=0`` clips are made in this process: one that hangs hangs the run.

    ``lost``: what the earlier part of a run lost, or more, so that a resumed run has the same clips. ``rank`` of
    ``ranks`` has that part of every batch; joined in order the parts are the batch of one process, as long as a file
    that hangs does so at every draw: a rank does not know what another has lost. ``pin``: the batch is in pinned memory,
    where there is CUDA. ``seed`` starts the workers' own random numbers, on which no sample depends.

    Raises ``UserError`` as the mixture does, and ``RuntimeError`` with the traceback of an error in a worker.
    """
    listed = isinstance(plans, Sequence)
    parts: Iterable[BatchPlan] = (plan.part(rank, ranks) for plan in plans)
    parts = list(parts) if listed else parts
    largest = max((plan.bytes for plan in parts), default=0) if listed else 0

    def slot_bytes(plan: BatchPlan) -> int:
        nonlocal largest
        largest = max(largest, plan.bytes)
        return largest

    losses, slots = Losses(lost), max(1, workers * prefetch)
    # A list fits one ring. A stream whose batches grow gets a larger one, and other workers, whenever they do.
    for size, stretch in itertools.groupby(parts, slot_bytes):
        bench = MixtureBench(mixtures, Ring(slots, size))
        crew: Crew = Processes(bench, workers, seconds, seed) if workers else Here(bench)
        try:
            yield from Line(bench, crew, losses, slots, pin).run(stretch)
        finally:
            crew.stop()


def make_batch(mixture: Mixture, plan: BatchPlan) -> Batch:
    """The batch of one plan, made in this process."""
    numbers = range(plan.first_number, plan.first_number + plan.batch)
    samples = [mixture.sample(number, plan.spec) for number in numbers]
    return Batch(
        frames=torch.stack([sample.frames for sample in samples]),
        keys=[sample.key for sample in samples],
        broken=[entry for sample in samples for entry in sample.broken],
        latents=_latents(mixture, numbers, [len(sample.broken) for sample in samples], plan.spec),
    )


def _latents(
    mixture: Mixture, numbers: Sequence[int], attempts: Sequence[int], spec: ClipSpec
) -> Float[Tensor, "..."] | None:
    return mixture.latents(numbers, attempts, spec) if mixture.has_latents(spec) else None


class Losses:
    """The attempts that were lost to a hang or a death, and their files, which later samples do without."""

    def __init__(self, lost: Iterable[Broken] = ()) -> None:
        self._attempts: dict[tuple[int, int], Broken] = {}
        self._files: dict[str, Broken] = {}
        for entry in lost:
            self.add(entry)

    def add(self, entry: Broken) -> None:
        """Keep an attempt, and the first that its file lost."""
        self._attempts[_place(entry)] = entry
        first = self._files.setdefault(entry.path, entry)
        if _place(entry) < _place(first):
            self._files[entry.path] = entry

    def of(self, mixture: Mixture, number: int, attempt: int) -> Broken | None:
        """What is said of an attempt without making it: that it was lost, or that its file was before it.

        Only what comes before it in the order of samples counts, so that the answer is the same however far ahead the
        workers are. Made-up clips have no file that could be at fault.
        """
        if not self._files:
            return None
        choice = mixture.choice(number, attempt)
        first = self._files.get(mixture.describe(choice))
        made_up = isinstance(mixture.sources[choice.source], MadeUp)
        if first is not None and not made_up and _place(first) < (number, attempt):
            return first._replace(number=number, attempt=attempt)
        return self._attempts.get((number, attempt))


def _place(entry: Broken) -> tuple[int, int]:
    return entry.number, entry.attempt


@dataclass
class _Sample:
    """A sample on its way: what became of each attempt that has ended, the one being made, and how often it failed.

    ``settled``: the attempt that its clip is of.
    """

    number: int
    outcomes: dict[int, Broken | Exception | None] = field(default_factory=dict)
    under_way: Task | None = None
    tries: int = 0
    settled: int = 0


@dataclass
class _Pending:
    """A batch on its way: all samples before place ``settled`` have their clips."""

    plan: BatchPlan
    slot: int
    samples: list[_Sample]
    settled: int = 0
    broken: list[Broken] = field(default_factory=list)


class _Copies:
    """Copies of batches, in memory that is used again as soon as nobody holds the copy: fresh pages cost far more."""

    def __init__(self, pin: bool) -> None:
        self.pin = pin
        self._spare: list[np.ndarray] = []

    def of(self, shared: UInt8[np.ndarray, "..."]) -> UInt8[Tensor, "..."]:
        if self.pin:  # PyTorch keeps pinned memory itself
            return torch.empty(shared.shape, dtype=torch.uint8, pin_memory=True).copy_(torch.from_numpy(shared))
        fitting = bool(self._spare) and self._spare[-1].shape == shared.shape
        memory = self._spare.pop() if fitting else np.empty_like(shared)
        self._spare.clear()
        np.copyto(memory, shared)
        lent = memory.view()  # the tensor and all its views keep this alive
        weakref.finalize(lent, self._spare.append, memory)
        return torch.from_numpy(lent)


class Line:
    """Batches on their way, in order: which attempts are made, and what they come to."""

    def __init__(self, bench: MixtureBench, crew: Crew, losses: Losses, slots: int, pin: bool) -> None:
        self._bench, self._crew, self._losses = bench, crew, losses
        self._copies = _Copies(pin and torch.cuda.is_available())
        self._free = list(range(slots))
        self._pending: deque[_Pending] = deque()
        self._in_slot: dict[int, _Pending] = {}

    def run(self, plans: Iterator[BatchPlan]) -> Generator[Batch, None, None]:
        """All batches."""
        self._begin(plans)
        while self._pending:
            self._settle(self._pending[0])
            batch = self._hand_over(self._pending.popleft())
            self._begin(plans)
            yield batch

    def _begin(self, plans: Iterator[BatchPlan]) -> None:
        """Fill the free slots."""
        while self._free:
            plan = next(plans, None)
            if plan is None:
                return
            numbers = range(plan.first_number, plan.first_number + plan.batch)
            pending = _Pending(plan, self._free.pop(), [_Sample(number) for number in numbers])
            self._pending.append(pending)
            self._in_slot[pending.slot] = pending
            for place in range(plan.batch):
                self._advance(pending, place)

    def _settle(self, first: _Pending) -> None:
        """Wait for every clip of the batch that is next; raise what stands in its way.

        One sample after the other: whether a file is lost to a sample depends on those before it alone.
        """
        while True:
            while (ended := self._crew.take(wait=False)) is not None:
                self._note(*ended)
            while first.settled < len(first.samples):
                broken, then = self._advance(first, first.settled)
                if isinstance(then, Exception):
                    raise then
                if then is not None:
                    break
                first.broken += broken
                first.samples[first.settled].settled = len(broken)
                first.settled += 1
            else:
                return
            ended = self._crew.take(wait=True)
            assert ended is not None
            self._note(*ended)

    def _note(self, task: Task, outcome: Outcome) -> None:
        pending = self._in_slot[task.slot]
        sample = pending.samples[task.place]
        sample.under_way = None
        if isinstance(outcome, Broken) and outcome.lost:
            self._doubt(sample, outcome)
        elif not isinstance(outcome, Postponed):
            sample.outcomes[task.attempt], sample.tries = outcome, 0
        self._advance(pending, task.place)

    def _doubt(self, sample: _Sample, outcome: Broken) -> None:
        """Believe a loss the second time; either way whoever waits for that file asks again first, behind this one."""
        sample.tries += 1
        if sample.tries == TRIES:
            sample.outcomes[outcome.attempt], sample.tries = outcome, 0
            self._losses.add(outcome)
        for pending in self._pending:
            for task in (other.under_way for other in pending.samples):
                if task is not None and self._bench.path(task) == outcome.path:
                    self._bench.ring.postponed(task.slot, task.place)[0] = 1

    def _advance(self, pending: _Pending, place: int) -> tuple[list[Broken], int | Exception | None]:
        """Have the sample's next attempt made, if it needs one and none is being made; what :meth:`_so_far` says."""
        sample, plan = pending.samples[place], pending.plan
        broken, then = self._so_far(plan, sample)
        if isinstance(then, int) and sample.under_way is None:
            sample.under_way = Task(plan.mixture, sample.number, then, plan.spec, pending.slot, place)
            self._bench.ring.postponed(pending.slot, place)[0] = 0
            self._crew.submit(sample.under_way)
        return broken, then

    def _so_far(self, plan: BatchPlan, sample: _Sample) -> tuple[list[Broken], int | Exception | None]:
        """The attempts that failed, and what follows them: an attempt still to end, an error, or a clip (None)."""
        broken: list[Broken] = []
        mixture = self._bench.mixtures[plan.mixture]
        for attempt in range(ATTEMPTS):
            lost = self._losses.of(mixture, sample.number, attempt)
            if lost is None and attempt not in sample.outcomes:
                return broken, attempt
            outcome = lost or sample.outcomes[attempt]
            if not isinstance(outcome, Broken):
                return broken, outcome
            broken.append(outcome)
        return broken, UserError(nothing_but_broken(broken))

    def _hand_over(self, pending: _Pending) -> Batch:
        """A copy of the batch; its slot is free again."""
        plan = pending.plan
        frames = self._copies.of(self._bench.ring.batch(pending.slot, plan.batch, plan.spec))
        del self._in_slot[pending.slot]
        self._free.append(pending.slot)
        mixture, samples = self._bench.mixtures[plan.mixture], pending.samples
        keys = [sample_key(mixture.seed, sample.number) for sample in samples]
        latents = _latents(mixture, [s.number for s in samples], [s.settled for s in samples], plan.spec)
        if latents is not None and self._copies.pin:
            latents = latents.pin_memory()
        return Batch(frames, keys, pending.broken, latents)
