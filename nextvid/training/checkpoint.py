"""Checkpoints: a folder ``step_N`` that is complete or absent, with a checksum of every file.

Written while the next steps run, by all processes, and read by as many as there are then.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

from nextvid.errors import UserError
from nextvid.files import checksum, replace_json, sync
from nextvid.training import tensors as stored
from nextvid.training.distributed import World, gather
from nextvid.training.optim import moments, moments_to_fill
from nextvid.weights import check_fit, read_tensors

FORMAT_VERSION = 2
STATE = "state.json"
MODEL, OPTIMISER = "model.", "optimiser."
"""What the names of tensors begin with."""
GROUP = 2**26
"""Values that are read at once where a checkpoint is read tensor by tensor."""
FORMAT_1 = {MODEL: "model.safetensors", OPTIMISER: "optimiser.safetensors"}
"""The files of a checkpoint of format 1, which is still read; what is saved next has the present format."""


@dataclass
class Progress:
    """Where a run stands: steps done, seconds spent, the sums of the logging window under way, and steps that were skipped
    because something was not finite, in all and since the last good one.
    """

    step: int = 0
    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    bad_in_a_row: int = 0


@dataclass(frozen=True)
class Retention:
    """What is kept: the ``last`` checkpoints, those at multiples of ``every`` steps (0: none), that of the best score, and, while
    steps are bad, the last two that were saved after a good one, for the run to go back to.
    """

    last: int
    every: int = 0

    def superfluous(self, checkpoints: list[Path]) -> list[Path]:
        """Those of ``checkpoints``, oldest first, that nothing keeps."""
        scores = {path: score for path in checkpoints if (score := score_of(path)) is not None}
        best = max(scores, key=lambda path: (scores[path], step_of(path)), default=None)
        good = [path for path in checkpoints if not _state(path).get("bad_in_a_row")]
        in_trouble = bool(checkpoints) and checkpoints[-1] not in good
        kept = {*checkpoints[-self.last :], best, *(good[-2:] if in_trouble else [])}
        return [p for p in checkpoints if p not in kept and not (self.every and step_of(p) % self.every == 0)]


class Checkpoints:
    """The checkpoints of a run, at most one of which is being written."""

    def __init__(self, folder: Path, world: World, retention: Retention) -> None:
        self.folder, self.world, self.retention = folder, world, retention
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def save(
        self,
        tensors: Mapping[str, Tensor],
        progress: Progress,
        score: float | None = None,
        then: Callable[[Path], None] = lambda _path: None,
    ) -> None:
        """Begin to write ``step_N``, once what was begun before is written; ``then`` is called by the first process.

        Raises ``UserError`` where the one before failed.
        """
        self.wait()
        beside = self.folder / f".step_{progress.step}.tmp"
        if self.world.first:
            shutil.rmtree(beside, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        self.world.gather(None)  # nobody writes before the folder is empty
        writing = stored.write_tensors(beside, tensors, self.world)
        facts = {**vars(progress), "window": dict(progress.window), "score": score, "ranks": self.world.ranks}
        self._under_way = self._thread.submit(self._finish, beside, writing, facts, then)

    @property
    def failed(self) -> bool:
        """Whether what was begun has ended without success."""
        return self._under_way is not None and self._under_way.done() and self._under_way.exception() is not None

    def wait(self) -> None:
        """Until what was begun is on disk. Raises ``UserError`` where it could not be written."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """End the thread, after what it does."""
        self._thread.shutdown(wait=True)

    def _finish(self, beside: Path, writing: Future[Any], facts: dict[str, Any], then: Callable[[Path], None]) -> None:
        """Sign what was written and move it to its place."""
        problem, sums = None, {}
        try:
            writing.result()
            sums = {path.name: checksum(path) for path in sorted(beside.iterdir()) if self._own(path.name)}
        except (CheckpointException, OSError, RuntimeError) as error:
            problem = _reason(error)
        told = gather((problem, sums), self.world.ranks, self.world.saving)
        problem = next((text for text, _ in told if text), None)
        if problem is None and self.world.first:
            signed = {name: digest for _, part in told for name, digest in part.items()}
            try:
                then(self._into_place(beside, {**facts, "sha256": signed}))
            except (OSError, UserError) as error:
                problem = str(error)
        problem = gather(problem, self.world.ranks, self.world.saving)[0]
        if problem is not None:
            if self.world.first:
                shutil.rmtree(beside, ignore_errors=True)
            raise UserError(self._failure(int(facts["step"]), problem))

    def _own(self, name: str) -> bool:
        """Files are named after the process that wrote them; the first one wrote the index."""
        return name.startswith(f"__{self.world.rank}_") or (self.world.first and name == stored.INDEX)

    def _into_place(self, beside: Path, state: dict[str, Any]) -> Path:
        replace_json(beside / STATE, {"format_version": FORMAT_VERSION, **state})
        sync(beside)
        final = self.folder / beside.name[1:].removesuffix(".tmp")
        old = self.folder / f".{final.name}.old.tmp"
        if final.exists():
            os.rename(final, old)
        os.rename(beside, final)
        sync(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        for path in self.retention.superfluous(list_checkpoints(self.folder)):
            remove_checkpoint(path)
        return final

    def _failure(self, step: int, problem: str) -> str:
        whole = list_checkpoints(self.folder)
        last = f"the last complete checkpoint is {whole[-1]}" if whole else "there is no earlier checkpoint"
        free = shutil.disk_usage(self.folder).free / 2**20
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({problem}; {free:.0f} MiB are free there); "
            f"{last}. Make room or mend the disk, and the same command goes on"
        )


def _reason(error: BaseException) -> str:
    """The first line of what went wrong for the first process that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def state_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a checkpoint holds of a model and its optimiser, by name."""
    held = {MODEL + name: value for name, value in model.state_dict().items()}
    return held | {OPTIMISER + name: value for name, value in moments(optimiser).items()}


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in folder.glob("step_*") if p.name[5:].isdigit() and (p / STATE).is_file()]
    return sorted(found, key=step_of)


def score_of(checkpoint: Path) -> float | None:
    """What a probe read from a checkpoint, where one did."""
    return _state(checkpoint).get("score")


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return {}


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; interrupted, it leaves something that is no checkpoint."""
    (path / STATE).unlink(missing_ok=True)
    shutil.rmtree(path)


