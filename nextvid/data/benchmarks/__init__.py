"""Benchmarks by name. Built in: ``moving-sprites`` and ``camera-moves``, made on the fly, and ``motion-capture`` and
``ego-motion``, rendered on first use (``nextvid[benchmarks]``); none needs a download.

``NAME:ROOT``, such as ``kinetics400:/data/k400``, is a benchmark in its released files: its one level is ``official``.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nextvid.data.benchmarks import official
from nextvid.data.benchmarks.camera_moves import LEVELS as CAMERA_LEVELS
from nextvid.data.benchmarks.camera_moves import CameraClips, CameraMoves
from nextvid.data.benchmarks.ego_motion import LEVELS as EGO_LEVELS
from nextvid.data.benchmarks.ego_motion import EgoMotion, EgoMotionClips
from nextvid.data.benchmarks.levels import Level, find_level, unknown
from nextvid.data.benchmarks.motion_capture import LEVELS as CAPTURE_LEVELS
from nextvid.data.benchmarks.motion_capture import MotionCapture, MotionCaptureClips
from nextvid.data.benchmarks.moving_sprites import LEVELS as SPRITE_LEVELS
from nextvid.data.benchmarks.moving_sprites import MovingSprites, SpriteClips
from nextvid.data.clip import LabelledClips, Source
from nextvid.data.film import SPLITS, Split
from nextvid.errors import UserError

__all__ = ["levels", "load", "names", "official_names", "unlabelled"]

LENGTHS: dict[Split, int] = {"train": 2400, "test": 2000}
OFFICIAL_LEVEL = "official"


@dataclass(frozen=True)
class _Benchmark:
    levels: dict[str, Level]
    labelled: Callable[[Split, Level, int], LabelledClips]
    unlabelled: Callable[[Level], Source]


_BENCHMARKS = {
    "moving-sprites": _Benchmark(SPRITE_LEVELS, MovingSprites, SpriteClips),
    "camera-moves": _Benchmark(CAMERA_LEVELS, CameraMoves, CameraClips),
    "motion-capture": _Benchmark(CAPTURE_LEVELS, MotionCapture, MotionCaptureClips),
    "ego-motion": _Benchmark(EGO_LEVELS, EgoMotion, EgoMotionClips),
}


def names() -> tuple[str, ...]:
    """The built-in benchmarks."""
    return tuple(_BENCHMARKS)


def official_names() -> tuple[str, ...]:
    """The benchmarks that are read from their released files, as ``NAME:ROOT``."""
    return official.names()


def levels(name: str) -> tuple[str, ...]:
    """The levels of benchmark ``name``; ``still`` and ``film`` also as ``<level>-<contrast>``, e.g. ``film-0.5``."""
    if official.is_official(name):
        official.find(name)
        return (OFFICIAL_LEVEL,)
    return tuple(_find(name).levels)


def load(name: str, level: str, split: str, length: int | None = None) -> LabelledClips:
    """One split (``train`` or ``test``) of benchmark ``name`` at ``level``: ``length`` labelled clips (2400, 2000).

    Of an official benchmark at most ``length``, classes in balance, and by default all that were found. Raises
    ``UserError`` for a name, level, split or length that there is not.
    """
    if official.is_official(name):
        return _load_official(name, level, split, length)
    benchmark = _find(name)
    if split not in SPLITS:
        raise UserError(unknown(split, "split", SPLITS))
    _check_length(name, split, length)
    return benchmark.labelled(split, find_level(level, name, benchmark.levels), length or LENGTHS[split])


def _load_official(name: str, level: str, split: str, length: int | None) -> official.OfficialClips:
    if level != OFFICIAL_LEVEL:
        raise UserError(unknown(level, "level", (OFFICIAL_LEVEL,), f"of {name}"))
    _check_length(name, split, length)
    return official.OfficialClips(official.read(name, split), length)


def _check_length(name: str, split: str, length: int | None) -> None:
    if length is not None and length < 1:
        raise UserError(f"The length of {name} ({split}) is {length}; it must be at least 1.")


def unlabelled(name: str, level: str) -> Source:
    """Unlabelled clips of the train part of benchmark ``name`` at ``level``, to pretrain on. Raises ``UserError``."""
    if official.is_official(name):
        raise UserError(f"To pretrain on the videos of {name}, name their folder in data.sources: they need no labels.")
    benchmark = _find(name)
    return benchmark.unlabelled(find_level(level, name, benchmark.levels))


def _find(name: str) -> _Benchmark:
    if name in official.names():
        raise UserError(f"{name} is read from its released files: write {name}:FOLDER, such as {name}:/data/{name}.")
    if name not in _BENCHMARKS:
        raise UserError(unknown(name, "benchmark", _BENCHMARKS))
    return _BENCHMARKS[name]
