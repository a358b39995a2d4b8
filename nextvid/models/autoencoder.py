"""The convolutional autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752), with the names that its weights have.

VA-VAE f16d32 (arXiv 2501.01423) is this with the default :class:`AutoencoderConfig`.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Images = Float[Tensor, "images 3 rows columns"]
Maps = Float[Tensor, "images channels map_rows map_columns"]
LOG_VARIANCE = (-30.0, 20.0)
NARROW = -6.0
"""The log variance that a posterior begins with beside a linear code: a wide one would drown it."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """``width`` channels times each of ``multipliers``, a level each; between levels the picture is halved.

    ``blocks``: residual blocks an encoder level, one more a decoder level. ``attention``: the levels (0 is the finest) whose
    blocks are followed by attention. ``latent_channels``: of the posterior's mean. ``groups``: of every GroupNorm. ``fold``:
    squares of so many pixels a side are channels before the first level and after the last (as in DC-AE, arXiv 2410.10733):
    all is computed on a coarser grid. ``linear``: beside the convolutions every patch of ``stride`` pixels has a linear code,
    there and back, that starts as its principal components: what is left to learn takes a small machine minutes.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    latent_channels: int = 32
    groups: int = 32
    fold: int = 1
    linear: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.latent_channels, self.groups, self.fold, *self.multipliers, 1) < 1:
            raise ValueError("width, multipliers, blocks, latent_channels, groups and fold must be 1 or more")
        if not self.multipliers:
            raise ValueError("multipliers is empty: an autoencoder has one level or more")
        if self.width % self.groups:
            raise ValueError(f"width={self.width} is not a multiple of groups={self.groups}")
        if self.linear and self.latent_channels > 3 * self.stride**2:
            raise ValueError(
                f"latent_channels={self.latent_channels}: a patch of {self.stride} pixels has {3 * self.stride**2} values and no "
                "more components"
            )
        wrong = [level for level in self.attention if not 0 <= level < len(self.multipliers)]
        if wrong:
            raise ValueError(f"attention={wrong}: the levels are 0 to {len(self.multipliers) - 1}")

    @property
    def stride(self) -> int:
        """Pixels a side of a latent."""
        return self.fold * 2 ** (len(self.multipliers) - 1)

    @property
    def picture_channels(self) -> int:
        """Values that the first and last convolution have at a place."""
        return 3 * self.fold**2

    @property
    def widths(self) -> list[int]:
        """Channels of every level."""
        return [self.width * multiplier for multiplier in self.multipliers]


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents."""

    mean: Maps
    log_variance: Maps

    @classmethod
    def of(cls, moments: Maps) -> "Posterior":
        """Mean and log variance, one after the other on channels; the latter is kept within bounds."""
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(*LOG_VARIANCE))

    def sample(self, noise: Maps) -> Maps:
        """A draw, given standard normal noise."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def divergence(self) -> Float[Tensor, " images"]:
        """KL from the standard normal, a sum over latents, in nats."""
        each = self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * each.flatten(1).sum(dim=1)


class ResnetBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out, groups)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """One head of attention among all places of a map."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Downsample(nn.Module):
    """Half the size; the padding lies on the right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has any, and the way to the next."""

    def __init__(self, widths: list[int], attends: bool, groups: int, resample: dict[str, nn.Module]) -> None:
        """``widths``: of the input and of every block's output; ``resample``: at most one module, by its name."""
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b, groups) for _, b in pairs if attends)
        self.resample = list(resample)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """All blocks."""
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        for name in self.resample:
            x = self.get_submodule(name)(x)
        return x


