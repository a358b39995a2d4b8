"""The parts that encoder, predictor and decoder share."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Complex64, Float
from torch import Tensor, nn
from torch.nn import functional

from nextvid.models.attention import Pattern, attend
from nextvid.models.rope import Rotation, rotate

Tokens = Float[Tensor, "batch tokens width"]
KeyValue = tuple[Float[Tensor, "batch heads keys head_width"], Float[Tensor, "batch heads keys head_width"]]
Past = tuple[Float[Tensor, "batch heads past_keys head_width"], Float[Tensor, "batch heads past_keys head_width"]]


def split_heads(x: Tokens, heads: int) -> Float[Tensor, "batch tokens heads head_width"]:
    """``(B, L, W) -> (B, L, heads, W / heads)``."""
    return x.unflatten(-1, (heads, -1))


def join_heads(x: Float[Tensor, "batch heads tokens head_width"]) -> Tokens:
    """``(B, heads, L, w) -> (B, L, heads w)``."""
    return x.transpose(1, 2).flatten(2)


def check_shape(width: int, depth: int, heads: int, mlp_hidden: int) -> None:
    """Raise ``ValueError`` where no transformer has this shape, or its heads are too narrow to tell positions apart."""
    for name, value in (("width", width), ("depth", depth), ("heads", heads), ("mlp_hidden", mlp_hidden)):
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more")
    if width % heads or width // heads % 2 or width // heads < 6:
        raise ValueError(
            f"width={width} does not split into heads={heads} heads of an even width of 6 or more: rotary positions turn "
            "pairs of dimensions, at least one pair each for time, height and width"
        )


@dataclass(frozen=True)
class Shape:
    """A narrow transformer's shape, by default that of NExT-Vid's predictor and decoder."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_hidden: int = 1536

    def __post_init__(self) -> None:
        check_shape(self.width, self.depth, self.heads, self.mlp_hidden)


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tokens) -> Tokens:
        """``(B, L, W) -> (B, L, W)``."""
        return self.fc2(functional.gelu(self.fc1(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention, with rotary positions where a rotation is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tokens, rotation: Rotation | None, frames: int, pattern: Pattern, past: Past | None = None
    ) -> tuple[Tokens, KeyValue]:
        """Attend over ``x``, after the ``past`` keys and values of earlier frames; also returns all keys and values."""
        width = x.shape[-1]
        both, v = self.qkv(x).split([2 * width, width], dim=-1)
        queries_and_keys = split_heads(both, 2 * self.heads)
        if rotation is not None:
            queries_and_keys = rotate(queries_and_keys, rotation)
        q, k = queries_and_keys.transpose(1, 2).chunk(2, dim=1)
        v = split_heads(v, self.heads).transpose(1, 2)
        a_frame = k.shape[2] // frames
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = attend(q, k, v, frames, k.shape[2] // a_frame, pattern)
        return self.proj(join_heads(out)), (k, v)


class CrossAttention(nn.Module):
    """Multi-head attention of queries over a context that is read and never changed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "#batch #queries width"],
        context: Float[Tensor, "batch keys width"],
        rotation: Complex64[Tensor, "1 queries half"],
        context_rotation: Complex64[Tensor, "#batch keys half"],
        frames: int,
    ) -> Float[Tensor, "batch queries width"]:
        """Frame-causal over ``frames`` frames of queries and as many of context.

        Where all queries are one vector ``(1, 1, width)``, it is projected once.
        """
        q = rotate(split_heads(self.q(x), self.heads), rotation).transpose(1, 2)
        k, v = (split_heads(part, self.heads) for part in self.kv(context).chunk(2, dim=-1))
        k, v = rotate(k, context_rotation).transpose(1, 2), v.transpose(1, 2)
        out = attend(q.expand(len(context), -1, -1, -1), k, v, frames, frames)
        return self.proj(join_heads(out))


def initialise(module: nn.Module) -> None:
    """V-JEPA 2's start: weights from a truncated normal of deviation 0.02, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def shrink_residuals(layers: list[list[nn.Linear]]) -> None:
    """Divide what each layer adds to the stream by sqrt(2 (layer + 1)), so that its variance does not grow with depth.

    ``layers`` holds, layer by layer, the linear maps that end a residual branch.
    """
    with torch.no_grad():
        for number, linears in enumerate(layers):
            for linear in linears:
                linear.weight.div_(math.sqrt(2 * (number + 1)))