def tidy(folder: Path) -> None:
    """Put a checkpoint that was complete but not yet in its place there, and delete what saves that were cut short left."""
    newest_first = sorted(folder.glob(".step_*.tmp"), key=lambda path: path.name.endswith(".old.tmp"))
    for leftover in newest_first:
        final = folder / leftover.name[1:].removesuffix(".tmp").removesuffix(".old")
        if (leftover / STATE).is_file() and not final.exists():
            os.rename(leftover, final)
        else:
            shutil.rmtree(leftover, ignore_errors=True)
    for path in folder.glob("step_*"):
        if path.is_dir() and not (path / STATE).is_file():
            shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is no longer one; returns where it is now."""
    aside = path.with_name(f"damaged_{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def damage(path: Path, world: World | None = None) -> str | None:
    """What is wrong with a checkpoint's files, or None; the processes of ``world`` share the work."""
    rank, ranks = (world.rank, world.ranks) if world else (0, 1)
    found = _damage(path, rank, ranks)
    return next((text for text in gather(found, ranks) if text), None)


def _damage(path: Path, rank: int, ranks: int) -> str | None:
    try:
        state = json.loads((path / STATE).read_text())
        version, sums = state["format_version"], sorted(state["sha256"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{STATE} cannot be read ({error})"
    if version not in (1, FORMAT_VERSION):
        return f"its format version is {version}, this nextvid reads 1 to {FORMAT_VERSION}"
    for name, expected in sums[rank::ranks]:
        if not (path / name).is_file():
            return f"{name} is missing"
        if checksum(path / name) != expected:
            return f"the checksum of {name} is wrong"
    return None


def read_progress(path: Path) -> Progress:
    """How far a run was at a checkpoint."""
    state = json.loads((path / STATE).read_text())
    return Progress(**{entry.name: state[entry.name] for entry in fields(Progress) if entry.name in state})


def tensor_shapes(path: Path) -> dict[str, torch.Size]:
    """The names of all tensors of a checkpoint, and their shapes. Raises ``UserError``."""
    if _is_format_1(path):
        return {name: tensor.shape for name, tensor in _read_format_1(path).items()}
    return stored.shapes(path)


def each_tensor(path: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint, some of which are in memory at a time. Raises ``UserError``."""
    if _is_format_1(path):
        yield from _read_format_1(path).items()
        return
    group: list[str] = []
    values = 0
    for name, shape in stored.shapes(path).items():
        if group and values + shape.numel() > GROUP:
            yield from stored.read_tensors(path, group).items()
            group, values = [], 0
        group.append(name)
        values += shape.numel()
    yield from stored.read_tensors(path, group).items()


def read_part(path: Path, prefix: str = MODEL) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with ``prefix``, named without it, whole and on the CPU.

    Raises ``UserError``.
    """
    if _is_format_1(path):
        found = {name: tensor for name, tensor in _read_format_1(path).items() if name.startswith(prefix)}
    else:
        found = stored.read_tensors(path, lambda name: name.startswith(prefix))
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def load_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, world: World) -> Progress:
    """Restore ``model`` and ``optimiser``, spread over ``world``, from a checkpoint that :func:`damage` found whole.

    Raises ``UserError`` where it holds another architecture.
    """
    saved = tensor_shapes(path)
    known = {name.removeprefix(OPTIMISER) for name in saved if name.startswith(OPTIMISER)}
    wanted = {MODEL + name: value for name, value in model.state_dict().items()}
    wanted |= {OPTIMISER + name: value for name, value in moments_to_fill(optimiser, known).items()}
    check_fit(saved, wanted, path)
    if _is_format_1(path):
        for name, whole in _read_format_1(path).items():
            copy_whole(whole, wanted[name])
    else:
        stored.fill_tensors(path, wanted, world)
    return read_progress(path)


@torch.no_grad()
def copy_whole(whole: Tensor, target: Tensor) -> None:
    """Copy a whole tensor to one that may be sharded."""
    if isinstance(target, DTensor):
        target.copy_(distribute_tensor(whole.to(target.device), target.device_mesh, target.placements))
    else:
        target.copy_(whole)


def _is_format_1(path: Path) -> bool:
    return json.loads((path / STATE).read_text())["format_version"] == 1


def _read_format_1(path: Path) -> dict[str, Tensor]:
    found = {MODEL + name: tensor for name, tensor in read_tensors(path / FORMAT_1[MODEL]).items()}
    return found | {OPTIMISER + name: tensor for name, tensor in load_file(path / FORMAT_1[OPTIMISER]).items()}
