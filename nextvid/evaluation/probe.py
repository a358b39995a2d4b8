"""The attentive probe of a frozen encoder: one attentive layer and a linear classifier (paper, section 4 and table 10).

``AttentiveProbe`` is the probe as the paper describes it. ``ProbeGrid`` computes many of them side by side: the
LayerNorm of the tokens is shared, each probe's key projection is folded into its query and its value projection comes
after the pooling, so that the tokens are read twice a step whatever the number of probes.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nextvid.errors import UserError
from nextvid.evaluation.features import Features, Standardise, track
from nextvid.randomness import generator, key_of

MLP_RATIO = 4
INIT_DEVIATION = 0.02
NORMAL_95 = 1.959963984540054
SCORING_CLIPS = 256


def heads_for(width: int, wanted: int = 16) -> int:
    """The divisor of ``width`` nearest to ``wanted``; of two equally near, the larger."""
    divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
    return min(divisors, key=lambda heads: (abs(heads - wanted), -heads))


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion, as two fractions."""
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is no proportion")
    share, z2 = correct / total, NORMAL_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = NORMAL_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    low = 0.0 if correct == 0 else centre - spread
    high = 1.0 if correct == total else centre + spread
    return max(0.0, low), min(1.0, high)


class AttentiveProbe(nn.Module):
    """One learned query reads all tokens once; a linear layer names the class (as V-JEPA 2's pooler of depth 1).

    ``x = query + attention(LayerNorm(tokens))``, ``x + MLP(LayerNorm(x))``, linear; no projection after the attention.
    With 400 classes at width 1024 it has 12.0 M parameters.
    """

    def __init__(self, width: int, classes: int, heads: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.heads = heads_for(width, heads)
        self.query = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, MLP_RATIO * width)
        self.mlp_out = nn.Linear(MLP_RATIO * width, width)
        self.classifier = nn.Linear(width, classes)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        if self.query.is_meta:
            return
        draw = torch.Generator().manual_seed(key_of("attentive probe", seed))
        linears = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in [self.query, *(linear.weight for linear in linears)]:
            nn.init.trunc_normal_(weight, std=INIT_DEVIATION, generator=draw)
        for linear in linears:
            nn.init.zeros_(linear.bias)

    def pool(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        """One vector a clip: the attentive layer without the classifier."""
        normed = self.norm(tokens)
        query = self.to_query(self.query).expand(len(tokens), 1, -1)
        attended = F.scaled_dot_product_attention(
            self._split(query), self._split(self.to_key(normed)), self._split(self.to_value(normed))
        )
        vector = self.query + attended.flatten(1)
        return vector + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(vector))))

    def _split(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch {self.heads} tokens head_width"]:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch classes"]:
        """Logits of every class."""
        return self.classifier(self.pool(tokens))


class ProbeGrid:
    """Probes of one shape, side by side: ``weights[name]`` stacks their parameters ``name`` of ``AttentiveProbe``.

    ``to_key.bias`` shifts a member's attention logits all alike, so it cancels and gets no gradient.
    """

    def __init__(self, probes: list[AttentiveProbe]) -> None:
        self.members = len(probes)
        self.heads = probes[0].heads
        states = [dict(probe.named_parameters()) for probe in probes]
        self.weights = {
            name: torch.stack([state[name].detach() for state in states]).requires_grad_() for name in states[0]
        }

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.weights["query"].shape[-1]

    @property
    def classes(self) -> int:
        """Classes that are told apart."""
        return self.weights["classifier.bias"].shape[-1]

    def member(self, index: int) -> AttentiveProbe:
        """A copy of one member as the plain module."""
        query = self.weights["query"]
        probe = AttentiveProbe(self.width, self.classes, self.heads).to(query.device, query.dtype)
        probe.load_state_dict({name: stacked[index].detach() for name, stacked in self.weights.items()})
        return probe

    def _linear(
        self, name: str, inputs: Float[Tensor, "members batch inputs"]
    ) -> Float[Tensor, "members batch outputs"]:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))

    def _per_head(self, name: str) -> Float[Tensor, "members heads head_width width"]:
        return self.weights[f"{name}.weight"].unflatten(1, (self.heads, -1))

    def _folded_query(self) -> Float[Tensor, "members heads width"]:
        """The vector whose product with a LayerNormed token (no affine) is that token's attention logit."""
        query = self._linear("to_query", self.weights["query"][:, None]).unflatten(-1, (self.heads, -1))[:, 0]
        folded = torch.einsum("ghd,ghdc->ghc", query, self._per_head("to_key"))
        return folded * self.weights["norm.weight"][:, None] / math.sqrt(query.shape[-1])

    def _pool_tokens(self, normed: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "members batch heads width"]:
        """What each head of each member sees: the mean of the LayerNormed tokens under its attention weights."""
        batch, tokens, width = normed.shape
        folded = self._folded_query().flatten(0, 1)
        logits = (folded @ normed.reshape(-1, width).T).view(-1, batch, tokens)
        pooled = torch.bmm(logits.softmax(-1).transpose(0, 1), normed)
        pooled = pooled.view(batch, self.members, self.heads, width).transpose(0, 1)
        gain, shift = self.weights["norm.weight"], self.weights["norm.bias"]
        return pooled * gain[:, None, None] + shift[:, None, None]

    def __call__(self, normed: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "members batch classes"]:
        """Every member's logits, from tokens that went through a LayerNorm without affine."""
        pooled = self._pool_tokens(normed)
        attended = torch.einsum("gbhc,ghdc->gbhd", pooled, self._per_head("to_value")).flatten(2)
        vector = self.weights["query"][:, None] + attended + self.weights["to_value.bias"][:, None]
        inner = F.layer_norm(vector, (self.width,)) * self.weights["mlp_norm.weight"][:, None]
        inner = self._linear("mlp_in", inner + self.weights["mlp_norm.bias"][:, None])
        return self._linear("classifier", vector + self._linear("mlp_out", F.gelu(inner)))


