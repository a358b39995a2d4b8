"""The encoder: a ViT over tubelet patches with 3D RoPE and frame-wise causal attention (NExT-Vid, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nextvid.models.attention import Pattern, attended_pairs
from nextvid.models.frequencies import levelling
from nextvid.models.layers import (
    KeyValue,
    Mlp,
    Past,
    SelfAttention,
    Tokens,
    check_shape,
    initialise,
    shrink_residuals,
)
from nextvid.models.positions import Positions, placed
from nextvid.models.rope import Rotation

FrameTensor = Float[Tensor, "batch frames 3 rows columns"]
FrameTokens = Float[Tensor, "batch latent_frames places width"]


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's shape; ``patch`` in pixels, ``tubelet`` in raw frames.

    ``input``: what the patch embedding reads: ``pixels``, or ``cosine``, their levelled frequencies
    (:func:`nextvid.models.frequencies.levelling`). ``positions``: ``rope`` turns queries and keys in every layer, ``sincos``
    adds fixed waves to the embedded patches.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    patch: int = 16
    tubelet: int = 2
    attention: Pattern = "frame_causal"
    input: Literal["pixels", "cosine"] = "pixels"
    positions: Positions = "rope"

    def __post_init__(self) -> None:
        check_shape(self.width, self.depth, self.heads, self.mlp_hidden)
        if self.patch < 1 or self.tubelet < 1:
            raise ValueError(f"patch={self.patch} and tubelet={self.tubelet} must be 1 or more")


@dataclass
class Cache:
    """What a stream remembers: keys and values of every layer for the last ``window`` latent frames."""

    window: int
    next_frame: int = 0
    layers: list[Past] = field(default_factory=list)


def patchify(frames: FrameTensor, patch: int, tubelet: int) -> Float[Tensor, "batch latent_frames places values"]:
    """Cut a clip into tubelet patches: ``(B, F, 3, H, W) -> (B, F/tubelet, HW/patch², tubelet·3·patch²)``."""
    b, f, c, h, w = frames.shape
    if f % tubelet or h % patch or w % patch:
        raise ValueError(
            f"a clip of {f} frames of {h}x{w} pixels cannot be cut into tubelets of {tubelet} frames and patches of "
            f"{patch}x{patch} pixels: frames must be a multiple of {tubelet}, height and width of {patch}"
        )
    cut = frames.reshape(b, f // tubelet, tubelet, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(b, f // tubelet, (h // patch) * (w // patch), -1)


def unpatchify(
    patches: Float[Tensor, "batch latent_frames places values"], patch: int, tubelet: int, height: int, width: int
) -> FrameTensor:
    """The inverse of :func:`patchify` for frames of ``height`` x ``width`` pixels."""
    b, t = patches.shape[:2]
    grid = patches.reshape(b, t, height // patch, width // patch, tubelet, 3, patch, patch)
    return grid.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(b, t * tubelet, 3, height, width)


def gather_places(
    x: Float[Tensor, "batch latent_frames places width"], visible: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch latent_frames kept width"]:
    """The tokens at the ``visible`` places, the same places in every frame."""
    index = visible[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)


def tokens_of(output: FrameTokens | list[FrameTokens]) -> FrameTokens:
    """The encoder's output where no layers were asked for."""
    assert isinstance(output, Tensor)
    return output


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_hidden)

    def forward(
        self, x: Tokens, rotation: Rotation | None, frames: int, pattern: Pattern, past: Past | None = None
    ) -> tuple[Tokens, KeyValue]:
        """One layer; also returns the layer's keys and values."""
        out, key_value = self.attention(self.norm1(x), rotation, frames, pattern, past)
        x = x + out
        return x + self.mlp(self.norm2(x)), key_value


