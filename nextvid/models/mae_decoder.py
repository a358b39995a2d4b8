"""The asymmetric decoder of masked autoencoders: narrow and shallow, it fills what was hidden (MAE, arXiv 2111.06377,
section 3; VideoMAE, arXiv 2203.12602, section 3.1)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nextvid.models.attention import attended_pairs
from nextvid.models.encoder import Block
from nextvid.models.layers import Shape, initialise, shrink_residuals
from nextvid.models.positions import Grid, Positions, placed


@dataclass(frozen=True)
class MaeDecoderConfig(Shape):
    """The decoder's shape, by default that of VideoMAE's ViT-B, and how it knows places
    (:class:`nextvid.models.encoder.EncoderConfig`)."""

    depth: int = 4
    heads: int = 6
    positions: Positions = "sincos"


class MaeDecoder(nn.Module):
    """Tokens of the visible places, and one learned token at every hidden place, to values at the hidden places."""

    def __init__(self, config: MaeDecoderConfig, context_width: int, channels: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.input = nn.Linear(context_width, config.width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        blocks = [Block(config.width, config.heads, config.mlp_hidden) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.output = nn.Linear(config.width, channels)
        initialise(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        shrink_residuals([[block.attention.proj, block.mlp.fc2] for block in blocks])

    def forward(
        self,
        tokens: Float[Tensor, "batch latent_frames kept context_width"],
        visible: Int[Tensor, "batch kept"],
        hidden: Int[Tensor, "batch hidden"],
        grid: Grid,
    ) -> Float[Tensor, "batch latent_frames hidden channels"]:
        """Values at the ``hidden`` places of every frame from the encoder's ``tokens`` at the ``visible`` ones.

        ``grid``: latent frames, rows and columns. Attention is full, over all frames and places.
        """
        seen = self.input(tokens)
        unseen = self.mask_token.to(seen.dtype).expand(*seen.shape[:2], hidden.shape[1], -1)
        x = torch.cat([seen, unseen], dim=2)
        places = torch.cat([visible, hidden], dim=1)
        x, rotation = placed(x, places, grid, self.config.positions, self.config.heads)
        for block in self.blocks:
            x, _ = block(x, rotation, grid[0], "full")
        filled = x.unflatten(1, (grid[0], -1))[:, :, visible.shape[1] :]
        return self.output(self.norm(filled))

    def flops(self, frames: int, kept: int, places: int) -> int:
        """Of one clip of ``frames`` latent frames of ``places`` places, ``kept`` of which the encoder saw."""
        width, tokens = self.config.width, frames * places
        ends = 2 * width * frames * (kept * self.input.in_features + (places - kept) * self.channels)
        linear = 2 * tokens * width * (4 * width + 2 * self.config.mlp_hidden)
        attention = 4 * width * attended_pairs("full", frames, places, places)
        return ends + self.config.depth * (linear + attention)
