"""Shards made by several processes of this machine; one that dies or hangs over a file is replaced and goes on without it."""

import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from nextvid.errors import UserError
from nextvid.footage.shard import ShardFacts, ShardProgress, ShardTask, make_shard
from nextvid.processes import follow

PATIENCE = 600.0
"""Seconds without a new clip after which a file counts as ``timeout``."""
_DEATHS = 2
"""Processes that a file may cost before it counts as ``unreadable``."""
_STARTS = 3
"""Processes that a shard may cost while none of its files is at work."""
_START = 120.0
"""Seconds of patience at least while none of a shard's files is at work."""


@dataclass(frozen=True)
class _Failure:
    """What a worker could not do: a sentence for the user, or else a fault of the program."""

    words: str
    users: bool


@dataclass
class _Worker:
    """A process, what it is at, and when it was last heard of."""

    process: Any
    line: Connection
    task: ShardTask | None = None
    row: int | None = None
    heard: float = field(default_factory=time.monotonic)

    def give(self, task: ShardTask) -> None:
        self.task, self.row, self.heard = task, None, time.monotonic()
        with suppress(OSError):  # a process that is dead already: its line says so when it is read
            self.line.send(task)

    def end(self) -> None:
        """Kill it; what it has half written goes with it."""
        self.process.kill()
        self.process.join()
        self.line.close()
        if self.task is not None:
            for half in self.task.folder.glob(f".{self.task.shard.stem}.*.{self.process.pid}.tmp"):
                half.unlink(missing_ok=True)

    def silent(self, patience: float) -> bool:
        limit = patience if self.row is not None else max(patience, _START)
        return self.task is not None and time.monotonic() - self.heard > limit


def make_shards(
    tasks: Iterable[ShardTask], workers: int, patience: float = PATIENCE
) -> Iterator[tuple[ShardTask, ShardProgress | ShardFacts]]:
    """Make the shards; yields how far each is and, once it is there, what it holds.

    A file over which a process hangs for ``patience`` seconds is ``timeout``; one over which it dies twice is
    ``unreadable``. Raises ``UserError`` where the disk cannot take a shard or processes keep ending before and after its
    files, ``RuntimeError`` where a worker fails.
    """
    waiting = iter(tasks)
    crew: list[_Worker] = []
    deaths = Counter[tuple[int, int | None]]()
    try:
        for task in (task for _, task in zip(range(workers), waiting, strict=False)):
            crew.append(_started(task))
        while crew:
            ready = wait([worker.line for worker in crew], timeout=min(1.0, patience))
            for place, worker in enumerate(crew):
                if worker.line in ready:
                    message = _received(worker)
                    if message is None:
                        crew[place] = _replaced(worker, "unreadable", deaths)
                        continue
                    assert worker.task is not None
                    yield worker.task, message
                    if isinstance(message, ShardFacts):
                        _next(worker, waiting)
                elif worker.silent(patience):
                    crew[place] = _replaced(worker, "timeout", deaths)
            for worker in [worker for worker in crew if worker.task is None]:
                worker.end()
                crew.remove(worker)
    finally:
        for worker in crew:
            worker.end()


def _started(task: ShardTask) -> _Worker:
    context = multiprocessing.get_context("spawn")
    line, other = context.Pipe()
    process = context.Process(target=_work, args=(other, os.getpid()), daemon=True)
    process.start()
    other.close()
    worker = _Worker(process, line)
    worker.give(task)
    return worker


def _next(worker: _Worker, waiting: Iterator[ShardTask]) -> None:
    task = next(waiting, None)
    if task is None:
        worker.task = None
    else:
        worker.give(task)


def _received(worker: _Worker) -> ShardProgress | ShardFacts | None:
    """What a worker says; None where it is dead."""
    try:
        message = worker.line.recv()
    except (EOFError, OSError):
        return None
    worker.heard = time.monotonic()
    if isinstance(message, _Failure):
        raise UserError(message.words) if message.users else RuntimeError(message.words)
    worker.row = message.row if isinstance(message, ShardProgress) else None
    return message


def _replaced(worker: _Worker, reason: str, deaths: "Counter[tuple[int, int | None]]") -> _Worker:
    """Another process for the same shard, without the file that has cost the one before, if that is sure."""
    worker.end()
    assert worker.task is not None
    task, at_work = worker.task, (worker.task.shard.number, worker.row)
    deaths[at_work] += 1
    if worker.row is None:
        if deaths[at_work] == _STARTS:
            raise UserError(
                f"{_STARTS} processes for {task.tar.name} ended or hung with none of its files at work, the last with exit "
                f"code {worker.process.exitcode}; perhaps for want of memory: try again with fewer workers."
            )
    elif reason == "timeout" or deaths[at_work] == _DEATHS:
        task = replace(task, broken=(*task.broken, (worker.row, reason)))
    return _started(task)


def _work(line: Connection, parent: int) -> None:
    """The life of a worker: shards, until the line is closed or process ``parent`` has gone."""
    follow(parent)
    torch.set_num_threads(1)

    def say(message: ShardProgress | ShardFacts | _Failure) -> None:
        try:
            line.send(message)
        except OSError as error:
            raise SystemExit("the main process is gone") from error

    while True:
        try:
            task = line.recv()
        except (EOFError, OSError):
            return
        try:
            say(make_shard(task, say))
        except UserError as error:
            say(_Failure(str(error), users=True))
        except Exception:
            say(_Failure(traceback.format_exc(), users=False))
