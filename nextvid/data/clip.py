"""What a clip is: the contract between every source of footage and everything that reads clips."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Source(Protocol):
    """Footage to draw clips from."""

    name: str

    def clip(self, draw: np.random.Generator, spec: ClipSpec) -> Frames:
        """A random clip, a pure function of ``draw``: RGB uint8 ``(frames, size, size, 3)``.

        Crop, flip and start time are drawn here, the same for all frames of the clip. Raises ``BrokenFile``.
        """
        ...


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
