"""Batches of clips, made in worker processes and handed over in the order of their plans."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nextvid.data.clip import ClipSpec
from nextvid.data.mixture import Mixture
from nextvid.errors import UserError


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


@dataclass(frozen=True)
class Batch:
    """Clips, uint8 ``(batch, frames, 3, size, size)``; the key of each; the files that failed on the way, with why."""

    frames: UInt8[Tensor, "batch frames 3 size size"]
    keys: list[int]
    broken: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Failure:
    """A ``UserError`` on its way from a worker."""

    message: str


def batches(
    mixtures: Sequence[Mixture], plans: Iterable[BatchPlan], workers: int = 0, seed: int = 0, *, prefetch: int = 2
) -> Iterator[Batch]:
    """The batches of ``plans``, in order, the same for any number of ``workers`` (0: in this process).

    Each worker makes whole batches, up to ``prefetch`` ahead. ``seed`` starts the workers' own random numbers, on which
    no sample depends. Raises ``UserError`` as the mixture does.
    """
    loader: DataLoader = DataLoader(
        _Batches(mixtures),
        batch_size=None,
        sampler=plans,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_unchanged,
        worker_init_fn=_set_up_worker,
        generator=torch.Generator().manual_seed(seed),
    )
    for made in loader:
        if isinstance(made, _Failure):
            raise UserError(made.message)
        yield made


def make_batch(mixture: Mixture, plan: BatchPlan) -> Batch:
    """The batch of one plan."""
    numbers = range(plan.first_number, plan.first_number + plan.batch)
    samples = [mixture.sample(number, plan.spec) for number in numbers]
    return Batch(
        frames=torch.stack([sample.frames for sample in samples]),
        keys=[sample.key for sample in samples],
        broken=[entry for sample in samples for entry in sample.broken],
    )


class _Batches(Dataset):
    """Whole batches, indexed by their plans."""

    def __init__(self, mixtures: Sequence[Mixture]) -> None:
        self.mixtures = mixtures

    def __getitem__(self, plan: BatchPlan) -> Batch | _Failure:
        try:
            return make_batch(self.mixtures[plan.mixture], plan)
        except UserError as error:
            return _Failure(str(error))


def _unchanged(made: Any) -> Any:
    return made


def _set_up_worker(_number: int) -> None:
    """One thread; stop signals to the whole process group are left to the main process, which ends its workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
