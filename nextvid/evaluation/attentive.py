"""The attentive probe: one learned query reads all tokens; a linear layer names the class (paper, section 4 and table 10).

Depth 1 is the paper's and V-JEPA 1's: one cross-attention. Depth 4 is V-JEPA 2's: three self-attention layers over the tokens
come before it. Published figures of the two are not comparable.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nextvid.randomness import key_of

MLP_RATIO = 4
INIT_DEVIATION = 0.02

Tokens = Float[Tensor, "batch tokens width"]


def heads_for(width: int, wanted: int = 16) -> int:
    """The divisor of ``width`` nearest to ``wanted``; of two equally near, the larger."""
    divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
    return min(divisors, key=lambda heads: (abs(heads - wanted), -heads))


class SelfAttention(nn.Module):
    """A transformer layer over all tokens: ``x + attention(LayerNorm(x))``, then ``x + MLP(LayerNorm(x))``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, MLP_RATIO * width)
        self.mlp_out = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens: Tokens) -> Tokens:
        """The tokens after the layer."""
        query, key, value = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(attended)
        return tokens + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens))))


class AttentiveProbe(nn.Module):
    """``depth - 1`` self-attention layers, then one learned query that reads the tokens once, then a linear classifier.

    ``x = query + attention(LayerNorm(tokens))``, ``x + MLP(LayerNorm(x))``, linear; no projection after the attention.
    At width 1024 it has 11.5 M parameters beside the classifier at depth 1, and 49.3 M at depth 4.
    """

    def __init__(self, width: int, classes: int, heads: int = 16, seed: int = 0, depth: int = 1) -> None:
        super().__init__()
        self.heads = heads_for(width, heads)
        self.depth = depth
        self.layers = nn.ModuleList(SelfAttention(width, self.heads) for _ in range(depth - 1))
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
        reading = [module for name, module in self.named_modules() if not name.startswith("layers.")]
        modules = [*reading, *self.layers.modules()]  # the same draws for the query's layer, whatever the depth
        linears = [module for module in modules if isinstance(module, nn.Linear)]
        for weight in [self.query, *(linear.weight for linear in linears)]:
            nn.init.trunc_normal_(weight, std=INIT_DEVIATION, generator=draw)
        for linear in linears:
            nn.init.zeros_(linear.bias)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch width"]:
        """One vector a clip: all of the probe but the classifier."""
        normed = self._normed(tokens)
        query = self._query(len(tokens))
        attended = F.scaled_dot_product_attention(
            query, self._split(self.to_key(normed)), self._split(self.to_value(normed))
        )
        vector = self.query + attended.flatten(1)
        return vector + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(vector))))

    def attention(self, tokens: Tokens) -> Float[Tensor, "batch heads tokens"]:
        """How much of each token each head of the query reads; sums to 1 over tokens."""
        query = self._query(len(tokens))
        logits = query @ self._split(self.to_key(self._normed(tokens))).transpose(-1, -2)
        return (logits / query.shape[-1] ** 0.5).softmax(-1).squeeze(2)

    def _normed(self, tokens: Tokens) -> Tokens:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)

    def _query(self, batch: int) -> Float[Tensor, "batch heads 1 head_width"]:
        return self._split(self.to_query(self.query).expand(batch, 1, -1))

    def _split(self, tokens: Tokens) -> Float[Tensor, "batch {self.heads} tokens head_width"]:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch classes"]:
        """Logits of every class."""
        return self.classifier(self.pool(tokens))
