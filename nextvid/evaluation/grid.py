"""Many attentive probes trained side by side in one pass over the features.

At depth 1 the LayerNorm of the tokens is shared, each probe's key projection is folded into its query and its value projection
comes after the pooling, so that the tokens are read twice a step whatever the number of probes. Deeper probes have tokens of
their own and share the reading of features alone.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from nextvid.evaluation.attentive import AttentiveProbe


class ProbeGrid:
    """Probes of one shape, side by side: ``weights[name]`` stacks their parameters ``name`` of ``AttentiveProbe``.

    ``to_key.bias`` shifts a member's attention logits all alike, so it cancels and gets no gradient.
    """

    def __init__(self, probes: list[AttentiveProbe]) -> None:
        self.members = len(probes)
        self.heads = probes[0].heads
        self.depth = probes[0].depth
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
        probe = AttentiveProbe(self.width, self.classes, self.heads, depth=self.depth).to(query.device, query.dtype)
        probe.load_state_dict({name: stacked[index].detach() for name, stacked in self.weights.items()})
        return probe

    def sum_gradients(self, add_up: Callable[[Tensor], object]) -> None:
        """Add up every gradient over processes by ``add_up``, in place; a process without clips adds nothing."""
        for name, weight in self.weights.items():
            if self.depth == 1 and name == "to_key.bias":
                continue
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            add_up(weight.grad)

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

    def prepare(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """What all members have in common and need not do themselves: at depth 1 a LayerNorm without affine."""
        return F.layer_norm(tokens, tokens.shape[-1:]) if self.depth == 1 else tokens

    def __call__(self, prepared: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "members batch classes"]:
        """Every member's logits, from tokens as :meth:`prepare` leaves them."""
        if self.depth == 1:
            return self._folded(prepared)
        with torch.device("meta"):
            plain = AttentiveProbe(self.width, self.classes, self.heads, depth=self.depth)
        members = [{name: stacked[index] for name, stacked in self.weights.items()} for index in range(self.members)]
        return torch.stack([functional_call(plain, member, (prepared,)) for member in members])

    def _folded(self, normed: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "members batch classes"]:
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
