"""Benchmarks by name. Built in: ``moving-sprites`` and ``camera-moves``, which need no download."""

from collections.abc import Callable
from dataclasses import dataclass

from nextvid.data.benchmarks.camera_moves import LEVELS as CAMERA_LEVELS
from nextvid.data.benchmarks.camera_moves import CameraClips, CameraMoves
from nextvid.data.benchmarks.levels import Level, find_level, unknown
from nextvid.data.benchmarks.moving_sprites import LEVELS as SPRITE_LEVELS
from nextvid.data.benchmarks.moving_sprites import MovingSprites, SpriteClips
from nextvid.data.clip import LabelledClips, Source
from nextvid.data.film import SPLITS, Split
from nextvid.errors import UserError

__all__ = ["levels", "load", "names", "unlabelled"]

LENGTHS: dict[Split, int] = {"train": 2400, "test": 2000}


@dataclass(frozen=True)
class _Benchmark:
    levels: dict[str, Level]
    labelled: Callable[[Split, Level, int], LabelledClips]
    unlabelled: Callable[[Level], Source]


_BENCHMARKS = {
    "moving-sprites": _Benchmark(SPRITE_LEVELS, MovingSprites, SpriteClips),
    "camera-moves": _Benchmark(CAMERA_LEVELS, CameraMoves, CameraClips),
}


def names() -> tuple[str, ...]:
    """The benchmarks there are."""
    return tuple(_BENCHMARKS)


def levels(name: str) -> tuple[str, ...]:
    """The levels of benchmark ``name``; ``still`` and ``film`` also as ``<level>-<contrast>``, e.g. ``film-0.5``."""
    return tuple(_find(name).levels)


def load(name: str, level: str, split: str, length: int | None = None) -> LabelledClips:
    """One split (``train`` or ``test``) of benchmark ``name`` at ``level``: ``length`` labelled clips (2400, 2000).

    Raises ``UserError`` for a name, level, split or length that there is not.
    """
    benchmark = _find(name)
    if split not in SPLITS:
        raise UserError(unknown(split, "split", SPLITS))
    if length is not None and length < 1:
        raise UserError(f"The length of {name} ({split}) is {length}; it must be at least 1.")
    return benchmark.labelled(split, find_level(level, name, benchmark.levels), length or LENGTHS[split])


def unlabelled(name: str, level: str) -> Source:
    """Unlabelled clips of the train part of benchmark ``name`` at ``level``, to pretrain on. Raises ``UserError``."""
    benchmark = _find(name)
    return benchmark.unlabelled(find_level(level, name, benchmark.levels))


def _find(name: str) -> _Benchmark:
    if name not in _BENCHMARKS:
        raise UserError(unknown(name, "benchmark", _BENCHMARKS))
    return _BENCHMARKS[name]
