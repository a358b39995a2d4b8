"""Probes of a frozen encoder: a grid of them learns from one part of train, the best on the other part meets test, once."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.features import Rows, Standardise, Supply, track
from nextvid.evaluation.scores import Scores
from nextvid.settings import Strict
from nextvid.training.distributed import World

SCORING_ROWS = 64

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ProbeConfig(Strict):
    """How a probe is trained and chosen. Every pair of ``lrs`` x ``weight_decays`` is one member of the grid."""

    lrs: tuple[Rate, ...] = Field(default=(1e-2, 3e-3, 1e-3, 3e-4), min_length=1)
    weight_decays: tuple[Decay, ...] = Field(default=(0.1,), min_length=1)
    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=64, ge=1)
    depth: int = Field(default=1, ge=1)
    """1, as the paper's; 4, as V-JEPA 2's: three self-attention layers come before the one that the query reads."""
    heads: int = Field(default=16, ge=1)
    """Attention heads; where they do not divide the width, the nearest divisor is used and reported."""
    standardise: bool | Literal["both"] = True
    """Take every channel to mean 0 and deviation 1, by statistics of the train features, before the probe.

    ``both``: train with and without, let the held-out part choose, and report both.
    """
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """The share of the train clips on which the best member is chosen; the probes never train on it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What products are computed in; weights, moments and losses are always float32."""
    seed: int = 0

    def members(self) -> list[tuple[float, float]]:
        """The grid: a learning rate and a weight decay a member."""
        return [(lr, decay) for lr in self.lrs for decay in self.weight_decays]


class GridMember(BaseModel):
    """One member of the grid and its accuracy on the held-out part of train."""

    lr: float
    weight_decay: float
    held_out_top1: float
    held_out_loss: float | None
    """None: it has diverged."""


class ProbeResult(BaseModel):
    """What a probe read from an encoder: fractions of the test clips, and how they were come by."""

    task: str
    scores: Scores
    classes: int
    train_clips: int
    """Clips of the train split, the held-out ones included."""
    held_out_clips: int
    held_out_top1: float
    best_lr: float
    best_weight_decay: float
    depth: int
    heads: int
    standardised: bool
    standardise_effect: dict[str, float] | None
    """Where both were tried, the held-out accuracy ``with`` and ``without`` standardised features."""
    grid: list[GridMember]

    @property
    def top1(self) -> float:
        """The share of test clips whose class was named."""
        return self.scores.top1

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95% interval of :attr:`top1`."""
        return self.scores.ci95

    @property
    def test_clips(self) -> int:
        """Test clips that were scored."""
        return self.scores.clips

    @property
    def confusion(self) -> list[list[int]]:
        """Test clips by true class (row) and answered class (column)."""
        return self.scores.confusion


class FittedProbe(BaseModel):
    """The best member of a grid with what it needs to read features: it has seen the train split only."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    probe: AttentiveProbe
    standardise: Standardise | None
    best: GridMember
    grid: list[GridMember]
    held_out_clips: int
    standardise_effect: dict[str, float] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"

    def prepare(self, tokens: Float[Tensor, "clips tokens width"]) -> Float[Tensor, "clips tokens width"]:
        """Tokens as the probe takes them, on its device."""
        moved = tokens.to(self.probe.query.device)
        return self.standardise.apply(moved) if self.standardise else moved.float()

    @torch.inference_mode()
    def logits(self, tokens: Float[Tensor, "clips tokens width"]) -> Float[Tensor, "clips classes"]:
        """The logits of each clip, on the CPU in float32."""
        parts = []
        for part in tokens.split(SCORING_ROWS):
            with autocast(self.probe.query.device, self.precision):
                parts.append(self.probe(self.prepare(part)).float().cpu())
        return torch.cat(parts)

    def answers(self, tokens: Float[Tensor, "clips tokens width"]) -> Int64[Tensor, " clips"]:
        """The class that the probe gives each clip."""
        return self.logits(tokens).argmax(-1)

    @torch.inference_mode()
    def attention(self, tokens: Float[Tensor, "clips tokens width"]) -> Float[Tensor, "clips tokens"]:
        """How much of each token the probe reads, the mean over its heads; sums to 1 over tokens."""
        return torch.cat(
            [self.probe.attention(self.prepare(part)).mean(1).cpu() for part in tokens.split(SCORING_ROWS)]
        )

    def probabilities(
        self, test: Supply, title: str = "testing", *, progress: bool = True, world: World | None = None
    ) -> tuple[Int64[Tensor, " samples"], Float[Tensor, "samples classes"]]:
        """The samples that could be read, rising, and each one's class probabilities: the mean over its views of the softmax.

        Each process reads its own samples, no sample is read twice, and every process gets all.
        """
        world = world or World()
        mine = torch.arange(len(test))[world.rank :: world.ranks]
        plan = [(0, _rows_of(part, test.views)) for part in mine.split(max(1, SCORING_ROWS // test.views))]
        found: dict[int, Tensor] = {}
        for rows, tokens in track(test.batches(plan), len(plan), title, progress and world.first):
            found |= dict(zip(rows.tolist(), self.logits(tokens).softmax(-1), strict=True))
        samples, probabilities = _mean_of_views(found, test.views)
        parts = world.gather((samples, probabilities))
        both = [part for part in parts if len(part[0])] or parts[:1]
        order = torch.cat([part for part, _ in both]).argsort()
        return torch.cat([part for part, _ in both])[order], torch.cat([part for _, part in both])[order]


def _rows_of(samples: Int64[Tensor, " samples"], views: int) -> Rows:
    return (samples[:, None] * views + torch.arange(views)).flatten()


def _mean_of_views(found: dict[int, Tensor], views: int) -> tuple[Tensor, Tensor]:
    """Samples all of whose views were read, and the means over views."""
    samples = sorted({row // views for row in found})
    whole = [s for s in samples if all(s * views + view in found for view in range(views))]
    means = [torch.stack([found[s * views + view] for view in range(views)]).mean(0) for s in whole]
    return torch.tensor(whole, dtype=torch.int64), torch.stack(means) if means else torch.empty(0, 0)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 products, and not float16, where ``precision`` says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
