"""Encoders that have learnt nothing: what a probe reads from the pixels themselves.

Each is an ``Encode``: uint8 frames in, tokens out, so that it meets the same probe as any encoder.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from nextvid.data.transforms import normalise
from nextvid.errors import UserError
from nextvid.evaluation.features import Encode
from nextvid.models.encoder import patchify

FREQUENCIES = 4
SMALLEST_FLOW_SIDE = 12
"""Pixels: what OpenCV's DIS needs."""
USUAL_SHIFT = 0.05
"""Of a frame's side, between two frames: this far is 1 in a token of the optical flow."""


def pixels(patch: int, tubelet: int = 2, positions: bool = False) -> Encode:
    """Raw pixels: a token is one tubelet patch, ``tubelet * 3 * patch²`` values.

    These tokens do not know where and when they are, so their probe sees motion inside a tubelet only; with
    ``positions`` each token carries its place and time as well (sines and cosines, 24 further values).
    """

    def encode(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch time places values"]:
        tokens = patchify(normalise(frames), patch, tubelet)
        if not positions:
            return tokens
        rows, columns = frames.shape[-2] // patch, frames.shape[-1] // patch
        codes = _positions(tokens.shape[1], rows, columns).to(tokens.device)
        return torch.cat([tokens, codes.expand(len(tokens), -1, -1, -1)], dim=-1)

    return encode


def middle_frame(patch: int) -> Encode:
    """The patches of the frame in the middle alone: what a still picture tells."""

    def encode(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch 1 places values"]:
        middle = frames.shape[1] // 2
        return patchify(normalise(frames[:, middle : middle + 1]), patch, tubelet=1)

    return encode


def chance() -> Encode:
    """One constant token: its probe can learn how common the classes are and nothing else."""

    def encode(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch 1 1 16"]:
        return torch.zeros(len(frames), 1, 1, 16, device=frames.device)

    return encode


def optical_flow(cells: int = 4, bins: int = 8) -> Encode:
    """How the picture moves, and nothing of how it looks: a token is one of ``cells`` x ``cells`` cells between two frames.

    Its values are the mean over the cell of how far pixels move in each of ``bins`` directions (the first is to the right, a
    quarter of them on is down; a pixel counts in the nearest), then in any direction, in twentieths of the frame's side; then
    place and time as in :func:`pixels` (24 values). Tokens are ``(B, F - 1, cells², bins + 25)``, F - 1 at least 1: a single
    frame is a still clip, which has zeros. The flow is OpenCV's DIS (medium), of luma, on one thread.

    Raises ``UserError`` for frames smaller than 12 pixels, or than the grid.
    """

    def encode(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Float[Tensor, "batch time places values"]:
        height, width = frames.shape[-2:]
        if min(height, width) < max(SMALLEST_FLOW_SIDE, cells):
            raise UserError(
                f"there is no optical flow of frames of {height}x{width} pixels in {cells}x{cells} cells: give frames of "
                f"{max(SMALLEST_FLOW_SIDE, cells)} pixels a side or more"
            )
        grid = _cells(height, width, cells)
        clips = [_clip_flow(clip, grid, bins) for clip in frames.permute(0, 1, 3, 4, 2).cpu().numpy()]
        histograms = torch.from_numpy(np.stack(clips)).to(frames.device)
        codes = _positions(histograms.shape[1], cells, cells).to(frames.device)
        return torch.cat([histograms, codes.expand(len(frames), -1, -1, -1)], dim=-1)

    return encode


def _cells(height: int, width: int, cells: int) -> Int64[np.ndarray, "height width"]:
    """The number of the cell that each pixel is in, row by row."""
    rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
    return rows[:, None] * cells + columns


def _clip_flow(
    clip: UInt8[np.ndarray, "frames height width 3"], grid: Int64[np.ndarray, "height width"], bins: int
) -> Float[np.ndarray, "time cells values"]:
    import cv2  # noqa: PLC0415 (a fifth of a second, for one baseline)

    cv2.setNumThreads(1)
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in clip]
    after = grey[1:] or grey
    pairs = zip(grey, after, strict=False)
    return np.stack([_histograms(flow.calc(first, second, None), grid, bins) for first, second in pairs])


def _histograms(
    shifts: Float[np.ndarray, "height width 2"], grid: Int64[np.ndarray, "height width"], bins: int
) -> Float[np.ndarray, "cells values"]:
    """The mean shift of each cell in each direction and in any; ``shifts`` in pixels, to the right and down."""
    cells = int(grid.max()) + 1
    sides = np.array([grid.shape[1], grid.shape[0]])
    across, down = np.moveaxis(shifts / sides, -1, 0)
    length = np.hypot(across, down) / USUAL_SHIFT
    direction = np.rint(np.arctan2(down, across) / (2 * math.pi) * bins).astype(np.int64) % bins
    places: Any = (grid * bins + direction).ravel()
    sums = np.bincount(places, length.ravel(), cells * bins).reshape(cells, bins)
    means = sums / np.bincount(grid.ravel(), minlength=cells)[:, None]
    return np.concatenate([means, means.sum(axis=1, keepdims=True)], axis=1).astype(np.float32)


def _positions(time: int, rows: int, columns: int) -> Float[Tensor, "time places values"]:
    """Sines and cosines of 1, 2, 4 and 8 half turns over the extent of each axis."""
    axes = [torch.linspace(0, 1, size) for size in (time, rows, columns)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(1, 2)
    angles = grid[..., None] * math.pi * 2.0 ** torch.arange(FREQUENCIES)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
