"""The context-isolated autoregressive predictor (NExT-Vid, section 3): queries read the context, the context never changes."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float, Int
from torch import Tensor, nn

from nextvid.models.attention import attended_pairs
from nextvid.models.layers import CrossAttention, Mlp, Shape, initialise, shrink_residuals
from nextvid.models.rope import grid_rotations


@dataclass(frozen=True)
class PredictorConfig(Shape):
    """The predictor's shape."""


class PredictorBlock(nn.Module):
    """Cross-attention to the context, then an MLP."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attention = CrossAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.mlp_hidden)

    def forward(
        self,
        x: Float[Tensor, "#batch #queries width"],
        context: Float[Tensor, "batch keys width"],
        rotation: Complex64[Tensor, "1 queries half"],
        context_rotation: Complex64[Tensor, "#batch keys half"],
        frames: int,
    ) -> Float[Tensor, "batch queries width"]:
        """One layer over ``frames`` frames of queries and as many of context."""
        x = x + self.attention(self.norm1(x), context, rotation, context_rotation, frames)
        return x + self.mlp(self.norm2(x))


class Predictor(nn.Module):
    """Context of frames ``0 … T-2`` to the predicted representations of frames ``1 … T-1``."""

    def __init__(self, config: PredictorConfig, context_width: int) -> None:
        super().__init__()
        self.config = config
        self.context_proj = nn.Linear(context_width, config.width)
        self.context_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.query = nn.Parameter(torch.zeros(config.width))
        blocks = [PredictorBlock(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.proj = nn.Linear(config.width, context_width)
        initialise(self)
        shrink_residuals([[block.attention.proj, block.mlp.fc2] for block in blocks])

    def forward(
        self,
        context: Float[Tensor, "batch predicted_frames kept context_width"],
        visible: Int[Tensor, "batch kept"],
        height: int,
        width: int,
    ) -> Float[Tensor, "batch predicted_frames places context_width"]:
        """``z_t`` at every place of frames ``1 … T-1`` on a ``height`` x ``width`` patch grid.

        ``context`` ``(B, T-1, P, D)`` are the encoder's tokens of frames ``0 … T-2`` at the ``visible`` places: the last
        frame has no successor. A query of frame ``t`` reads frames ``< t``.
        """
        frames = context.shape[1]
        if frames < 1:
            raise ValueError("next-frame prediction needs a clip of at least two latent frames")
        head_width = self.config.width // self.config.heads
        rotation = grid_rotations(frames, height, width, head_width, context.device, 1).flatten(0, 1)[None]
        places = grid_rotations(frames, height, width, head_width, context.device)
        context_rotation = places[:, visible].transpose(0, 1).flatten(1, 2)
        past = self.context_norm(self.context_proj(context.flatten(1, 2)))
        x = self.query[None, None]  # before the first block all queries are one
        for block in self.blocks:
            x = block(x, past, rotation, context_rotation, frames)
        return self.proj(self.norm(x)).unflatten(1, (frames, -1))

    def flops(self, frames: int, kept: int, places: int) -> int:
        """Of one clip: ``frames`` frames of ``places`` queries over as many frames of ``kept`` context tokens."""
        width, queries, keys = self.config.width, frames * places, frames * kept
        ends = 2 * (keys + queries) * width * self.context_proj.in_features
        attention = 4 * width * attended_pairs("frame_causal", frames, places, kept)
        linear = 2 * width * (keys * 2 * width + queries * (width + 2 * self.config.mlp_hidden))
        projected = (1 + (self.config.depth - 1) * queries) * 2 * width * width
        return ends + projected + self.config.depth * (linear + attention)
