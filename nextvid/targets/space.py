"""A target space: what the decoder draws in, laid out on the encoder's patch grid (METHOD, "Notation", ``h1``)."""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nextvid.errors import UserError
from nextvid.models.encoder import FrameTensor

Latents = Float[Tensor, "batch latent_frames places channels"]
ShownFrames = Float[Tensor, "batch frames 3 shown_rows shown_columns"]
Images = Float[Tensor, "images 3 rows columns"]
Maps = Float[Tensor, "images map_channels map_rows map_columns"]
ClipMaps = Float[Tensor, "batch times map_channels map_rows map_columns"]
SMALLEST_DEVIATION = 1e-4
PIXELS_AT_ONCE = {"cpu": 2**15, "cuda": 2**22}
"""That a frozen network works on: what keeps a CPU's caches full, and 64 frames of 256 pixels on a GPU, some gigabytes."""


@dataclass(frozen=True)
class SpaceConfig:
    """What the settings of every space have in common: they are strict, and they build it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def build(self, patch: int | None, tubelet: int) -> "Space":
        """The space on a grid of ``patch`` pixels (None: as fine as it is) and ``tubelet`` frames.

        Without its weights where the default device is ``meta``. Raises ``UserError`` for a file that is missing or does not
        fit, and where the space cannot be laid out on that grid.
        """
        raise NotImplementedError


class Space(nn.Module, ABC):
    """Frames in [-1, 1] to normalised latents and, where ``decodes``, back. It has no parameters: nothing here is trained.

    ``channels``: values a token. ``checksum``: SHA-256 of the weights, so that a run goes on with those that it began with.
    """

    channels: int
    patch: int
    tubelet: int
    decodes: bool = True
    checksum: str = ""

    def grid(self, frames: FrameTensor) -> tuple[int, int, int]:
        """Latent frames, rows and columns that a clip has. Raises ``UserError`` where it cannot be cut into tokens."""
        _, count, _, height, width = frames.shape
        if count % self.tubelet or height % self.patch or width % self.patch:
            raise UserError(
                f"a clip of {count} frames of {height}x{width} pixels cannot be cut into tokens of {self.tubelet} frames and "
                f"{self.patch}x{self.patch} pixels: frames must be a multiple of {self.tubelet}, height and width of {self.patch}"
            )
        return count // self.tubelet, height // self.patch, width // self.patch

    @abstractmethod
    def encode(self, frames: FrameTensor) -> Latents:
        """Frames in [-1, 1] ``(B, F, 3, H, W)`` to normalised latents ``(B, T, N, C)``, without gradient."""

    def encode_next(self, frames: FrameTensor) -> Latents:
        """What there is to predict: the latents of all latent frames but the first."""
        return self.encode(frames)[:, 1:]

    @abstractmethod
    def decode(self, latents: Latents, rows: int | None = None, columns: int | None = None) -> FrameTensor:
        """Latents ``(B, T, N, C)`` of a grid of ``rows`` x ``columns`` (by default a square) to frames in about [-1, 1].

        Raises ``UserError`` in a space that has no way back.
        """

    def fit(self, frames: FrameTensor) -> None:
        """Measure on clips in [-1, 1] what the latents are normalised by, where that is not known; nothing by default."""
        del frames

    def check_normalised(self) -> None:
        """Raise ``UserError`` where it is not known yet what the latents are normalised by; they always are by default."""

    def shown(self, frames: FrameTensor) -> ShownFrames:
        """``frames`` at the resolution that :meth:`decode` gives: the same one by default."""
        return frames

    def flops(self, frames: int, size: int) -> int:
        """Operations that :meth:`encode_next` of a clip of ``frames`` frames of ``size`` pixels takes; 0 by default."""
        del frames, size
        return 0


def square(latents: Latents, rows: int | None, columns: int | None) -> tuple[int, int]:
    """The grid of ``latents``: what is said, or a square. Raises ``UserError`` where it is none."""
    if rows is not None and columns is not None:
        return rows, columns
    side = math.isqrt(latents.shape[2])
    if side * side != latents.shape[2]:
        raise UserError(f"{latents.shape[2]} places are no square: say how many rows and columns they stand in")
    return side, side


def freeze(network: nn.Module) -> nn.Module:
    """Make every parameter and buffer of ``network`` a buffer that no checkpoint holds, and switch it to evaluation.

    A frozen network is then neither trained, averaged, sharded nor saved, but it moves between devices with the rest. What
    it was is known by its file's checksum. Libraries ask a module's ``parameters()`` which type or device it computes in:
    inside the network that gives the buffers instead.
    """
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach(), persistent=False)
        module._non_persistent_buffers_set.update(module._buffers)
        if getattr(module, "track_running_stats", False):
            module.__dict__["track_running_stats"] = (
                False  # else a BatchNorm wants its count of batches from every checkpoint
            )
        # a partial, unlike a closure, is copied with its module
        module.__dict__["parameters"] = partial(_numbers_of, module)
    return network.eval()


def _numbers_of(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    return (buffer for buffer in module.buffers(recurse) if buffer.is_floating_point())


def on_meta() -> bool:
    """Whether what is built now has no storage: shapes and costs are asked for, and no file is read."""
    return torch.get_default_device().type == "meta"


def digest_of(*parts: str) -> str:
    """A checksum of words."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class MapSpace(Space):
    """A space that a frozen network makes of clips: maps ``(B, F / period, C, h, w)``, finer than the patch grid or equal to it.

    A finer map is folded into channels, and the maps of a tubelet are stacked on channels: a token's values stand in the
    order (map, channel, row, column). Each of the C channels is normalised by one mean and deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        channels: int,
        stride: int,
        patch: int | None,
        tubelet: int,
        where: str,
        period: int = 1,
    ) -> None:
        """``stride``: pixels a side of a map's cell, and of a patch where that is None; ``period``: frames a map; ``where`` names
        the setting in the error.
        """
        super().__init__()
        patch = stride if patch is None else patch
        if tubelet % period:
            raise UserError(
                f"{where} has one latent every {period} frames, which does not divide the tubelet of {tubelet} frames; set "
                f"encoder.tubelet to {period}, or to a multiple of it"
            )
        if patch % stride:
            raise UserError(
                f"{where} has one latent every {stride} pixels, which does not divide the patch of {patch} pixels: its grid "
                f"must be as fine as the patch grid or finer; set encoder.patch to a multiple of {stride}, or choose a space "
                f"whose stride divides {patch}"
            )
        self.network = freeze(network)
        self.patch, self.tubelet = patch, tubelet
        self.fold = patch // stride
        self.map_channels = channels
        self.stacked = tubelet // period
        self.channels = self.stacked * channels * self.fold**2
        self.carried = self.normalised = False
        self.chunk: int | None = None
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self._costs: dict[tuple[int, int], int] = {}

    @abstractmethod
    def maps_of(self, frames: FrameTensor) -> ClipMaps:
        """Clips in [-1, 1] to the network's maps, not normalised."""

    @abstractmethod
    def frames_of(self, maps: ClipMaps) -> FrameTensor:
        """The inverse of :meth:`maps_of`. Raises ``UserError`` where there is none."""

    def normalise_by(self, mean: Tensor, std: Tensor) -> None:
        """Take over known statistics, one number a channel in any shape. Raises ``UserError`` where they do not fit."""
        if mean.numel() != self.map_channels or std.numel() != self.map_channels:
            raise UserError(
                f"the statistics are of {mean.numel()} means and {std.numel()} deviations, and the space has "
                f"{self.map_channels} channels"
            )
        if not torch.isfinite(mean).all() or not (torch.isfinite(std).all() and (std > 0).all()):
            raise UserError("the statistics hold a number that is not finite, or a deviation that is not above 0")
        self.mean.copy_(mean.flatten())
        self.std.copy_(std.flatten())
        self.carried = self.normalised = True

    @torch.no_grad()
    def fit(self, frames: FrameTensor) -> None:
        """Measure each channel's mean and deviation on clips in [-1, 1], unless they came with the weights."""
        if not self.carried:
            maps = self.maps_of(frames).float()
            self.mean.copy_(maps.mean(dim=(0, 1, 3, 4)))
            self.std.copy_(maps.std(dim=(0, 1, 3, 4)).clamp(min=SMALLEST_DEVIATION))
            self.normalised = True

    def check_normalised(self) -> None:
        """Raise ``UserError`` where neither came with the weights nor was measured what the latents are normalised by."""
        if not self.normalised:
            raise UserError(
                "the space has no statistics yet, and latents that are not normalised are of no use: give statistics=FILE, or "
                "measure them by space.fit(frames)"
            )

    @torch.no_grad()
    def encode(self, frames: FrameTensor) -> Latents:
        """Frames in [-1, 1] ``(B, F, 3, H, W)`` to normalised latents ``(B, T, N, C)``; part by part (:meth:`at_once`)."""
        _, rows, columns = self.grid(frames)
        maps = self.maps_of(frames).float()
        if maps.shape[-2:] != (rows * self.fold, columns * self.fold):
            raise UserError(
                f"frames of {frames.shape[-2]}x{frames.shape[-1]} pixels make maps of {maps.shape[-2]}x{maps.shape[-1]}, "
                f"which do not lie on a grid of {rows}x{columns} patches"
            )
        return self.tokens_of(maps)

    @torch.no_grad()
    def tokens_of(self, maps: ClipMaps) -> Latents:
        """What :meth:`encode` makes of the network's maps, which may have been stored: normalised latents ``(B, T, N, C)``."""
        return self.to_tokens((maps.float() - self.mean[:, None, None]) / self.std[:, None, None])

    @torch.no_grad()
    def decode(self, latents: Latents, rows: int | None = None, columns: int | None = None) -> FrameTensor:
        """Latents ``(B, T, N, C)`` to frames in about [-1, 1] ``(B, F, 3, H, W)``."""
        maps = self.to_cells(latents.float(), *square(latents, rows, columns))
        return self.frames_of(maps * self.std[:, None, None] + self.mean[:, None, None]).float()

    def to_tokens(self, maps: ClipMaps) -> Latents:
        """Maps of clips to tokens of the patch grid."""
        b, f, c, h, w = maps.shape
        k, t = self.fold, self.stacked
        cut = maps.reshape(b, f // t, t, c, h // k, k, w // k, k)
        return cut.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(b, f // t, (h // k) * (w // k), self.channels)

    def to_cells(self, latents: Latents, rows: int, columns: int) -> ClipMaps:
        """The inverse of :meth:`to_tokens`."""
        b, n = latents.shape[:2]
        k, t, c = self.fold, self.stacked, self.map_channels
        cells = latents.reshape(b, n, rows, columns, t, c, k, k).permute(0, 1, 4, 5, 2, 6, 3, 7)
        return cells.reshape(b, n * t, c, rows * k, columns * k)

    def flops(self, frames: int, size: int) -> int:
        """Counted by running a copy without storage, once a length and size."""
        if (frames, size) not in self._costs:
            self._costs[frames, size] = _counted(self, frames, size)
        return self._costs[frames, size]

    def at_once(self, height: int, width: int) -> int:
        """How many frames of so many pixels are computed at once: ``chunk``, or what :data:`PIXELS_AT_ONCE` has room for."""
        room = PIXELS_AT_ONCE.get(self.mean.device.type, PIXELS_AT_ONCE["cuda"])
        return self.chunk or max(1, room // (height * width))

    def _in_chunks(self, function: Callable[[Tensor], Tensor], batch: Tensor, count: int) -> Tensor:
        """In full precision on a CPU: in bfloat16 convolutions take 20 times as long on one that has no instructions for it."""
        full = torch.autocast("cpu", enabled=False) if batch.device.type == "cpu" else nullcontext()
        with full:
            return torch.cat([function(part) for part in batch.split(count)])


class NetworkSpace(MapSpace):
    """A space of maps that a frozen network makes of single frames."""

    def encode_next(self, frames: FrameTensor) -> Latents:
        """The first frames are not encoded: no other latent depends on them."""
        return self.encode(frames[:, self.tubelet :])

    def flops(self, frames: int, size: int) -> int:
        """Of all frames but those of the first tubelet."""
        return super().flops(frames - self.tubelet, size)

    @abstractmethod
    def to_maps(self, images: Images) -> Maps:
        """Images in [-1, 1] to the network's maps, not normalised."""

    def to_images(self, maps: Maps) -> Images:
        """The inverse of :meth:`to_maps`. Raises ``UserError`` where there is none."""
        raise UserError(
            "this space has no way back from latents to frames: it can be learned from, and not be drawn in"
        )

    def maps_of(self, frames: FrameTensor) -> ClipMaps:
        """Clips in [-1, 1] to the network's maps, a frame a map."""
        count = self.at_once(*frames.shape[-2:])
        return self._in_chunks(self.to_maps, frames.flatten(0, 1), count).unflatten(0, frames.shape[:2])

    def frames_of(self, maps: ClipMaps) -> FrameTensor:
        """The inverse of :meth:`maps_of`. Raises ``UserError`` where there is none."""
        stride = self.patch // self.fold
        count = self.at_once(maps.shape[-2] * stride, maps.shape[-1] * stride)
        return self._in_chunks(self.to_images, maps.flatten(0, 1), count).unflatten(0, maps.shape[:2])


def _counted(space: MapSpace, frames: int, size: int) -> int:
    """Operations of one clip."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (half a second)

    clip: Any = torch.zeros(1, frames, 3, size, size, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        copy.deepcopy(space).to("meta").maps_of(clip)
    return counter.get_total_flops()
