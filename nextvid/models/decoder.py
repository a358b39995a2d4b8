"""The conditional flow-matching decoder: a DiT (arXiv 2212.09748) whose attention stays inside a frame."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float
from torch import Tensor, nn
from torch.nn import functional

from nextvid.models.attention import attended_pairs
from nextvid.models.layers import Mlp, SelfAttention, Shape, Tokens, initialise
from nextvid.models.rope import grid_rotations

Latents = Float[Tensor, "batch latent_frames places channels"]
Conditions = Float[Tensor, "batch latent_frames places width"]
Times = Float[Tensor, "batch latent_frames"]


@dataclass(frozen=True)
class DecoderConfig(Shape):
    """The decoder's shape."""


TIME_WIDTH = 256


def time_features(tau: Float[Tensor, " frames"], width: int = TIME_WIDTH) -> Float[Tensor, "frames width"]:
    """Sines and cosines of the flow time ``tau`` in [0, 1], scaled by 1000 as in DiT."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, device=tau.device) / half)
    angles = 1000.0 * tau[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: Tokens, shift: Float[Tensor, "batch width"], scale: Float[Tensor, "batch width"]) -> Tokens:
    """Adaptive layer norm: the parameter-free norm of ``x``, scaled and shifted by the condition."""
    x = functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class DecoderBlock(nn.Module):
    """DiT block with AdaLN-zero: it starts as the identity."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.mlp = Mlp(config.width, config.mlp_hidden)
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(
        self,
        x: Float[Tensor, "frames places width"],
        condition: Float[Tensor, "frames width"],
        rotation: Complex64[Tensor, "1 places half"],
    ) -> Float[Tensor, "frames places width"]:
        """One layer; each row of ``x`` is one frame."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        out, _ = self.attention(modulate(x, shift1, scale1), rotation, 1, "full")
        x = torch.addcmul(x, gate1[:, None], out)
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(x, shift2, scale2)))


class Decoder(nn.Module):
    """``g(h_tau, z_t, tau)``: noisy latents and predicted representations to a velocity, or to the clean latents."""

    def __init__(self, config: DecoderConfig, channels: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.input = nn.Linear(channels + condition_width, config.width)
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.depth))
        self.final_modulation = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(config.width, channels)
        initialise(self)
        self._start_as_zero()

    def _start_as_zero(self) -> None:
        modulations = [block.modulation for block in self.blocks if isinstance(block, DecoderBlock)]
        for linear in (*modulations, self.final_modulation, self.output):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, noisy: Latents, z: Conditions, tau: Times, height: int, width: int) -> Latents:
        """``(B, T, N, C)`` from ``noisy`` ``(B, T, N, C)``, ``z`` ``(B, T, N, D)`` joined on channels, ``tau`` ``(B, T)``.

        Attention is full inside a frame and absent across frames: every frame is a sequence of its own.
        """
        b, t = tau.shape
        rotation = grid_rotations(1, height, width, self.config.width // self.config.heads, noisy.device)
        x = self.input(torch.cat([noisy, z.to(noisy.dtype)], dim=-1)).flatten(0, 1)
        condition = functional.silu(self.time(time_features(tau.flatten())))
        for block in self.blocks:
            x = block(x, condition, rotation)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        return self.output(modulate(x, shift, scale)).unflatten(0, (b, t))

    def flops(self, frames: int, places: int) -> int:
        """Of one draw of one clip: ``frames`` frames of ``places`` tokens."""
        width, tokens = self.config.width, frames * places
        condition = 2 * frames * width * (TIME_WIDTH + width + 6 * width * self.config.depth + 2 * width)
        ends = 2 * tokens * width * (self.input.in_features + self.channels)
        linear = 2 * tokens * width * (4 * width + 2 * self.config.mlp_hidden)
        attention = frames * 4 * width * attended_pairs("full", 1, places, places)
        return condition + ends + self.config.depth * (linear + attention)
