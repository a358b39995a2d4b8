"""Memory of one device at the peak of a step, part by part, and the largest micro batch that fits."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import nn

from nextvid.config import Recipe
from nextvid.objectives import Objective
from nextvid.planning.live import CASTS, FIXED, GRADIENTS, PER_CLIP, Trace
from nextvid.settings import StageConfig
from nextvid.training.parallel import blocks_of

RESERVE = 0.1
"""Share of a device's memory that a plan leaves free: for the CUDA context, workspaces, NCCL's buffers and fragmentation."""
FLOAT = 4
GATHERED, REDUCED = 4, 2
"""How often FSDP2 holds a group whole: the weights of the one that is computed and of the next, each beside the buffer that they
came in; and, in float32, the gradients on their way of this one and of the one before."""


@dataclass(frozen=True)
class Held:
    """Bytes of one device that are there throughout a step, or wherever it stands in it.

    ``weights``: trained ones; ``average``: weights without gradient (the reference); ``moments``: AdamW's; ``buffers``: the
    target space's and others; ``gathered``: whole groups of sharded weights and of their gradients on the way.
    """

    weights: int
    average: int
    moments: int
    buffers: int
    gathered: int
    shards: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.average + self.moments + self.buffers + self.gathered


def held_by(objective: Objective, recipe: Recipe, devices: int) -> Held:
    """What one of ``devices`` holds, as ``training.parallel`` spreads it."""
    sharded = devices > 1 and recipe.training.parallel == "fsdp"
    shards = devices if sharded else 1
    half = recipe.training.precision == "bfloat16"
    trained = [p for p in objective.parameters() if p.requires_grad]
    frozen = [p for p in objective.parameters() if not p.requires_grad]
    weights = sum(p.nbytes for p in trained)
    steps = FLOAT * len(trained)
    return Held(
        weights=-(-weights // shards),
        average=-(-sum(p.nbytes for p in frozen) // shards),
        moments=-(-2 * weights // shards) + steps,
        buffers=sum(b.nbytes for b in objective.buffers()),
        gathered=_gathered(objective, 2 if half else FLOAT) if sharded else 0,
        shards=shards,
    )


@dataclass(frozen=True)
class Peak:
    """Bytes at the moment when a device holds most: what is held, the batch, and what the step adds.

    ``casts``: weights in the precision that is computed in. ``kept``: what the forward pass left for the backward pass.
    """

    held: Held
    batch: int
    gradients: int
    casts: int
    kept: int
    transient: int

    @property
    def total(self) -> int:
        """All together."""
        return self.held.total + self.batch + self.gradients + self.casts + self.kept + self.transient

    def parts(self) -> dict[str, int]:
        """Every part's bytes, in the order of a table; they add up to the total."""
        held = self.held
        return {
            "weights": held.weights,
            "moving_average": held.average,
            "moments": held.moments,
            "gradients": self.gradients,
            "cast_weights": self.casts,
            "gathered_blocks": held.gathered,
            "kept_for_backward": self.kept,
            "transient": self.transient,
            "batch": self.batch,
            "buffers": held.buffers,
        }


def clips_of(stage: StageConfig, devices: int) -> tuple[int, int]:
    """Of one device: its share of the batch, and the clips that it computes at once."""
    share = stage.batch // devices
    return share, min(stage.micro_batch or share, share)


def gradients_stay(recipe: Recipe, stage: StageConfig, devices: int) -> bool:
    """Whether a pass begins with gradients: of an earlier micro batch, or DDP's buckets, which it keeps from step to step."""
    share, micro = clips_of(stage, devices)
    return micro < share or (devices > 1 and recipe.training.parallel == "ddp")


def peak_of(held: Held, trace: Trace, stage: StageConfig, share: int, micro: int) -> Peak:
    """The peak of a device with ``share`` clips of the batch, ``micro`` of them at a time."""
    gradients, casts = _spread(held, trace)
    rest = trace.rows[:, FIXED] + micro * trace.rows[:, PER_CLIP]
    moment = int(np.argmax(gradients + casts + rest))
    kept = min(int(rest[trace.forward - 1]), int(rest[moment]))
    return Peak(
        held=held,
        batch=share * bytes_of_clip(stage),
        gradients=int(gradients[moment]),
        casts=int(casts[moment]),
        kept=kept,
        transient=int(rest[moment]) - kept,
    )


def largest_micro_batch(held: Held, trace: Trace, stage: StageConfig, share: int, limit: int) -> int:
    """The most clips at once that stay within ``limit`` bytes and divide ``share``; 0 where not even one does."""
    gradients, casts = _spread(held, trace)
    room = limit - held.total - share * bytes_of_clip(stage) - gradients - casts - trace.rows[:, FIXED]
    growing = trace.rows[:, PER_CLIP] > 0
    if room.min() < 0:
        return 0
    most = int(np.min(room[growing] // trace.rows[growing, PER_CLIP]))
    return max((n for n in range(1, min(most, share) + 1) if share % n == 0), default=0)


def bytes_of_clip(stage: StageConfig) -> int:
    """A clip as the loader hands it over."""
    return stage.frames * 3 * stage.size**2


def _spread(held: Held, trace: Trace) -> tuple[Float[np.ndarray, " moments"], Float[np.ndarray, " moments"]]:
    """Gradients and cast weights at every moment on one device: sharded weights are gathered in the precision that is
    computed in, so there is nothing to cast.
    """
    casts = np.zeros(len(trace.rows)) if held.gathered else trace.rows[:, CASTS].astype(float)
    return np.ceil(trace.rows[:, GRADIENTS] / held.shards), casts


def _gathered(objective: Objective, width: int) -> int:
    """Bytes of the largest group's weights and gradients on their way, where a weight takes ``width`` bytes."""
    return max(_groups(objective)) * ((GATHERED + 1) * width + REDUCED * FLOAT)


def _groups(objective: Objective) -> list[int]:
    """Parameters of every group that is gathered as one: a block, or what else a part has."""
    sizes = []
    for part in objective.children():
        blocks = [_count(block) for block in blocks_of(part)]
        sizes += [*blocks, _count(part) - sum(blocks)]
    return sizes


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