class Middle(nn.Module):
    """A block, attention, a block, at the coarsest level."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, groups)
        self.attn_1 = AttnBlock(width, groups)
        self.block_2 = ResnetBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """All three."""
        return self.block_2(self.attn_1(self.block_1(x)))


class VaeEncoder(nn.Module):
    """Pictures to twice as many channels as a latent has."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.multipliers) - 1
        self.fold = config.fold
        self.conv_in = nn.Conv2d(config.picture_channels, config.width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                [widths[max(level - 1, 0)] if level else config.width, *[width] * config.blocks],
                level in config.attention,
                config.groups,
                {"downsample": Downsample(width)} if level < last else {},
            )
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], config.groups)
        self.norm_out = _norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Images) -> Maps:
        """``(n, 3, H, W) -> (n, 2C, H / stride, W / stride)``."""
        x = self.conv_in(functional.pixel_unshuffle(images, self.fold))
        for level in self.down:
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class VaeDecoder(nn.Module):
    """Latents to pictures; ``up`` is numbered like the encoder's levels and run from the coarsest to the finest."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups)
        self.up = nn.ModuleList(
            Level(
                [widths[min(level + 1, len(widths) - 1)], *[width] * (config.blocks + 1)],
                level in config.attention,
                config.groups,
                {"upsample": Upsample(width)} if level else {},
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0], config.groups)
        self.fold = config.fold
        self.conv_out = nn.Conv2d(widths[0], config.picture_channels, 3, padding=1)

    def forward(self, latents: Maps) -> Images:
        """``(n, C, h, w) -> (n, 3, h * stride, w * stride)``."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return functional.pixel_shuffle(self.conv_out(functional.silu(self.norm_out(x))), self.fold)


class Autoencoder(nn.Module):
    """Encoder, decoder, the 1x1 convolutions on either side of the latent, and perhaps a linear code beside them."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = VaeEncoder(config)
        self.decoder = VaeDecoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        if config.linear:
            values = 3 * config.stride**2
            self.linear_in = nn.Conv2d(values, channels, 1)
            self.linear_out = nn.Conv2d(channels, values, 1)
        self._start_as_identity()

    def _start_as_identity(self) -> None:
        """Every residual branch starts at zero (as in ADM, arXiv 2105.05233), and so does what stands beside a linear code."""
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttnBlock):
                nn.init.zeros_(module.proj_out.weight)
        if self.config.linear:
            for last in (self.encoder.conv_out, self.decoder.conv_out):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(cast(Tensor, last.bias))
            bias = cast(Tensor, self.quant_conv.bias)
            nn.init.zeros_(bias)
            nn.init.constant_(bias[self.config.latent_channels :], NARROW)

    @torch.no_grad()
    def start_as_components(self, images: Images) -> None:
        """Make the linear code the principal components of the patches of ``images``, in [-1, 1].

        They are turned by an orthogonal matrix of the global random numbers, so that the channels share the variance as those of
        a trained autoencoder do: normalised channel by channel, latents keep the proportions of pixels.
        """
        patches = self._patches(images).transpose(0, 1).flatten(1)
        mean = patches.mean(dim=1)
        channels = self.config.latent_channels
        components = torch.linalg.eigh(torch.cov(patches)).eigenvectors[:, -channels:]
        turn = torch.linalg.qr(torch.randn(channels, channels)).Q.to(components)
        code = turn @ components.T
        self.linear_in.weight.copy_(code[:, :, None, None])
        cast(Tensor, self.linear_in.bias).copy_(-code @ mean)
        self.linear_out.weight.copy_(code.T[:, :, None, None])
        cast(Tensor, self.linear_out.bias).copy_(mean)

    def _patches(self, images: Images) -> Maps:
        return functional.pixel_unshuffle(images, self.config.stride)

    def moments(self, images: Images) -> Maps:
        """Mean and log variance of the posterior, joined on channels."""
        moments = self.quant_conv(self.encoder(images))
        if not self.config.linear:
            return moments
        mean, log_variance = moments.chunk(2, dim=1)
        return torch.cat([mean + self.linear_in(self._patches(images)), log_variance], dim=1)

    def encode(self, images: Images) -> Posterior:
        """The posterior of pictures in [-1, 1]."""
        return Posterior.of(self.moments(images))

    def decode(self, latents: Maps) -> Images:
        """Pictures in about [-1, 1]."""
        drawn = self.decoder(self.post_quant_conv(latents))
        if not self.config.linear:
            return drawn
        return drawn + functional.pixel_shuffle(self.linear_out(latents), self.config.stride)

    def forward(self, images: Images) -> Images:
        """The reconstruction from the posterior's mode."""
        return self.decode(self.encode(images).mean)


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


@torch.no_grad()
def parameters_of(config: AutoencoderConfig) -> int:
    """How many parameters the autoencoder has."""
    with torch.device("meta"):
        return sum(p.numel() for p in Autoencoder(config).parameters())
