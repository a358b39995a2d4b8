"""Perceptual hashes: 64 bits of a frame that stay nearly the same when it is scaled, re-encoded or lit otherwise."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

SIDE, LOW = 32, 8
FLAT = 4.0
"""Frames whose grey levels (of 255) deviate by less say nothing, and have no hash."""

_COSINES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(LOW)[:, None])


def thumbnail(frame: Any) -> UInt8[np.ndarray, "32 32 3"]:
    """A decoded frame, upright, in the size of which hashes are made."""
    picture = frame.to_ndarray(format="rgb24", width=SIDE, height=SIDE, interpolation="AREA", threads=1)
    return np.ascontiguousarray(np.rot90(picture, k=round(frame.rotation / 90), axes=(0, 1)))


def perceptual_hash(grey: UInt8[np.ndarray, "32 32"] | Float[np.ndarray, "32 32"]) -> int | None:
    """The hash of a grey frame scaled to 32 x 32, as a signed 64-bit number; None for a flat frame.

    One bit for each of the 8 x 8 lowest frequencies of its cosine transform: whether it is above their median (pHash:
    Zauner 2010, section 3.2.1).
    """
    if np.std(grey) < FLAT:
        return None
    frequencies = _COSINES @ grey.astype(np.float64) @ _COSINES.T
    bits = (frequencies > np.median(frequencies.flat[1:])).ravel()
    return int(np.packbits(bits).view(">i8")[0])


def distances(one: Int[np.ndarray, " first"], other: Int[np.ndarray, " second"]) -> UInt8[np.ndarray, "first second"]:
    """In how many bits each of one list of hashes differs from each of another."""
    return np.bitwise_count(one.astype(np.int64).view(np.uint64)[:, None] ^ other.astype(np.int64).view(np.uint64))
