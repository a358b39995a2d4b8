"""Attempts at clips, made in this process or in worker processes that are replaced when they hang or die."""

import mmap
import multiprocessing
import os
import queue
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from nextvid.data.clip import Broken, BrokenFile, ClipSpec
from nextvid.data.mixture import Mixture
from nextvid.errors import UserError
from nextvid.processes import follow

RENEWALS = 3
"""How often in a row all workers are started anew, without a clip in between, before the run stops."""
_TICK = 1.0
_STARTING_SECONDS = 30.0
"""What a worker may take to start, on top of its clip."""


@dataclass(frozen=True)
class Task:
    """One attempt at one sample of mixture ``mixture``; its clip goes to place ``place`` of slot ``slot``."""

    mixture: int
    number: int
    attempt: int
    spec: ClipSpec
    slot: int
    place: int


@dataclass(frozen=True)
class Postponed:
    """A task that was not begun because it was to be asked again whether it should be."""


Outcome = Broken | Postponed | Exception | None
"""What became of a task: the file was broken, an error that ends the run, or all is well."""


class Ring:
    """Slots for batches, which this process and every worker that it forks later see alike.

    Anonymous memory: it has no name, needs no ``/dev/shm``, and goes with the last process that has it.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        """A slot of a batch needs :func:`batch_bytes`. Raises ``UserError`` where there is not so much memory."""
        try:
            self._memory = mmap.mmap(-1, max(1, slots * slot_bytes))
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"there is no memory for {slots} batches of {slot_bytes / 1e9:.2f} GB on their way from the loader "
                f"({error}); lower data.workers or stages.batch"
            ) from error
        self._slot_bytes = slot_bytes

    def clip(self, slot: int, place: int, spec: ClipSpec) -> UInt8[np.ndarray, "frames 3 size size"]:
        """Where the clip at ``place`` of a batch goes."""
        return self._view(slot, place * clip_bytes(spec), (spec.frames, 3, spec.size, spec.size))

    def batch(self, slot: int, clips: int, spec: ClipSpec) -> UInt8[np.ndarray, "clips frames 3 size size"]:
        """All clips of a batch."""
        return self._view(slot, 0, (clips, spec.frames, 3, spec.size, spec.size))

    def postponed(self, slot: int, place: int) -> UInt8[np.ndarray, "1"]:
        """Whether a task for that place is not to be begun; these marks fill the slot from its end."""
        return self._view(slot, self._slot_bytes - 1 - place, (1,))

    def _view(self, slot: int, offset: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        return np.ndarray(shape, np.uint8, self._memory, slot * self._slot_bytes + offset)


def clip_bytes(spec: ClipSpec) -> int:
    """The size of a clip."""
    return spec.frames * 3 * spec.size**2


def batch_bytes(clips: int, spec: ClipSpec) -> int:
    """The size of a batch in a ring."""
    return clips * (clip_bytes(spec) + 1)


@runtime_checkable
class Bench(Protocol):
    """What attempts are made with, and where what comes of them goes."""

    def attempt(self, task: Any) -> "Broken | Postponed | Exception | None":
        """Do a task and put what comes of it in its place."""
        ...

    def lost(self, task: Any, reason: str) -> Broken:
        """The entry of an attempt that never ended."""
        ...


@dataclass(frozen=True)
class MixtureBench:
    """A :class:`Bench` of random clips of mixtures."""

    mixtures: Sequence[Mixture]
    ring: Ring

    def attempt(self, task: Task) -> Broken | Postponed | None:
        """Make a clip and put it in its place."""
        if self.ring.postponed(task.slot, task.place)[0]:
            return Postponed()
        try:
            clip = self.mixtures[task.mixture].clip(task.number, task.attempt, task.spec)
        except BrokenFile as error:
            return Broken(error.path, error.reason, task.number, task.attempt)
        self.ring.clip(task.slot, task.place, task.spec)[...] = clip.transpose(0, 3, 1, 2)
        return None

    def lost(self, task: Task, reason: str) -> Broken:
        """The entry of an attempt that never ended."""
        return Broken(self.path(task), reason, task.number, task.attempt, lost=True)

    def path(self, task: Task) -> str:
        """The file that a task draws from."""
        mixture = self.mixtures[task.mixture]
        return mixture.describe(mixture.choice(task.number, task.attempt))


@runtime_checkable
class Crew(Protocol):
    """Who makes attempts."""

    def submit(self, task: Any) -> None:
        """Take on a task (anything that can be hashed and pickled, and its bench knows)."""
        ...

    def take(self, wait: bool) -> tuple[Any, Outcome] | None:
        """A task that has ended; where none has: None, or with ``wait`` the next that does."""
        ...

    def stop(self) -> None:
        """End all work."""
        ...


class Here:
    """This process as its own only worker: one task when one is waited for, and no limit on its time."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._tasks: deque[Any] = deque()

    def submit(self, task: Any) -> None:
        """See :class:`Crew`."""
        self._tasks.append(task)

    def take(self, wait: bool) -> tuple[Any, Outcome] | None:
        """See :class:`Crew`; raises what the source does."""
        if not wait:
            return None
        task = self._tasks.popleft()
        return task, self._bench.attempt(task)

    def stop(self) -> None:
        """See :class:`Crew`."""
        self._tasks.clear()


