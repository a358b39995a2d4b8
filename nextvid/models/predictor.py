"""The context-isolated autoregressive predictor (NExT-Vid, section 3): queries read the context, the context never changes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nextvid.models.layers import CrossAttention, Mlp, check_shape, initialise, shrink_residuals
from nextvid.models.rope import grid_positions, rotations


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor's shape."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_hidden: int = 1536

    def __post_init__(self) -> None:
        check_shape(self.width, self.depth, self.heads, self.mlp_hidden)


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
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys width"],
        rotation: Float[Tensor, "#batch queries 2 half"],
        context_rotation: Float[Tensor, "#batch keys 2 half"],
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
        context: Float[Tensor, "batch latent_frames kept context_width"],
        visible: Int[Tensor, "batch kept"],
        height: int,
        width: int,
    ) -> Float[Tensor, "batch predicted_frames places context_width"]:
        """``z_t`` at every place of frames ``1 … T-1`` on a ``height`` x ``width`` patch grid.

        ``context`` ``(B, T, P, D)`` are the encoder's tokens at the ``visible`` places. The last frame has no successor
        and is not read; a query of frame ``t`` reads frames ``< t``.
        """
        frames = context.shape[1] - 1
        if frames < 1:
            raise ValueError("next-frame prediction needs a clip of at least two latent frames")
        head_width = self.config.width // self.config.heads
        targets = grid_positions(frames, height, width, first_frame=1).to(context.device)
        sources = grid_positions(frames, height, width).to(context.device)[:, visible].transpose(0, 1)
        rotation = rotations(targets.flatten(0, 1)[None], head_width)
        context_rotation = rotations(sources.flatten(1, 2), head_width)
        past = self.context_norm(self.context_proj(context[:, :-1].flatten(1, 2)))
        x = self.query.expand(context.shape[0], frames * height * width, -1)
        for block in self.blocks:
            x = block(x, past, rotation, context_rotation, frames)
        return self.proj(self.norm(x)).unflatten(1, (frames, -1))
