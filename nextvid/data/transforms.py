"""Crop, resize, flip, normalise: the same for all frames of a clip."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

FixedCrop = Literal["center", "none"]
CropKind = Literal["random"] | FixedCrop


@dataclass(frozen=True)
class Augmentation:
    """What is cut out of the pictures of a clip, the same for all of its frames.

    ``crop``: a ``random`` resized crop and flip, which the other settings are for; the largest square in the middle
    (``center``); or the whole picture (``none``). ``crop_scale``: the range of the random crop's area as a share of the
    picture's; ``crop_aspect``: the range of width over height, drawn evenly in its logarithm; ``flip``: the probability of a
    mirror image, left to right.
    """

    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    crop: CropKind = "random"


class Crop(NamedTuple):
    """A window of a picture in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def scaled(self, picture: tuple[int, int], to: tuple[int, int]) -> "Crop":
        """The same window of the same picture at another (height, width)."""
        down, across = to[0] / picture[0], to[1] / picture[1]
        height, width = max(1, round(self.height * down)), max(1, round(self.width * across))
        return Crop(
            top=max(0, min(round(self.top * down), to[0] - height)),
            left=max(0, min(round(self.left * across), to[1] - width)),
            height=min(height, to[0]),
            width=min(width, to[1]),
            flip=self.flip,
        )


def draw_crop(draw: np.random.Generator, height: int, width: int, augmentation: Augmentation) -> Crop:
    """The window of a ``height`` x ``width`` picture; takes exactly five numbers from ``draw``, whatever becomes of them.

    So the times drawn after it are the same for every kind of crop. A random window of the drawn area and aspect that does
    not fit is shrunk until it does, its aspect kept.
    """
    scale, aspect, across, down, mirror = draw.random(5)
    if augmentation.crop != "random":
        return fixed_crop(augmentation.crop, height, width)
    area = height * width * _between(augmentation.crop_scale, scale)
    ratio = math.exp(_between((math.log(augmentation.crop_aspect[0]), math.log(augmentation.crop_aspect[1])), aspect))
    tall, wide = math.sqrt(area / ratio), math.sqrt(area * ratio)
    fit = min(1.0, height / tall, width / wide)
    tall, wide = max(1, round(tall * fit)), max(1, round(wide * fit))
    return Crop(
        top=int(down * (height - tall + 1)),
        left=int(across * (width - wide + 1)),
        height=tall,
        width=wide,
        flip=bool(mirror < augmentation.flip),
    )


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share


def fixed_crop(kind: FixedCrop, height: int, width: int) -> Crop:
    """The window of a ``height`` x ``width`` picture that no number is drawn for."""
    return centre_crop(height, width) if kind == "center" else Crop(0, 0, height, width)


def centre_crop(height: int, width: int) -> Crop:
    """The largest square in the middle of a ``height`` x ``width`` picture."""
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def resized_crop(
    frames: UInt8[np.ndarray, "frames height width 3"], crop: Crop, size: int
) -> UInt8[np.ndarray, "frames size size 3"]:
    """``crop`` of every frame, resized to ``size`` x ``size`` (bilinear, antialiased) and mirrored where it says so."""
    window = frames[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    window = mirrored(window) if crop.flip else np.ascontiguousarray(window)
    if window.shape[1:3] == (size, size):
        return window
    images = torch.from_numpy(window).permute(0, 3, 1, 2)
    resized = interpolate(images, (size, size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def mirrored(frames: UInt8[np.ndarray, "frames height width 3"]) -> UInt8[np.ndarray, "frames height width 3"]:
    """``frames`` left to right, copied; PyTorch is several times as fast at it as NumPy."""
    images = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2)
    return images.flip(-1).permute(0, 2, 3, 1).numpy()


def normalise(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch frames 3 height width"]:
    """Pixels 0..255 to -1..1: mean 0.5 and deviation 0.5 of the unit range."""
    return frames.float().div_(127.5).sub_(1.0)


def to_uint8(frames: Float[Tensor, "batch frames 3 height width"]) -> UInt8[Tensor, "batch frames 3 height width"]:
    """The inverse of ``normalise``, rounded; what lies outside -1..1 is clipped."""
    return frames.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


AnyFrames = UInt8[Tensor, "batch given_frames 3 rows columns"] | Float[Tensor, "batch given_frames 3 rows columns"]


def prepare(frames: AnyFrames, tubelet: int) -> Float[Tensor, "batch frames 3 rows columns"]:
    """Bytes, or floats in [0, 1], to what the encoder was trained on: [-1, 1]. A single frame is repeated to a tubelet."""
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"frames are (batch, frames, 3, height, width), not {tuple(frames.shape)}")
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    elif not frames.is_floating_point():
        raise ValueError(f"frames are uint8, or floats in [0, 1], not {frames.dtype}")
    elif frames.numel() and (frames.amin() < 0 or frames.amax() > 1):
        raise ValueError("float frames must lie in [0, 1]; give uint8 frames, or divide by 255")
    if frames.shape[1] == 1:
        frames = frames.expand(-1, tubelet, -1, -1, -1)
    return frames.float() * 2 - 1
