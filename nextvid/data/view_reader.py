"""Views of labelled clips, made ahead by worker processes, in the order in which they are asked for; broken files are counted."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from nextvid.data.clip import Broken, BrokenFile, ClipSpec, LabelledClips
from nextvid.data.crew import Here, Processes, Ring, batch_bytes
from nextvid.data.views import Views, views_of
from nextvid.randomness import generator

Batch = tuple[int, Sequence[int]]
"""An epoch, and the samples of one batch."""
ViewTensor = UInt8[Tensor, "samples views segments frames 3 size size"]
AHEAD = 3
"""Batches on their way, counting the one that is given out."""


@runtime_checkable
class Reader(Protocol):
    """Gives views of samples, batch by batch."""

    broken: dict[str, str]
    """What could not be read so far: the file, and why."""

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[list[int], ViewTensor]]:
        """For every batch the samples that could be read, and their clips."""
        ...


class _Task(NamedTuple):
    epoch: int
    sample: int
    slot: int
    place: int


@dataclass(frozen=True)
class _ViewBench:
    """A :class:`nextvid.data.crew.Bench` of views."""

    clips: LabelledClips
    spec: ClipSpec
    views: Views
    seed: int
    flat: ClipSpec
    """All frames of a sample as one clip, which is what the ring holds."""
    ring: Ring

    def attempt(self, task: _Task) -> Broken | None:
        """See :class:`nextvid.data.crew.Bench`."""
        draw = generator("probe view", self.seed, task.epoch, task.sample)
        try:
            found = views_of(self.clips, task.sample, self.spec, self.views, draw)
        except BrokenFile as error:
            return Broken(error.path, error.reason, task.sample, task.epoch)
        channels_first = np.moveaxis(found, -1, -3)
        self.ring.clip(task.slot, task.place, self.flat)[...] = channels_first.reshape(-1, *channels_first.shape[-3:])
        return None

    def lost(self, task: _Task, reason: str) -> Broken:
        """See :class:`nextvid.data.crew.Bench`."""
        return Broken(name_of(self.clips, task.sample), reason, task.sample, task.epoch, lost=True)


def name_of(clips: LabelledClips, sample: int) -> str:
    """The file of a sample, or its number where clips are made up."""
    path = getattr(clips, "path", None)
    return path(sample) if path else f"{clips.name} clip {sample}"


@dataclass
class ViewReader:
    """A :class:`Reader` of any labelled clips; ``workers=0`` makes them here.

    A file that was broken, hung for ``seconds`` or killed its worker is not tried again. What is drawn for a sample is a function
    of (seed, epoch, sample).
    """

    clips: LabelledClips
    spec: ClipSpec
    views: Views = Views()
    workers: int = 0
    seconds: float = 60.0
    seed: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    _lost: set[int] = field(default_factory=set)

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[list[int], ViewTensor]]:
        """See :class:`Reader`. Raises what the clips raise, but for ``BrokenFile``."""
        wanted = list(batches)
        if not wanted:
            return
        slots = AHEAD if self.workers else 1
        bench = self._bench(slots, max(len(samples) for _, samples in wanted))
        crew = Processes(bench, self.workers, self.seconds, self.seed) if self.workers else Here(bench)
        try:
            yield from self._read(crew, bench, wanted, slots)
        finally:
            crew.stop()

    def _bench(self, slots: int, samples: int) -> _ViewBench:
        frames = self.views.rows * self.views.segments * self.spec.frames
        flat = ClipSpec(frames, self.spec.fps, self.spec.size)
        return _ViewBench(self.clips, self.spec, self.views, self.seed, flat, Ring(slots, batch_bytes(samples, flat)))

    def _read(
        self, crew: Here | Processes, bench: _ViewBench, batches: list[Batch], slots: int
    ) -> Iterator[tuple[list[int], ViewTensor]]:
        asked: dict[int, list[int]] = {}
        left: dict[int, int] = {}
        for number in range(len(batches)):
            for ahead in range(number + len(asked), min(number + slots, len(batches))):
                epoch, samples = batches[ahead]
                asked[ahead] = [sample for sample in samples if sample not in self._lost]
                left[ahead % slots] = len(asked[ahead])
                for place, sample in enumerate(asked[ahead]):
                    crew.submit(_Task(epoch, sample, ahead % slots, place))
            while left[number % slots]:
                self._take(crew, left)
            yield self._taken(bench, number % slots, asked.pop(number))

    def _take(self, crew: Here | Processes, left: dict[int, int]) -> None:
        """Wait for a task to end."""
        ended = crew.take(wait=True)
        assert ended is not None
        task, outcome = ended
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, Broken):
            self._lost.add(task.sample)
            self.broken[outcome.path] = outcome.reason
        left[task.slot] -= 1

    def _taken(self, bench: _ViewBench, slot: int, samples: list[int]) -> tuple[list[int], ViewTensor]:
        whole = torch.from_numpy(bench.ring.batch(slot, len(samples), bench.flat))
        kept = [place for place, sample in enumerate(samples) if sample not in self._lost]
        clips = whole[kept].unflatten(1, (self.views.rows, self.views.segments, self.spec.frames))
        return [samples[place] for place in kept], clips


@dataclass
class RenderedReader:
    """A :class:`Reader` of clips that lie in memory, one view of one segment each."""

    frames: UInt8[Tensor, "clips frames 3 size size"]
    broken: dict[str, str] = field(default_factory=dict)

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[list[int], ViewTensor]]:
        """See :class:`Reader`."""
        for _, samples in batches:
            yield list(samples), self.frames[list(samples)][:, None, None]
