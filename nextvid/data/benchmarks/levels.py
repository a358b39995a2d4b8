"""The levels of a built-in benchmark: what lies behind the sprite or under the camera, and how much of it is seen."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from nextvid.data.clip import Frames
from nextvid.errors import UserError

Ground = Literal["plain", "still", "film"]


@dataclass(frozen=True)
class Level:
    """``ground``: one random colour, a still film picture, or a moving film clip inside one shot.

    ``contrast`` in (0, 1] multiplies the ground's differences from its mean colour over the clip: 1 is the film as it
    is, a small number is nearly plain.
    """

    ground: Ground
    contrast: float = 1.0

    @property
    def name(self) -> str:
        """``ground`` or ``ground-contrast``: what ``find_level`` reads."""
        return self.ground if self.contrast == 1 else f"{self.ground}-{self.contrast:g}"


def find_level(name: str, benchmark: str, known: dict[str, Level]) -> Level:
    """The level called ``name``: one of ``known``, or one of its grounds (but ``plain``) as ``<ground>-<contrast>``.

    Raises ``UserError`` for anything else.
    """
    if name in known:
        return known[name]
    ground, _, number = name.partition("-")
    contrast = _number(number)
    if ground in {level.ground for level in known.values()} - {"plain"} and 0 < contrast <= 1:
        return Level(ground, contrast)
    raise UserError(
        f"{unknown(name, 'level', known, f'of {benchmark}')} A contrast may follow a picture: "
        f"{next(level.ground for level in known.values() if level.ground != 'plain')}-0.5, above 0 and at most 1."
    )


def unknown(name: str, kind: str, known: Iterable[str], where: str = "") -> str:
    """A sentence that says ``name`` is no ``kind``, what the nearest known one is, and which there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else "."
    return f"{' '.join(f'There is no {kind} {name!r} {where}'.split())}{suggestion} Known: {', '.join(known)}."


def flatten(frames: Float[np.ndarray, "frames h w 3"], contrast: float) -> Float[np.ndarray, "frames h w 3"]:
    """``frames`` with every difference from the mean colour multiplied by ``contrast``."""
    if contrast == 1:
        return frames
    kept = np.float32(contrast)
    return frames * kept + mean_colour(frames) * (1 - kept)


def mean_colour(frames: Float[np.ndarray, "frames h w 3"]) -> Float[np.ndarray, " 3"]:
    """The mean over all frames and pixels."""
    pixels = np.ascontiguousarray(frames).reshape(-1, 3)  # in this order, since a sum in another one rounds otherwise
    return np.full(len(pixels), 1 / len(pixels), dtype=frames.dtype) @ pixels


def to_bytes(frames: Float[np.ndarray, "frames h w 3"]) -> Frames:
    """``frames``, from 0 to 255, rounded; done in place."""
    return np.rint(frames, out=frames).astype(np.uint8)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