class Processes:
    """Worker processes that share a queue of tasks; one that hangs or dies is replaced.

    Its task is lost, as ``timeout`` or ``unreadable``. Should the pool itself stop working, as it does when a worker is
    killed between two clips, it is started anew.
    """

    def __init__(self, bench: Bench, workers: int, seconds: float, seed: int) -> None:
        self._bench = bench
        self._workers = workers
        self._seconds = seconds
        self._seed = seed
        self._running: dict[Any, Future] = {}
        self._ended: queue.SimpleQueue[tuple[Any, Future]] = queue.SimpleQueue()
        self._renewals = 0
        self._pool = self._open()

    def submit(self, task: Any) -> None:
        """See :class:`Crew`."""
        try:
            future = self._pool.schedule(_work, (task,), timeout=self._seconds)
        except RuntimeError:  # the pool has stopped working
            future = ProcessFuture()
            future.set_exception(BrokenProcessPool())
        self._running[task] = future
        future.add_done_callback(lambda ended: self._ended.put((task, ended)))

    def take(self, wait: bool) -> tuple[Any, Outcome] | None:
        """See :class:`Crew`. Raises ``UserError`` where workers cannot be kept alive."""
        while True:
            ended = self._next(wait)
            if ended is None:
                return None
            task, future = ended
            if self._running.get(task) is not future:  # it comes from a pool that was given up
                continue
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self._renew()
                continue
            self._renewals = 0
            del self._running[task]
            if isinstance(error, TimeoutError):
                return task, self._bench.lost(task, "timeout")
            if isinstance(error, ProcessExpired):
                return task, self._bench.lost(task, "unreadable")
            return task, future.result()

    def stop(self) -> None:
        """See :class:`Crew`: no worker is left."""
        self._pool.stop()
        self._pool.join()

    def _open(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._workers,
            initializer=_set_up,
            initargs=(self._bench, os.getpid(), self._seed),
            context=multiprocessing.get_context("fork"),
        )

    def _next(self, wait: bool) -> tuple[Any, Future] | None:
        """The next task to end. A pool that ends none in the time that each has is given up."""
        patience = time.monotonic() + self._seconds + _STARTING_SECONDS
        while True:
            try:
                return self._ended.get(timeout=_TICK) if wait else self._ended.get_nowait()
            except queue.Empty:
                if not wait:
                    return None
            if not self._pool.active or time.monotonic() > patience:
                self._renew()
                patience = time.monotonic() + self._seconds + _STARTING_SECONDS

    def _renew(self) -> None:
        """Start all workers anew, with every task that had not ended."""
        self._renewals += 1
        if self._renewals > RENEWALS:
            raise UserError(
                "the loader's worker processes end as soon as they are started, perhaps for want of memory; lower "
                "data.workers, or use data.workers=0"
            )
        self.stop()
        self._pool = self._open()
        for task, future in list(self._running.items()):
            if not future.done() or isinstance(future.exception(), BrokenProcessPool):
                self.submit(task)


_BENCH: list[Bench] = []
"""The bench of a worker process."""


def _work(task: Any) -> Outcome:
    """Errors are handed back as they can be pickled: with their traceback as text."""
    try:
        return _BENCH[0].attempt(task)
    except UserError as error:
        return UserError(str(error))
    except BaseException:
        return RuntimeError(f"a loader worker failed at {task}\n{traceback.format_exc()}")


def _set_up(bench: Bench, parent: int, seed: int) -> None:
    """One thread, and an end when the main process says so."""
    _BENCH[:] = [bench]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    follow(parent)
