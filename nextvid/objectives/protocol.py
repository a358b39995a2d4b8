"""What the loop, the checkpoint and the probe know of a training method: nothing but this."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from nextvid.data.loader import Batch
from nextvid.models.encoder import Encoder

if TYPE_CHECKING:
    from nextvid.config import StageConfig


@dataclass
class Losses:
    """``total`` is what is minimised; ``terms`` are its parts before weighting; ``features`` serve the health figures."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    features: Float[Tensor, "batch latent_frames places width"] | None = None


class Objective(nn.Module, ABC):
    """A training method: adding one is adding a file and a recipe."""

    encoder: Encoder

    @abstractmethod
    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The trained parameters by part, each part with a learning rate of its own."""

    @abstractmethod
    def exports(self) -> dict[str, Encoder]:
        """The encoders that a user may load, by name (``ema``, ``online``)."""

    def before_training(self, batch: Batch) -> None:
        """Measure on a first batch what the method needs to know of the footage; nothing by default."""
        del batch

    @abstractmethod
    def begin_stage(self, stage: "StageConfig") -> None:
        """Take over a stage's masks, draws and momentum."""

    @abstractmethod
    def forward(self, batch: Batch, weights: dict[str, float]) -> Losses:
        """The losses of a batch under the weights of this step."""

    @abstractmethod
    def after_step(self, step: int) -> None:
        """What follows the optimiser's step, e.g. the moving average."""
