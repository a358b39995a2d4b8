"""Which tensors are alive while a training step runs, without computing it: the recipe's own objective, forward and backward,
on tensors that have a shape and no values (``FakeTensorMode``).

A storage counts from the operation that makes it until Python and autograd let it go. What an operation takes for itself and
gives back before it ends is not seen.
"""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nextvid.config import Recipe
from nextvid.data.loader import Batch
from nextvid.masking import visible_count
from nextvid.objectives import Objective
from nextvid.planning.work import skeleton
from nextvid.settings import StageConfig
from nextvid.targets.space import PIXELS_AT_ONCE, MapSpace
from nextvid.training.distributed import World
from nextvid.training.parallel import Forward, spread

GRADIENTS, CASTS, FIXED, PER_CLIP = range(4)
PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149)


@dataclass(frozen=True)
class Trace:
    """Bytes alive beside weights, moments and batch, at every moment of a step: a row a new storage, columns ``GRADIENTS``,
    ``CASTS`` (weights in the precision that is computed in), ``FIXED`` (the rest that does not grow with the batch) and
    ``PER_CLIP`` (the rest that does, for one clip). ``forward``: the number of rows that the forward pass has.
    """

    rows: Int64[np.ndarray, "moments 4"]
    forward: int


def trace_of(recipe: Recipe, stage: StageConfig, gradients: bool, cpu: bool) -> Trace:
    """The trace of a step of ``stage``.

    ``gradients``: there are some already (:func:`nextvid.planning.memory.gradients_stay`). ``cpu``: attention is what the
    CPU computes; else one fused operation.
    """
    objective = skeleton(recipe)
    clips = _prime(recipe, stage, objective)
    with imagined(recipe, stage, objective, clips) as (forward, batch):
        for parameter in objective.parameters():
            parameter.grad = torch.zeros_like(parameter) if gradients and parameter.requires_grad else None
        if not cpu:
            for space in _spaces(objective):
                space.chunk = max(1, PIXELS_AT_ONCE["cuda"] // stage.size**2)
        watch = _Watch(clips, list(objective.parameters()), [*objective.buffers(), batch.frames])
        half = recipe.training.precision == "bfloat16"
        with watch, _attention(cpu):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = forward(batch, {name: max(ends) for name, ends in (stage.weights or {}).items()})
            passed = len(watch.rows)
            losses.total.backward()
    return Trace(np.array(watch.rows, dtype=np.int64), passed)


@contextmanager
def imagined(recipe: Recipe, stage: StageConfig, objective: Objective, clips: int) -> Iterator[tuple[Forward, Batch]]:
    """``objective``, which has no storage yet, as training would call it, and a batch for it; within, nothing is computed."""
    with (
        _forgotten_constants(),
        _replaced("nextvid.objectives.", "hidden_places", _hidden_places),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        objective.to_empty(device="cpu")
        for space in _spaces(objective):
            space._in_chunks = _first_chunk  # type: ignore[method-assign]
        eager = recipe.training.model_copy(update={"compile": False})
        forward = spread(objective, eager, World(), torch.device("cpu"))
        objective.begin_stage(stage)
        shape = (clips, stage.frames, 3, stage.size, stage.size)
        yield forward, Batch(torch.zeros(shape, dtype=torch.uint8), list(range(clips)))


class _Watch(TorchDispatchMode):
    """Keeps the sums of living storages by column, and a row of them for every operation that makes one.

    The batch is a prime that divides no size of the model, so that a storage whose bytes it divides holds the batch.
    """

    def __init__(self, clips: int, parameters: list[nn.Parameter], others: list[Tensor]) -> None:
        """Parameters and ``others`` are there throughout and not counted; the gradients of parameters are."""
        super().__init__()
        self.rows: list[tuple[int, ...]] = []
        self._clips = clips
        self._sums = [0, 0, 0, 0]
        self._known: dict[int, tuple[int, int, weakref.ref]] = {}
        self._parameters = {p.untyped_storage()._cdata for p in parameters}
        self._held = {t.untyped_storage()._cdata for t in others} | self._parameters
        for parameter in parameters:
            if parameter.grad is not None:
                self._add(parameter.grad, GRADIENTS)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._accumulated)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        if func is torch.ops.prim.device.default:  # asked for at every turn, and slow through two modes
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        cast = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._parameters
        made = [self._add(t, CASTS if cast else None) for t in tree_leaves(out) if isinstance(t, Tensor)]
        if any(made):
            self.rows.append(tuple(self._sums))
        return out

    def _add(self, tensor: Tensor, column: int | None) -> bool:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._held or size == 0:
            return False
        if column is None:
            column, size = (FIXED, size) if size % self._clips else (PER_CLIP, size // self._clips)
        self._sums[column] += size
        self._known[key] = (column, size, weakref.ref(storage, lambda _: self._gone(key)))
        return True

    def _gone(self, key: int) -> None:
        column, size, _ = self._known.pop(key)
        self._sums[column] -= size

    def _accumulated(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        column, size, alive = self._known[key]
        self._sums[column] -= size
        self._sums[GRADIENTS] += size
        self._known[key] = (GRADIENTS, size, alive)


def _prime(recipe: Recipe, stage: StageConfig, objective: Objective) -> int:
    """A number of clips that divides the bytes of nothing else."""
    side = stage.size // recipe.encoder.patch
    sizes = [stage.frames, side, *(visible_count(mask, side, side) for mask in stage.masks or [])]
    sizes += [size for tensor in (*objective.parameters(), *objective.buffers()) for size in tensor.shape]
    return next(prime for prime in PRIMES if all(size % prime for size in sizes if size))


@contextmanager
def _forgotten_constants() -> Iterator[None]:
    """Models keep positions and masks for the next call; those of a simulation must not meet a real one's."""
    kept: list[Callable[[], None]] = [
        value.cache_clear
        for name, module in list(sys.modules.items())
        if name.startswith("nextvid.models.")
        for value in vars(module).values()
        if hasattr(value, "cache_clear")
    ]
    for clear in kept:
        clear()
    try:
        yield
    finally:
        for clear in kept:
            clear()


@contextmanager
def _attention(cpu: bool) -> Iterator[None]:
    """On a GPU every pattern is one fused operation (FlexAttention, flash attention): it keeps queries, keys, values, its output
    and a number a query. On a CPU it is what the code does there: casts, a mask, or a call a frame."""
    with nullcontext() if cpu else _replaced("nextvid.models.", "attend", _fused):
        yield


def _fused(q: Tensor, k: Tensor, v: Tensor, *_pattern: object) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v)


def _spaces(objective: nn.Module) -> list[MapSpace]:
    return [module for module in objective.modules() if isinstance(module, MapSpace)]


def _first_chunk(function: Callable[[Tensor], Tensor], batch: Tensor, count: int) -> Tensor:
    """A target space's pass over so many frames at once, of which one is as large as the next."""
    made = function(batch[:count])
    return made.new_zeros(len(batch), *made.shape[1:])


def _hidden_places(visible: Tensor, places: int) -> Tensor:
    """As many places as are hidden: which ones they are depends on values, and there are none."""
    return visible.new_zeros(len(visible), places - visible.shape[1])


@contextmanager
def _replaced(package: str, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """``stand_in`` wherever a module of ``package`` has ``name``."""
    modules = [m for key, m in list(sys.modules.items()) if key.startswith(package) and name in vars(m)]
    originals = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            setattr(module, name, original)