class Encoder(nn.Module):
    """Frames to tokens; a token of frame ``i`` reads the visible tokens of frames ``<= i`` only."""

    levelling: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.input == "cosine":
            self.register_buffer("levelling", levelling(config.patch, config.tubelet), persistent=False)
        self.patch_embed = nn.Linear(config.tubelet * 3 * config.patch**2, config.width)
        blocks = [Block(config.width, config.heads, config.mlp_hidden) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        initialise(self)
        shrink_residuals([[block.attention.proj, block.mlp.fc2] for block in blocks])

    def grid(self, frames: FrameTensor) -> tuple[int, int, int]:
        """Latent frames, and rows and columns of patches, of a clip."""
        _, f, _, h, w = frames.shape
        return f // self.config.tubelet, h // self.config.patch, w // self.config.patch

    def forward(
        self,
        frames: FrameTensor,
        visible: Int[Tensor, "batch kept"] | None = None,
        return_layers: Sequence[int] | None = None,
        cache: Cache | None = None,
    ) -> FrameTokens | list[FrameTokens]:
        """Tokens ``(B, T, P, D)`` of a normalised clip ``(B, F, 3, H, W)``.

        ``visible`` names the places that the encoder may see, the same in every frame; hidden patches are dropped before
        the first layer, so they can neither be read nor cost anything. ``return_layers`` gives a list with the normalised
        tokens after each named block instead. With a ``cache`` the frames follow those pushed before.
        Raises ``ValueError`` where the clip cannot be cut into tubelet patches.
        """
        patches = patchify(frames, self.config.patch, self.config.tubelet)
        if visible is not None:
            patches = gather_places(patches, visible)
        if self.config.input == "cosine":
            patches = self._levelled(patches)
        grid, first = self.grid(frames), cache.next_frame if cache else 0
        config, t = self.config, grid[0]
        x, rotation = placed(self.patch_embed(patches), visible, grid, config.positions, config.heads, first)
        layers = self._run_blocks(x, rotation, t, self._layers_wanted(return_layers), cache)
        outputs = [self.norm(layer).unflatten(1, (t, -1)) for layer in layers]
        return outputs if return_layers is not None else outputs[0]

    def _levelled(
        self, patches: Float[Tensor, "batch latent_frames kept values"]
    ) -> Float[Tensor, "batch latent_frames kept values"]:
        """In full precision: half would round away the small coefficients that levelling is there to raise."""
        with torch.autocast(patches.device.type, enabled=False):
            return patches.float() @ self.levelling

    def flops(self, frames: int, places: int) -> int:
        """Of one clip of ``frames`` latent frames of which ``places`` places are seen."""
        config, tokens, values = self.config, frames * places, self.patch_embed.in_features
        embed = 2 * tokens * values * (config.width + (values if config.input == "cosine" else 0))
        linear = 2 * tokens * config.width * (4 * config.width + 2 * config.mlp_hidden)
        attention = 4 * config.width * attended_pairs(config.attention, frames, places, places)
        return embed + config.depth * (linear + attention)

    def _layers_wanted(self, return_layers: Sequence[int] | None) -> list[int]:
        depth = self.config.depth
        wanted = [depth - 1] if return_layers is None else list(return_layers)
        wrong = [layer for layer in wanted if not 0 <= layer < depth]
        if wrong or not wanted:
            raise ValueError(f"return_layers={wrong or wanted}: this encoder has layers 0 to {depth - 1}")
        return wanted

    def _run_blocks(
        self, x: Tokens, rotation: Rotation | None, frames: int, wanted: list[int], cache: Cache | None
    ) -> list[Tokens]:
        outputs: dict[int, Tokens] = {}
        memory: list[Past] = []
        for layer, block in enumerate(self.blocks):
            past = cache.layers[layer] if cache and cache.layers else None
            x, key_value = block(x, rotation, frames, self.config.attention, past)
            if layer in wanted:
                outputs[layer] = x
            if cache:
                memory.append(_keep_last(key_value, cache.window, x.shape[1] // frames))
        if cache:
            cache.layers = memory
            cache.next_frame += frames
        return [outputs[layer] for layer in wanted]


def _keep_last(key_value: KeyValue, window: int, a_frame: int) -> Past:
    keep = max(window - 1, 0) * a_frame
    return key_value[0][:, :, -keep:] if keep else key_value[0][:, :, :0], (
        key_value[1][:, :, -keep:] if keep else key_value[1][:, :, :0]
    )
