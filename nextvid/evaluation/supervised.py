"""The ceiling: an encoder of the same size trained end to end on the labels, without end of fresh clips."""

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nextvid.data.clip import ClipSpec, LabelledClips
from nextvid.data.transforms import normalise
from nextvid.errors import UserError
from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.features import RenderedClips, render, track
from nextvid.evaluation.scores import wilson
from nextvid.randomness import generator

Labels = dict[str, Int64[Tensor, " batch"]]
FreshClips = Callable[[int], tuple[UInt8[Tensor, "batch frames 3 height width"], Labels]]
"""A step's number in, its train clips and their labels under every task out."""


class SupervisedConfig(BaseModel):
    """How the ceiling is trained: AdamW, a linear warm-up, then a cosine to 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=2000, ge=1)
    lr: float = Field(default=3e-4, gt=0)
    probe_lr: float = Field(default=1e-2, gt=0)
    """Of the probes: those of frozen features are best at about this rate, and a slow one keeps training at chance."""
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    heads: int = Field(default=16, ge=1)
    curve_every: int = Field(default=50, ge=1)
    """Steps over which a point of the curve is a mean."""
    seed: int = 0


class CurvePoint(BaseModel):
    """Means over the steps since the point before; accuracies are on train clips not yet trained on."""

    step: int
    loss: float
    top1: dict[str, float]


class TaskScore(BaseModel):
    """Test accuracy on one task, as fractions."""

    top1: float
    ci95: tuple[float, float]
    classes: int
    test_clips: int


class SupervisedResult(BaseModel):
    """The ceiling's test scores and how training went; ``seconds`` is training alone."""

    tasks: dict[str, TaskScore]
    curve: list[CurvePoint]
    steps: int
    seconds: float


def fresh_clips(clips: LabelledClips, spec: ClipSpec, batch: int, seed: int = 0) -> FreshClips:
    """Batches drawn from a train split by the key (seed, step), with replacement."""

    def draw(step: int) -> tuple[UInt8[Tensor, "batch frames 3 height width"], Labels]:
        indices = generator("supervised", seed, step).integers(len(clips), size=batch).tolist()
        rendered = render(clips, spec, indices, progress=False)
        return rendered.frames, rendered.labels

    return draw


class SupervisedClassifier(nn.Module):
    """An encoder and one attentive probe a task, trained together.

    Between them channels are standardised over the batch, as the probe of frozen features has them standardised over the
    train split: without it training stays at chance for a thousand steps.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: dict[str, int], heads: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.standardise = nn.BatchNorm1d(width, affine=False)
        self.probes = nn.ModuleDict(
            {task: AttentiveProbe(width, count, heads, seed) for task, count in classes.items()}
        )

    def forward(self, frames: UInt8[Tensor, "batch frames 3 height width"]) -> dict[str, Float[Tensor, "batch _"]]:
        """Logits of every task."""
        tokens = self.encoder(normalise(frames)).flatten(1, -2)
        tokens = self.standardise(tokens.transpose(1, 2)).transpose(1, 2)
        return {task: probe(tokens) for task, probe in self.probes.items()}


def train_supervised(
    encoder: nn.Module,
    width: int,
    clips: FreshClips,
    test: RenderedClips,
    config: SupervisedConfig | None = None,
    *,
    progress: bool = True,
) -> SupervisedResult:
    """Train ``encoder`` (in place) with one probe a task on ``clips(step)``, then score the test split once.

    ``encoder`` takes frames in [-1, 1] ``(B, F, 3, H, W)`` and gives tokens ``(B, T, N, width)``; it stays on its
    device. The losses of the tasks are summed. Raises ``UserError`` if the loss stops being a number.
    """
    config = config or SupervisedConfig()
    device = next(encoder.parameters()).device
    classes = {task: len(names) for task, names in test.tasks.items()}
    model = SupervisedClassifier(encoder, width, classes, config.heads, config.seed).to(device).train()
    optimiser = torch.optim.AdamW(_groups(model, config), lr=config.lr, betas=(0.9, 0.95))
    start = time.monotonic()
    curve: list[CurvePoint] = []
    recent: list[tuple[float, dict[str, float]]] = []
    for step in track(range(config.steps), config.steps, "supervised ceiling", progress):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * _schedule(step, config)
        recent.append(_train_step(model, optimiser, *clips(step), config.clip_norm))
        if not math.isfinite(recent[-1][0]):
            raise UserError(f"the supervised loss is not a number at step {step}: lower lr (now {config.lr:g})")
        if (step + 1) % config.curve_every == 0 or step + 1 == config.steps:
            curve.append(_point(step + 1, recent))
            recent.clear()
    seconds = time.monotonic() - start
    return SupervisedResult(tasks=_test_scores(model, test), curve=curve, steps=config.steps, seconds=seconds)


def _groups(model: SupervisedClassifier, config: SupervisedConfig) -> list[dict]:
    """The encoder and the probes, each at its own rate; weight decay on matrices, none on biases, gains and other vectors."""
    rates = ((model.encoder, config.lr), (model.probes, config.probe_lr))
    return [
        {
            "params": [weight for weight in part.parameters() if (weight.ndim > 1) == matrices],
            "weight_decay": config.weight_decay if matrices else 0.0,
            "peak": peak,
        }
        for part, peak in rates
        for matrices in (True, False)
    ]


def _schedule(step: int, config: SupervisedConfig) -> float:
    """The share of the peak rate at ``step``: up in a line over ``warmup`` steps, then half a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup))


def _train_step(
    model: SupervisedClassifier,
    optimiser: torch.optim.Optimizer,
    frames: UInt8[Tensor, "batch frames 3 height width"],
    labels: Labels,
    clip_norm: float,
) -> tuple[float, dict[str, float]]:
    """One update; the summed loss and each task's accuracy on the clips before it."""
    device = next(model.parameters()).device
    truth = {task: label.to(device) for task, label in labels.items()}
    logits = model(frames.to(device))
    loss = torch.stack([F.cross_entropy(logits[task], truth[task]) for task in logits]).sum()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimiser.step()
    return loss.item(), {task: (logits[task].argmax(-1) == truth[task]).float().mean().item() for task in logits}


def _point(step: int, recent: list[tuple[float, dict[str, float]]]) -> CurvePoint:
    tasks = recent[0][1]
    return CurvePoint(
        step=step,
        loss=sum(loss for loss, _ in recent) / len(recent),
        top1={task: sum(top1[task] for _, top1 in recent) / len(recent) for task in tasks},
    )


@torch.inference_mode()
def _test_scores(model: SupervisedClassifier, test: RenderedClips, batch: int = 64) -> dict[str, TaskScore]:
    model.eval()
    device = next(model.parameters()).device
    correct = dict.fromkeys(test.tasks, 0)
    for start in range(0, len(test.frames), batch):
        part = slice(start, start + batch)
        logits = model(test.frames[part].to(device))
        for task in correct:
            correct[task] += int((logits[task].argmax(-1).cpu() == test.labels[task][part]).sum())
    total = len(test.frames)
    return {
        task: TaskScore(top1=right / total, ci95=wilson(right, total), classes=len(test.tasks[task]), test_clips=total)
        for task, right in correct.items()
    }