class GridAdamW:
    """AdamW (decoupled weight decay, on matrices only) in which every member has its own rate and decay."""

    def __init__(
        self,
        grid: ProbeGrid,
        rates: Float[Tensor, " members"],
        decays: Float[Tensor, " members"],
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.grid = grid
        self.rates = rates
        self.decays = decays
        self.betas = betas
        self.steps = 0
        self.moments = {
            name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in grid.weights.items()
        }

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update at ``scale`` times each member's rate; the gradients are dropped."""
        self.steps += 1
        beta1, beta2 = self.betas
        for name, weight in self.grid.weights.items():
            gradient, weight.grad = weight.grad, None
            if gradient is None:
                continue
            first, second = self.moments[name]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            rates = (self.rates * scale).view(-1, *[1] * (weight.ndim - 1))
            if weight.ndim > 2:
                weight.mul_(1 - rates * self.decays.view(-1, 1, 1))
            root = second.sqrt().div_(math.sqrt(1 - beta2**self.steps)).add_(1e-8)
            weight.sub_(root.reciprocal_().mul_(first).mul_(rates / (1 - beta1**self.steps)))


class ProbeConfig(BaseModel):
    """How a probe is trained and chosen. Every pair of ``lrs`` x ``weight_decays`` is one member of the grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lrs: tuple[float, ...] = Field(default=(1e-2, 3e-3, 1e-3, 3e-4), min_length=1)
    weight_decays: tuple[float, ...] = Field(default=(0.1,), min_length=1)
    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=64, ge=1)
    heads: int = Field(default=16, ge=1)
    """Attention heads; where they do not divide the width, the nearest divisor is used and reported."""
    standardise: bool = True
    """Take every channel to mean 0 and deviation 1, by statistics of the train features, before the probe."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """The share of the train clips on which the best member is chosen; the probes never train on it."""
    seed: int = 0

    def members(self) -> list[tuple[float, float]]:
        """The grid: a learning rate and a weight decay a member."""
        return [(lr, decay) for lr in self.lrs for decay in self.weight_decays]


class GridMember(BaseModel):
    """One member of the grid and its accuracy on the held-out part of train."""

    lr: float
    weight_decay: float
    held_out_top1: float


class ProbeResult(BaseModel):
    """What a probe read from an encoder: fractions of the test clips, and how they were come by."""

    task: str
    top1: float
    ci95: tuple[float, float]
    classes: int
    test_clips: int
    train_clips: int
    """Clips of the train split, the held-out ones included."""
    held_out_clips: int
    held_out_top1: float
    best_lr: float
    best_weight_decay: float
    heads: int
    standardised: bool
    grid: list[GridMember]
    confusion: list[list[int]]
    """Test clips by true class (row) and answered class (column)."""


class FittedProbe(BaseModel):
    """The best member of a grid with what it needs to read features: it has seen the train split only."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    probe: AttentiveProbe
    standardise: Standardise | None
    best: GridMember
    grid: list[GridMember]
    held_out_clips: int

    @torch.inference_mode()
    def answers(self, tokens: Float[Tensor, "clips tokens width"]) -> Int64[Tensor, " clips"]:
        """The class that the probe gives each clip."""
        device = self.probe.query.device
        parts = []
        for part in tokens.split(SCORING_CLIPS):
            moved = part.to(device)
            parts.append(self.probe(self.standardise.apply(moved) if self.standardise else moved.float()).argmax(-1))
        return torch.cat(parts).cpu()


def train_probe(
    train: Features,
    test: Features,
    task: str,
    config: ProbeConfig | None = None,
    *,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Fit a grid of probes on ``train``, choose one on its held-out part, score that one on ``test`` once.

    Raises ``UserError`` as ``fit_probe`` does, and where the two splits do not belong together.
    """
    config = config or ProbeConfig()
    if train.tasks != test.tasks or train.tokens.shape[1:] != test.tokens.shape[1:]:
        raise UserError("train and test features differ in their tasks, classes or token shape: extract both alike")
    fitted = fit_probe(train, task, config, progress=progress, device=device)
    truth, answers = test.labels[task], fitted.answers(test.tokens)
    correct, classes = int((truth == answers).sum()), len(train.tasks[task])
    confusion = torch.bincount(truth * classes + answers, minlength=classes**2).view(classes, classes)
    return ProbeResult(
        task=task,
        top1=correct / len(truth),
        ci95=wilson(correct, len(truth)),
        classes=classes,
        test_clips=len(truth),
        train_clips=len(train.tokens),
        held_out_clips=fitted.held_out_clips,
        held_out_top1=fitted.best.held_out_top1,
        best_lr=fitted.best.lr,
        best_weight_decay=fitted.best.weight_decay,
        heads=fitted.probe.heads,
        standardised=config.standardise,
        grid=fitted.grid,
        confusion=confusion.tolist(),
    )


def fit_probe(
    train: Features,
    task: str,
    config: ProbeConfig,
    *,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> FittedProbe:
    """Train every member of the grid on one part of ``train`` and choose the best on the other.

    Raises ``UserError`` for an unknown task or too few clips to hold some out.
    """
    if task not in train.tasks:
        raise UserError(f"these clips have no labels for task {task!r}; they have {', '.join(sorted(train.tasks))}")
    learn, held_out = _split(len(train.tokens), config)
    standardise = Standardise.fit(train.tokens) if config.standardise else None
    normed = _normed(train.tokens, standardise, device)
    labels = train.labels[task].to(device)
    width, members = normed.shape[-1], config.members()
    probe = AttentiveProbe(width, len(train.tasks[task]), config.heads, config.seed).to(device)
    grid = ProbeGrid([probe] * len(members))
    rates, decays = torch.tensor(members, device=device).unbind(1)
    optimiser = GridAdamW(grid, rates, decays)
    steps = config.epochs * math.ceil(len(learn) / config.batch)
    batches = _shuffled(learn, config)
    for step, rows in enumerate(track(batches, steps, f"probing {task}", progress)):
        logits = grid(normed[rows].float())
        truth = labels[rows].expand(grid.members, -1)
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="sum") / len(rows)
        loss.backward()
        optimiser.step(0.5 + 0.5 * math.cos(math.pi * step / steps))
    scores, losses = _score(grid, normed, labels, held_out)
    table = [
        GridMember(lr=lr, weight_decay=decay, held_out_top1=score)
        for (lr, decay), score in zip(members, scores, strict=True)
    ]
    best = max(range(len(members)), key=lambda index: (scores[index], -losses[index]))
    return FittedProbe(
        probe=grid.member(best), standardise=standardise, best=table[best], grid=table, held_out_clips=len(held_out)
    )


def _split(clips: int, config: ProbeConfig) -> tuple[Int64[Tensor, " learn"], Int64[Tensor, " held_out"]]:
    """Which train clips the probes learn from and which choose among them: a function of the seed alone."""
    held_out = round(clips * config.held_out)
    if not 0 < held_out < clips:
        raise UserError(f"{clips} train clips are too few to hold {config.held_out:.0%} of them out")
    order = torch.from_numpy(generator("held out", config.seed).permutation(clips))
    return order[held_out:], order[:held_out]


def _shuffled(rows: Int64[Tensor, " learn"], config: ProbeConfig) -> Iterator[Int64[Tensor, " batch"]]:
    for epoch in range(config.epochs):
        order = torch.from_numpy(generator("probe epoch", config.seed, epoch).permutation(len(rows)))
        yield from rows[order].split(config.batch)


@torch.no_grad()
def _normed(
    tokens: Float[Tensor, "clips tokens width"], standardise: Standardise | None, device: torch.device | str
) -> Float[Tensor, "clips tokens width"]:
    """Tokens standardised and LayerNormed, once for all epochs; in float16, which unit variance makes safe."""
    normed = torch.empty(tokens.shape, dtype=torch.float16, device=device)
    for target, part in zip(normed.split(SCORING_CLIPS), tokens.split(SCORING_CLIPS), strict=True):
        moved = part.to(device)
        moved = standardise.apply(moved) if standardise else moved.float()
        target.copy_(F.layer_norm(moved, moved.shape[-1:]))
    return normed


@torch.inference_mode()
def _score(
    grid: ProbeGrid,
    normed: Float[Tensor, "clips tokens width"],
    labels: Int64[Tensor, " clips"],
    rows: Int64[Tensor, " held_out"],
) -> tuple[list[float], list[float]]:
    """Accuracy and loss of every member; a member that has diverged scores 0 and an infinite loss."""
    correct = torch.zeros(grid.members, dtype=torch.int64, device=normed.device)
    loss = torch.zeros(grid.members, device=normed.device)
    for part in rows.split(SCORING_CLIPS):
        logits, truth = grid(normed[part].float()), labels[part]
        correct += (logits.argmax(-1) == truth).sum(1)
        loss -= logits.log_softmax(-1)[:, torch.arange(len(part)), truth].sum(1)
    sound = loss.isfinite()
    scores = [right / len(rows) for right in torch.where(sound, correct, 0).tolist()]
    return scores, torch.where(sound, loss / len(rows), math.inf).tolist()
