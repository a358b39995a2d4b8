"""What the loop, the checkpoint, the probe and the tables know of a training method: nothing but this."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nextvid.data.loader import Batch
from nextvid.models.encoder import Encoder, EncoderConfig
from nextvid.settings import StageConfig, Strict
from nextvid.targets.space import Space, SpaceConfig


class ObjectiveConfig(Strict):
    """A method's settings: what a recipe's ``objective`` holds.

    A subclass gives ``name`` a ``Literal`` type and a default, which is how recipes find it.
    """

    name: str

    stage_defaults: ClassVar[dict[str, Any]] = {}
    """Those of a stage's keys ``masks``, ``weights``, ``draws`` and ``ema`` that the method reads, and what stands for one
    that a recipe leaves out. ``weights`` names the method's losses."""
    model_keys: ClassVar[tuple[str, ...]] = ("name",)
    """The settings that say what the weights compute, and not how they are trained."""

    def build(self, encoder: EncoderConfig) -> "Objective":
        """The method around a new encoder of this shape."""
        raise NotImplementedError

    def check_stage(self, stage: StageConfig, encoder: EncoderConfig) -> None:
        """Raise ``ValueError`` where the method cannot train on a stage's clips; by default it can."""

    def needs_whole_batch(self) -> str | None:
        """The setting for which a clip's loss depends on the batch's other clips, so that a batch cannot be split; by default
        there is none.
        """
        return None


@dataclass
class Health:
    """What shows whether features are alive, beside the losses.

    ``features``: normalised tokens of the whole clip. ``blind``: the loss, by term, of a predictor that knows nothing of
    the clip; the term's skill is measured against it. ``further``: figures that only this method has, by name.
    """

    features: Float[Tensor, "batch latent_frames places width"]
    blind: dict[str, float] = field(default_factory=dict)
    further: dict[str, float] = field(default_factory=dict)


@dataclass
class Losses:
    """``total`` is what is minimised; ``terms`` are its parts before weighting.

    ``health`` is called where a row is logged, so what it computes costs nothing in other steps.
    """

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    health: Callable[[], Health] | None = None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one clip's forward pass by part, named as the objective's modules are.

    Products and sums of linear maps and attention are counted (a product of n x k with k x m is 2nkm), nothing else, as is
    usual for a share of the peak. ``trained`` passes are followed by a backward pass, ``frozen`` ones are not.
    """

    trained: dict[str, int]
    frozen: dict[str, int] = field(default_factory=dict)

    @property
    def forward(self) -> dict[str, int]:
        """Of all passes, by part."""
        names = dict.fromkeys([*self.trained, *self.frozen])
        return {name: self.trained.get(name, 0) + self.frozen.get(name, 0) for name in names}

    @property
    def backward(self) -> int:
        """A backward pass takes two forward passes; what is computed twice to save memory counts once."""
        return 2 * sum(self.trained.values())

    @property
    def step(self) -> int:
        """Of one clip's step, there and back."""
        return sum(self.forward.values()) + self.backward


class Objective(nn.Module, ABC):
    """A training method: adding one is adding a file and a recipe (docs/objectives.md)."""

    encoder: Encoder

    @abstractmethod
    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The trained parameters by part, one of which is ``encoder``; each part has a learning rate of its own."""

    @abstractmethod
    def exports(self) -> dict[str, Encoder]:
        """The encoders that a user may load, by name (``ema``, ``online``); the first is what ``nextvid.load`` gives."""

    def before_training(self, batch: Batch) -> None:
        """Measure on a first batch what the method needs to know of the footage; nothing by default."""
        del batch

    def relies_on(self) -> dict[str, str]:
        """Checksums, by setting, of what it was built from and no checkpoint holds; a run goes on with the same only."""
        return {}

    def draws_in(self) -> tuple[SpaceConfig, Space] | None:
        """The target space whose maps a batch may bring along (``Batch.latents``), and its settings; by default none."""
        return None

    @abstractmethod
    def begin_stage(self, stage: StageConfig) -> None:
        """Take over a stage's masks, draws and momentum."""

    @abstractmethod
    def forward(self, batch: Batch, weights: dict[str, float]) -> Losses:
        """The losses of a batch under the weights of this step."""

    def after_step(self, step: int) -> None:
        """What follows the optimiser's step, e.g. the moving average; nothing by default."""
        del step

    @abstractmethod
    def flops(self, stage: StageConfig) -> Flops:
        """What a clip of this stage costs: compute is compared, and a machine's share of its peak measured, with it."""


def parts_of(module: nn.Module, names: tuple[str, ...]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The parameters of the named children, each child a part."""
    return {
        name: [(f"{name}.{key}", parameter) for key, parameter in module.get_submodule(name).named_parameters()]
        for name in names
    }


def distance(weights: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    """How far ``weights`` are from ``others``, as a share of their own length; sharded weights count as a whole."""
    weights, others = list(weights), list(others)
    apart, length = nn.utils.get_total_norm(torch._foreach_sub(weights, others)), nn.utils.get_total_norm(weights)
    ratio = apart / length
    return float(ratio.full_tensor() if isinstance(ratio, DTensor) else ratio)
