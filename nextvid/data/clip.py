"""What a clip is: the contract between every source of footage and everything that reads clips."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

Frames = UInt8[np.ndarray, "frames height width 3"]


@dataclass(frozen=True)
class ClipSpec:
    """The clip that is asked for: ``frames`` frames, ``fps`` frames a second of true time, ``size`` x ``size`` pixels."""

    frames: int
    fps: float
    size: int


class BrokenFile(Exception):
    """A file that cannot give a clip; the caller counts it, names it and draws another."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Broken(NamedTuple):
    """A file that failed in attempt ``attempt`` at sample ``number``; ``lost``: it hung, or killed its worker."""

    path: str
    reason: str
    number: int
    attempt: int
    lost: bool = False


@runtime_checkable
class Source(Protocol):
    """Footage to draw clips from."""

    name: str
    items: int
    """How many things there are to choose from, such as files; 1 where clips are made up. A mixture goes through all."""

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int) -> Frames:
        """A random clip of ``item``, a pure function of it and ``draw``: RGB uint8 ``(frames, size, size, 3)``.

        Crop, flip and start time are drawn here, the same for all frames of the clip. Raises ``BrokenFile``.
        """
        ...

    def describe(self, item: int) -> str:
        """What ``item`` is called in a message: the path of a file."""
        ...


class MadeUp:
    """What the sources have in common whose clips are made up, or cut from the built-in film."""

    name: str
    items: int = 1

    def describe(self, item: int) -> str:
        """The source's name: there are no files."""
        return self.name


@runtime_checkable
class LabelledClips(Protocol):
    """One split of a benchmark: clip *i* and its labels are pure functions of *i*."""

    name: str
    tasks: dict[str, tuple[str, ...]]
    """The class names of every task, e.g. ``{"motion": ("right", …), "digit": ("0", …)}``."""

    def __len__(self) -> int: ...

    def clip(self, index: int, spec: ClipSpec) -> Frames:
        """RGB uint8 ``(frames, size, size, 3)``."""
        ...

    def labels(self, index: int) -> dict[str, int]:
        """The class of clip ``index`` under every task."""
        ...
