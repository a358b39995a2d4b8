"""One grid of probes over one encoder's tokens: its steps, what it makes of held-out clips, and the choice."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nextvid.errors import UserError
from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.features import Features, Rows, Standardise, Supply
from nextvid.evaluation.grid import GridAdamW, ProbeGrid
from nextvid.evaluation.probe import SCORING_ROWS, FittedProbe, GridMember, ProbeConfig, autocast
from nextvid.training.distributed import World

State = dict[str, Tensor]


class Fit:
    """One grid over one supply, and how its members stand."""

    def __init__(
        self,
        train: Supply,
        task: str,
        classes: int,
        config: ProbeConfig,
        standardised: bool,
        device: torch.device,
        world: World,
    ) -> None:
        self.task, self.config, self.standardised, self.device, self.world = task, config, standardised, device, world
        self.labels = train.labels[task].to(device)
        self.standardise: Standardise | None = None
        probe = AttentiveProbe(train.width, classes, config.heads, config.seed, config.depth).to(device)
        self.grid = ProbeGrid([probe] * len(config.members()))
        rates, decays = torch.tensor(config.members(), device=device).unbind(1)
        self.optimiser = GridAdamW(self.grid, rates, decays)
        dtype = torch.float16 if standardised or config.depth == 1 else torch.float32
        self.in_memory = _InMemory(train, dtype) if isinstance(train, Features) else None
        self.correct = torch.zeros(self.grid.members, dtype=torch.float64)
        self.loss = torch.zeros(self.grid.members, dtype=torch.float64)
        self.judged = 0

    def state(self) -> State:
        """All that a fit needs to go on."""
        found: State = {f"weights.{name}": weight.detach() for name, weight in self.grid.weights.items()}
        for name, (first, second) in self.optimiser.moments.items():
            found |= {f"first.{name}": first, f"second.{name}": second}
        if self.standardise:
            found |= {"mean": self.standardise.mean, "deviation": self.standardise.deviation}
        return {**found, "steps": torch.tensor(self.optimiser.steps)}

    def restore(self, prefix: str, state: State) -> None:
        """The inverse of :meth:`state`, whose keys begin with ``prefix``."""
        with torch.no_grad():
            for name, weight in self.grid.weights.items():
                weight.copy_(state[f"{prefix}weights.{name}"])
            for name, (first, second) in self.optimiser.moments.items():
                first.copy_(state[f"{prefix}first.{name}"])
                second.copy_(state[f"{prefix}second.{name}"])
        if self.standardised:
            self.standardise = Standardise(state[f"{prefix}mean"], state[f"{prefix}deviation"])
        self.optimiser.steps = int(state[f"{prefix}steps"])

    def step(self, rows: Rows, tokens: Float[Tensor, "batch tokens channels"], batch: int, scale: float) -> None:
        """One update by the mean loss over the ``batch`` clips of all processes, at ``scale`` times the rates."""
        if len(rows):
            with autocast(self.device, self.config.precision):
                logits = self.grid(self._prepared(rows, tokens)).float()
            truth = self.labels[rows.to(self.device)].expand(self.grid.members, -1)
            (F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="sum") / batch).backward()
        if self.world.ranks > 1:
            self.grid.sum_gradients(dist.all_reduce)
        self.optimiser.step(scale)

    def _prepared(
        self, rows: Rows, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        if self.in_memory:
            return self.in_memory.prepared(self._prepare)[rows].to(self.device).float()
        return self._prepare(tokens)

    def _prepare(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        moved = tokens.to(self.device)
        return self.grid.prepare(self.standardise.apply(moved) if self.standardise else moved.float())

    @torch.inference_mode()
    def judge(self, rows: Rows, tokens: Float[Tensor, "batch tokens channels"]) -> None:
        """Count what every member makes of held-out clips."""
        if not len(rows):
            return
        with autocast(self.device, self.config.precision):
            logits = self.grid(self._prepared(rows, tokens)).float()
        truth = self.labels[rows.to(self.device)]
        self.correct += (logits.argmax(-1) == truth).sum(1).cpu()
        self.loss -= logits.log_softmax(-1)[:, torch.arange(len(rows)), truth].sum(1).cpu()
        self.judged += len(rows)

    def chosen(self, held_out: int) -> FittedProbe:
        """The member that is best on the held-out clips of all processes; one that has diverged scores 0."""
        parts = self.world.gather((self.correct, self.loss, self.judged))
        correct = torch.stack([part[0] for part in parts]).sum(0).tolist()
        loss = torch.stack([part[1] for part in parts]).sum(0).tolist()
        judged = sum(part[2] for part in parts)
        if not judged:
            raise UserError(
                "not one held-out clip could be read, so that no probe can be chosen: see which files are broken"
            )
        table = [
            GridMember(
                lr=lr,
                weight_decay=decay,
                held_out_top1=right / judged if math.isfinite(cost) else 0.0,
                held_out_loss=cost / judged if math.isfinite(cost) else None,
            )
            for (lr, decay), right, cost in zip(self.config.members(), correct, loss, strict=True)
        ]
        best = max(range(len(table)), key=lambda index: rank(table[index]))
        return FittedProbe(
            probe=self.grid.member(best),
            standardise=self.standardise,
            best=table[best],
            grid=table,
            held_out_clips=held_out,
            precision=self.config.precision,
        )


class _InMemory:
    """Tokens in memory as a grid takes them, made once for all epochs.

    float16 is safe for values of about unit variance, as standardised and LayerNormed ones are.
    """

    def __init__(self, train: Features, dtype: torch.dtype) -> None:
        self._train, self._dtype = train, dtype
        self._made: Tensor | None = None

    @torch.no_grad()
    def prepared(self, prepare: Callable[[Tensor], Tensor]) -> Float[Tensor, "rows tokens channels"]:
        """As ``prepare`` leaves them."""
        if self._made is None:
            tokens = self._train.tokens
            self._made = torch.empty(tokens.shape, dtype=self._dtype)
            for target, part in zip(self._made.split(SCORING_ROWS), tokens.split(SCORING_ROWS), strict=True):
                target.copy_(prepare(part))
        return self._made


def rank(member: GridMember) -> tuple[float, float]:
    """By accuracy on the held-out clips; of equals the one of lower loss."""
    loss = math.inf if member.held_out_loss is None else member.held_out_loss
    return member.held_out_top1, -loss
