"""Shots: where a film cuts from one scene to another."""

import itertools

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn.functional import adaptive_avg_pool2d

from nextvid.data.clip import Frames

CUT_LEVEL, CUT_RATIO = 0.1, 3.0
NEIGHBOURS = 8
"""Changes on either side of one that say what is usual there."""
SIDE = 8


def thumbnails(frames: Frames) -> Float[np.ndarray, "frames 8 8 3"]:
    """Every frame as 8 x 8 mean colours from 0 to 1."""
    pictures = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2).float() / 255
    return adaptive_avg_pool2d(pictures, (SIDE, SIDE)).permute(0, 2, 3, 1).numpy()


def cuts(pictures: Float[np.ndarray, "frames 8 8 3"]) -> list[int]:
    """The frames, by their thumbnails, that begin a shot; the first frame is not among them.

    A cut is where two neighbours differ by more than ``CUT_LEVEL`` of the full range, and by more than ``CUT_RATIO``
    times the median of the changes around (``NEIGHBOURS`` on either side). On the built-in film that finds about 0.9 of
    the cuts, and about 0.9 of what it finds are cuts.
    """
    changes = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2, 3))
    found = []
    for place in np.flatnonzero(changes > CUT_LEVEL).tolist():
        around = np.concatenate(
            [changes[max(0, place - NEIGHBOURS) : place], changes[place + 1 : place + 1 + NEIGHBOURS]]
        )
        if changes[place] > CUT_RATIO * (np.median(around) if len(around) else 0.0):
            found.append(place + 1)
    return found


def longest_shot(frames: Frames) -> range:
    """The longest run of frames without a cut inside."""
    edges = [0, *cuts(thumbnails(frames)), len(frames)]
    return max((range(start, end) for start, end in itertools.pairwise(edges)), key=len)


def back_and_forth(shot: range, frames: int) -> Int[np.ndarray, " frames"]:
    """The indices of ``shot``, forth and back again until there are ``frames``."""
    last = len(shot) - 1
    steps = np.arange(frames)
    return shot.start + (last - np.abs(last - steps % (2 * last)) if last else 0 * steps)
