"""Spreading an objective over devices, from outside: neither models nor objectives know of it.

Inside out: compilation, recomputed activations, then ``fully_shard`` (FSDP2) or ``DistributedDataParallel``.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from nextvid.data.loader import Batch
from nextvid.objectives.protocol import Losses, Objective
from nextvid.settings import TrainingConfig
from nextvid.training.distributed import World

# Nothing here changes what a block returns in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

Forward = Callable[[Batch, dict[str, float]], Losses]
SHAPES = 64
"""Kinds of input that a compiled block may meet: masks, the whole clip, each of them in every stage."""


def spread(objective: Objective, config: TrainingConfig, world: World, device: torch.device) -> Forward:
    """Apply what ``config`` asks for to ``objective``, in place; returns what to call in its stead."""
    if config.compile:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
        _wrap_forwards(objective, lambda forward: torch.compile(forward, dynamic=False))
    if config.activation_checkpointing:
        _wrap_forwards(objective, _recomputed)
    if world.ranks == 1:
        return objective
    if config.parallel == "fsdp":
        _shard(objective, config, device)
        return objective
    # Looking for unused parameters serves losses of weight 0, and keeps DDP from laying out its buckets anew after the first
    # step: a run that goes on would then add up in another order than one that was not interrupted.
    return DistributedDataParallel(
        objective,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # equal from the start, and those of a target space are large
        find_unused_parameters=True,
    )


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of every stack in ``module`` that has weights: what is computed again, compiled and sharded as one.

    A frozen target space has none (:func:`nextvid.targets.space.freeze`).
    """
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            yield from (block for block in part if any(True for _ in block.named_parameters()))


def unsynchronised(forward: Forward) -> AbstractContextManager[Any]:
    """Within it gradients of DDP are added up here and not exchanged; those of FSDP always are, which saves memory."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()


def _wrap_forwards(objective: Objective, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    # The forward of an instance, not a wrapping module: parameters keep their names, and hooks stay outside.
    for block in blocks_of(objective):
        block.forward = wrap(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def _shard(objective: Objective, config: TrainingConfig, device: torch.device) -> None:
    """Blocks, then parts (an average alongside what it averages), then what is left."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    half = torch.bfloat16 if config.precision == "bfloat16" else None
    # Autocast decides what is computed in which precision; the policy only halves what is sent.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    parts = [part for part in objective.children() if any(True for _ in part.named_parameters())]
    for module in (*blocks_of(objective), *parts, objective):
        fully_shard(module, mesh=mesh, mp_policy=policy)
