"""A stream of frames cut into clips: where shots begin, told with a bounded look ahead, and shots split evenly."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from nextvid.data.cuts import NEIGHBOURS, cuts

MOST_FRAMES = 600
"""More frames are split, however few seconds they last: it bounds the memory that they take."""
_TOLERANCE = 1e-3

Thumbnail = Float[np.ndarray, "8 8 3"]


@dataclass(frozen=True)
class Moment:
    """A frame, when it is shown and for how long, in seconds from the file's first frame, and its thumbnail.

    ``joined``: whether another recording begins with it, which makes it the first of a shot.
    """

    frame: Any
    time: float
    seconds: float
    thumbnail: Thumbnail
    joined: bool = False


@dataclass(frozen=True)
class Piece:
    """Frames of one shot, the ``shot``-th of its video, up to ``end`` seconds."""

    moments: list[Moment]
    end: float
    shot: int

    @property
    def start(self) -> float:
        """When its first frame is shown, in seconds."""
        return self.moments[0].time

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end - self.start


def with_cuts(moments: Iterable[Moment]) -> Iterator[tuple[Moment, bool]]:
    """Every moment, and whether it begins a shot as :func:`nextvid.data.cuts.cuts` of all thumbnails would say, or is joined.

    Reads ``NEIGHBOURS`` moments ahead.
    """
    held: deque[Moment] = deque()
    here = 0
    for moment in moments:
        held.append(moment)
        if len(held) - here > NEIGHBOURS:
            yield held[here], _is_cut(held, here)
            here += 1
        if here > NEIGHBOURS + 1:
            held.popleft()
            here -= 1
    for place in range(here, len(held)):
        yield held[place], _is_cut(held, place)


def _is_cut(held: deque[Moment], here: int) -> bool:
    if held[here].joined:
        return True
    first = max(0, here - NEIGHBOURS - 1)
    window = [held[place].thumbnail for place in range(first, min(len(held), here + NEIGHBOURS + 1))]
    return here - first in cuts(np.stack(window))


class Pieces:
    """The clips of a stream of moments, each with whether it begins a shot.

    A shot that is longer than ``seconds`` (or has more than ``MOST_FRAMES`` frames) gives equal parts where it is at most
    twice as long; a longer one gives clips of ``seconds`` until that is so. Frames of two such clips are held at most.
    """

    def __init__(self, moments: Iterable[tuple[Moment, bool]], seconds: float) -> None:
        self.moments = moments
        self.seconds = seconds

    def __iter__(self) -> Iterator[Piece]:
        held: list[Moment] = []
        shot = 0
        for moment, begins in self.moments:
            if begins:
                yield from self._split(held, moment.time, shot)
                held, shot = [], shot + 1
            elif held and (moment.time - held[0].time >= 2 * self.seconds or len(held) >= 2 * MOST_FRAMES):
                full = self._full(held)
                yield Piece(held[:full], self._end(held[0], (*held, moment)[full].time), shot)
                held = held[full:]
            held.append(moment)
        if held:
            yield from self._split(held, held[-1].time + held[-1].seconds, shot)

    def _full(self, held: list[Moment]) -> int:
        """How many frames a full clip takes."""
        inside = sum(moment.time - held[0].time < self.seconds - _TOLERANCE for moment in held)
        return max(1, min(inside, MOST_FRAMES))

    def _end(self, first: Moment, end: float) -> float:
        """A frame that stands still for longer than a clip may last is shown no longer than that."""
        return min(end, first.time + self.seconds)

    def _split(self, held: list[Moment], end: float, shot: int) -> Iterator[Piece]:
        end = self._end(held[-1], end)
        length = end - held[0].time
        parts = max(math.ceil(length / self.seconds - _TOLERANCE), math.ceil(len(held) / MOST_FRAMES), 1)
        parts = min(parts, len(held))
        edges = [held[0].time + length * part / parts for part in range(parts)]
        places = np.searchsorted([moment.time + _TOLERANCE for moment in held], edges).tolist()
        for begin, stop in zip(places, [*places[1:], len(held)], strict=True):
            if stop > begin:
                until = held[stop].time if stop < len(held) else end
                yield Piece(held[begin:stop], self._end(held[begin], until), shot)
