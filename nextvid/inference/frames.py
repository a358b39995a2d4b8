"""Frames as they come from a decoder, made into what an encoder takes."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nextvid.models.encoder import FrameTensor

AnyFrames = UInt8[Tensor, "batch given_frames 3 rows columns"] | Float[Tensor, "batch given_frames 3 rows columns"]


def prepare(frames: AnyFrames, tubelet: int) -> FrameTensor:
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
