"""The processes that train together: how they find one another, agree, and fail as one.

``torchrun`` (or whatever sets the same variables) says who is who. Where there are signs of several processes and no way for
them to meet, the run stops with a sentence: it never goes on as one process in silence.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from nextvid.errors import LostError, Stopped, UserError

T = TypeVar("T")

WANTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHERS = {"SLURM_NTASKS": "SLURM", "OMPI_COMM_WORLD_SIZE": "Open MPI", "PMI_SIZE": "MPI"}
"""Variables that say how many processes were started, by those who start them without saying where they meet."""
MEETING = 300.0
"""Seconds within which all processes must have come, or fewer where ``training.timeout`` is less."""
POLL = 0.05
HOW = "start every machine with torchrun --nnodes M --nproc-per-node N … (docs/training.md)"


class AgreedError(UserError):
    """Wrong input that all processes know of: the first one says it, the others end without a word."""


@dataclass(frozen=True)
class World:
    """This process among ``ranks``, of which it is number ``rank``, on its machine number ``local_rank``.

    ``saving``: a group for checkpoints, which are written while the others train.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    saving: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everybody's value, in the order of ranks."""
        return gather(value, self.ranks)

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean over ranks of each of as many numbers; alone, the numbers themselves."""
        if self.ranks == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return (numbers / self.ranks).tolist()

    def most(self, values: Sequence[int]) -> list[int]:
        """The largest over ranks of each of as many numbers."""
        if self.ranks == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is wrong for one process stops all of them. Nothing inside may wait for another process."""
        error: UserError | None = None
        try:
            yield
        except UserError as found:
            error = found
        told = self.gather(None if error is None else str(error))
        wrong = {rank: text for rank, text in enumerate(told) if text is not None}
        if not wrong:
            return
        ranks = {text: [rank for rank in wrong if wrong[rank] == text] for text in wrong.values()}
        everybody = len(ranks) == 1 and (len(wrong) == self.ranks or 0 in wrong)
        said = list(wrong.values())[:1] if everybody else [f"rank {found[0]}: {text}" for text, found in ranks.items()]
        raise AgreedError("; ".join(said[:3])) from error

    def same(self, what: str, value: str) -> None:
        """Raise ``AgreedError`` where not all processes have one value of ``what``."""
        values = self.gather(value)
        other = next((rank for rank, found in enumerate(values) if found != values[0]), None)
        if other is not None:
            raise AgreedError(
                f"the processes differ in {what}: rank 0 has {values[0][:200]}, rank {other} has {values[other][:200]}; "
                "start all of them with one command, one version and one set of files"
            )


def gather(value: T, ranks: int, group: Any = None) -> list[T]:
    """Everybody's value, in the order of ranks."""
    if ranks == 1:
        return [value]
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, value, group=group)
    return found


@contextmanager
def world_of(timeout: float, device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[World]:
    """This process's place among those that ``torchrun`` has started; alone where there is no sign of others.

    ``timeout``: seconds to wait for others. Raises ``LostError`` where one of them goes, and ``UserError`` where the processes
    cannot meet, or more of them share a machine than it has CUDA devices.
    """
    place = place_of(os.environ)
    if place is None:
        yield World()
        return
    rank, ranks, local = place
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK={local}, but this machine shows {torch.cuda.device_count()} CUDA devices; use --nproc-per-node "
            f"{torch.cuda.device_count()} or training.device=cpu"
        )
    if cuda:
        torch.cuda.set_device(local)
    _meet(rank, ranks, timeout, cuda)
    try:
        saving = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        yield World(rank, ranks, local, saving)
    except (AgreedError, Stopped):
        dist.destroy_process_group()
        raise
    except UserError as error:
        error.rank = rank  # type: ignore[attr-defined]
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostError(
            f"rank {rank} has lost another process ({str(error).strip().splitlines()[0][:200]}); what that one said stands "
            "before or after this. The same command goes on from the last checkpoint"
        ) from None
    # Only here and where all stop together: to end a group of NCCL while others compute is to wait for them.
    dist.destroy_process_group()


def place_of(environment: Any) -> tuple[int, int, int] | None:
    """Rank, number of ranks and local rank of the variables that ``torchrun`` sets; None where nobody has set any.

    Raises ``UserError`` where some are missing or wrong, or where another launcher started several processes without them.
    """
    if not any(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        for name, launcher in LAUNCHERS.items():
            if _number(environment, name, 1) > 1:
                raise UserError(
                    f"{launcher} has {environment[name]} processes ({name}), but nothing says where they meet: {HOW}; or "
                    f"unset {name} to train in this process alone"
                )
        return None
    missing = [name for name in WANTED if not environment.get(name)]
    if missing:
        raise UserError(f"{', '.join(missing)} is not set, though other variables of torchrun are: {HOW}")
    rank, ranks = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if not 0 <= rank < ranks:
        raise UserError(f"RANK={rank} must lie between 0 and WORLD_SIZE={ranks}, without the latter: {HOW}")
    if "LOCAL_RANK" not in environment and torch.cuda.device_count() > 1:
        raise UserError(f"LOCAL_RANK is not set, and this machine has several CUDA devices: {HOW}")
    return rank, ranks, _number(environment, "LOCAL_RANK", 0)


def _number(environment: Any, name: str, otherwise: int | None = None) -> int:
    text = environment.get(name, otherwise)
    try:
        return int(text)
    except (TypeError, ValueError):
        raise UserError(f"{name}={text} is not a number") from None


def _meet(rank: int, ranks: int, timeout: float, cuda: bool) -> None:
    seconds = min(timeout, MEETING)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=seconds))))
        token = agree(store, rank, ranks, seconds)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore(token, store),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout),
        )
    except (dist.DistError, RuntimeError, ValueError, TimeoutError) as error:
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"rank {rank} of {ranks} could not meet the others at {where} within {seconds:g} s ({said}); check that all "
            f"processes were started, that MASTER_ADDR is a machine that all can reach, and that its port is free: {HOW}"
        ) from error


def agree(store: Store, rank: int, ranks: int, seconds: float) -> str:
    """A word that exactly the processes that are here now have in common.

    ``torchrun`` keeps its store when it starts processes anew, and its agents do not count restarts alike, so that what the dead
    have written there must not be taken for the living. Every process leaves a word of its own; the first one calls out a new
    one together with all that it sees; who finds his own in it answers; with all answers there the word is good. Raises
    ``TimeoutError`` naming who has not answered.
    """
    mine, word, until = uuid.uuid4().hex, uuid.uuid4().hex, time.monotonic() + seconds
    store.set(f"here {rank}", mine)
    while time.monotonic() < until:
        if rank == 0:
            present = {r: store.get(f"here {r}").decode() for r in range(ranks) if store.check([f"here {r}"])}
            store.set("call", json.dumps({"word": word, "present": present}))
        if store.check(["call"]):
            call = json.loads(store.get("call"))
            if call["present"].get(str(rank)) == mine:
                store.set(f"answer {rank}", call["word"])
                word = call["word"]
        if rank == 0 and not _silent(store, word, ranks):
            store.set(f"good {word}", "")
        if store.check([f"good {word}"]):
            return word
        time.sleep(POLL)
    silent = ", ".join(str(r) for r in _silent(store, word, ranks))
    raise TimeoutError(f"no word of rank {silent}")


def _silent(store: Store, word: str, ranks: int) -> list[int]:
    """The processes that have not answered ``word``."""
    return [r for r in range(ranks) if not store.check([f"answer {r}"]) or store.get(f"answer {r}").decode() != word]
