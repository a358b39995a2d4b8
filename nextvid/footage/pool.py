"""A function over many files in worker processes; one that hangs or dies costs its file alone."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import av.logging
import torch
from pebble import ProcessExpired, ProcessPool

from nextvid.processes import follow

SECONDS = 60.0
"""How long a file may take before its process is replaced and it counts as ``timeout``."""
RENEWALS = 3
"""How often in a row a pool that has stopped working is opened anew without a file done in between."""
_AHEAD = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """A file over which a process hung (``timeout``) or died (``unreadable``)."""

    reason: str


def in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    seconds: float = SECONDS,
    descriptors: Sequence[int] = (),
) -> Iterator[tuple[int, Result | Lost]]:
    """The place of every item and what ``function`` makes of it, as each is done.

    ``descriptors``: open files that workers must not keep, such as locks. Raises what ``function`` raises.
    """
    waiting = iter(range(len(items)))
    running: dict[Future, int] = {}
    pool, renewals = _open(workers, descriptors), 0
    try:
        while True:
            for number in islice(waiting, workers * _AHEAD - len(running)):
                running[pool.schedule(function, args=[items[number]], timeout=seconds)] = number
            if not running:
                break
            done = wait(running, return_when=FIRST_COMPLETED).done
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                renewals += 1
                if renewals > RENEWALS:
                    raise RuntimeError("worker processes end as soon as they are started, perhaps for want of memory")
                numbers, running = sorted(running.values()), {}
                _close(pool)
                pool = _open(workers, descriptors)
                running = {pool.schedule(function, args=[items[n]], timeout=seconds): n for n in numbers}
                continue
            renewals = 0
            for future in done:
                yield running.pop(future), _result(future)
    finally:
        _close(pool)


def _open(workers: int, descriptors: Sequence[int]) -> ProcessPool:
    context = multiprocessing.get_context("fork")
    return ProcessPool(workers, context=context, initializer=_set_up, initargs=(os.getpid(), descriptors))


def _close(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _result(future: Future) -> Any:
    error = future.exception()
    if isinstance(error, TimeoutError):
        return Lost("timeout")
    return Lost("unreadable") if isinstance(error, ProcessExpired) else future.result()


def _set_up(parent: int, descriptors: Sequence[int]) -> None:
    """One thread: a forked process that asks for more waits for those of its parent, which it has not.

    What a decoder says of a damaged file is no news.
    """
    follow(parent)
    torch.set_num_threads(1)
    for descriptor in descriptors:
        os.close(descriptor)
    av.logging.set_libav_level(av.logging.PANIC)
