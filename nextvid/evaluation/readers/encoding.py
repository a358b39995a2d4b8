"""The tokens of video clips forwards and backwards, in no more memory than is allowed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nextvid.errors import UserError
from nextvid.evaluation.features import Encode, track
from nextvid.evaluation.readers.videos import VideoClips

MOST_BYTES = 4 << 30

Tokens = Float[Tensor, "clips 2 time places channels"]


def encode_both_ways(
    encode: Encode,
    clips: VideoClips,
    *,
    title: str = "encoding",
    batch: int = 8,
    most_bytes: int = MOST_BYTES,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Tokens:
    """Tokens of every clip, and of its frames in the opposite order, in float32 on the CPU; no gradient is taken.

    Where they come to more than ``most_bytes``, tokens of neighbouring places are averaged: 2 x 2, or as many as it takes and
    divide the square. Raises ``UserError`` where one place is too many.
    """
    tokens: Tensor | None = None
    cell = 1
    starts = range(0, len(clips), batch)
    for start in track(starts, len(starts), title, progress):
        frames = torch.from_numpy(clips.frames[start : start + batch].copy()).to(device)
        with torch.inference_mode():
            part = encode(torch.cat([frames, frames.flip(1)])).float()
        part = part if part.ndim == 4 else part[:, None]
        if tokens is None:
            cell = cell_for(len(clips), part.shape, most_bytes)
        part = averaged(part, cell)
        if tokens is None:
            tokens = torch.empty(len(clips), 2, *part.shape[1:])
        tokens[start : start + len(frames)] = part.unflatten(0, (2, -1)).transpose(0, 1)
    if tokens is None:
        raise UserError("there are no clips to encode")
    return tokens


def cell_for(clips: int, shape: torch.Size, most_bytes: int) -> int:
    """The side in tokens of the squares that are averaged, so that ``clips`` of ``shape`` (.., T, N, D) fit both ways."""
    places = shape[-2]
    side = math.isqrt(places)
    cells = [cell for cell in range(1, side + 1) if side % cell == 0] if side**2 == places else [1]
    for cell in cells:
        if 2 * clips * shape[-3] * (places // cell**2) * shape[-1] * 4 <= most_bytes:
            return cell
    raise UserError(
        f"the tokens of {clips} clips take more than {most_bytes / 2**30:.1f} GiB, even averaged over {cells[-1]}² places: "
        "measure on fewer videos, or fewer clips of each"
    )


def averaged(
    tokens: Float[Tensor, "batch time places channels"], cell: int
) -> Float[Tensor, "batch time cells channels"]:
    """The mean of the tokens in every square of ``cell`` x ``cell`` places."""
    if cell == 1:
        return tokens
    cells = math.isqrt(tokens.shape[2]) // cell
    return tokens.unflatten(2, (cells, cell, cells, cell)).mean((3, 5)).flatten(2, 3)
