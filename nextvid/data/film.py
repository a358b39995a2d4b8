"""The built-in footage: a film, decoded once to a memory-mapped file, and the clips and pictures drawn from it."""

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch.nn.functional import interpolate

from nextvid.data.clip import ClipSpec, Frames, MadeUp
from nextvid.data.transforms import Augmentation, draw_crop, resized_crop
from nextvid.errors import UserError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
TRAIN_PART = 0.75


class Shot(NamedTuple):
    """An unbroken range ``[start, end)`` of film frames."""

    start: int
    end: int


@dataclass(frozen=True)
class Film:
    """The decoded film: read-only frames, ``fps`` of them a second, and the shots of either split.

    Train shots end in the first three quarters of the film and test shots begin in the last; of the shot that lies
    across, the train part keeps what comes before and the test part keeps nothing.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    fps: float
    train: tuple[Shot, ...]
    test: tuple[Shot, ...]

    def shots(self, split: Split) -> tuple[Shot, ...]:
        """The shots of ``split``."""
        return self.train if split == "train" else self.test


@functools.cache
def load_film() -> Film:
    """The built-in film; decodes it into the cache folder on the first call on a machine (a second or two).

    The cache folder is ``$NEXTVID_CACHE``, else ``~/.cache/nextvid``. Raises ``UserError`` where it cannot be written.
    """
    facts = json.loads(_asset("film.json"))
    shape = (facts["frames"], facts["height"], facts["width"], 3)
    frames = _cached(facts["sha256"], shape)
    boundary = int(TRAIN_PART * len(frames))
    shots = [Shot(*shot) for shot in facts["shots"]]
    return Film(
        frames=frames,
        fps=float(facts["fps"]),
        train=tuple(Shot(shot.start, min(shot.end, boundary)) for shot in shots if shot.start < boundary),
        test=tuple(shot for shot in shots if shot.start >= boundary),
    )


def cache_folder() -> Path:
    """Where decoded footage is kept between runs."""
    return Path(os.environ.get("NEXTVID_CACHE") or "~/.cache/nextvid").expanduser()


def _asset(name: str) -> bytes:
    return (resources.files("nextvid.data") / "assets" / name).read_bytes()


def _cached(sha256: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "frames height width 3"]:
    """The memory-mapped frames of the film with this hash, decoded first where they are missing or damaged."""
    path = cache_folder() / f"film-{sha256[:16]}.npy"
    with contextlib.suppress(OSError, ValueError):
        return _mapped(path, shape)
    mp4 = _asset("film.mp4")
    if hashlib.sha256(mp4).hexdigest() != sha256:
        raise UserError("nextvid/data/assets/film.mp4 is not the film of film.json beside it; install nextvid anew.")
    try:
        _decode(mp4, path, shape)
        return _mapped(path, shape)
    except OSError as error:
        raise UserError(
            f"The built-in film cannot be decoded to {path}: {error}. It takes {math.prod(shape) >> 20} MiB; "
            "set NEXTVID_CACHE to a folder that has them and can be written."
        ) from error


def _mapped(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "frames height width 3"]:
    frames = np.load(path, mmap_mode="r")
    if frames.shape != shape or frames.dtype != np.uint8:
        raise ValueError(f"{path} holds {frames.dtype} {frames.shape}, not uint8 {shape}")
    return frames


def _decode(mp4: bytes, path: Path, shape: tuple[int, ...]) -> None:
    """Decode so that ``path`` is complete or absent, whoever else does the same at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        with open(partial, "wb") as file, av.open(io.BytesIO(mp4), "r") as container:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for frame in container.decode(video=0):
                file.write(frame.to_ndarray(format="rgb24", threads=1).data)
        partial.chmod(0o444)
        partial.replace(path)


def resize(frames: UInt8[np.ndarray, "frames h w 3"], height: int, width: int) -> Frames:
    """``frames`` resized to ``height`` x ``width`` by antialiased bilinear interpolation."""
    images = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2)
    resized = interpolate(images, (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


@dataclass
class FilmClips(MadeUp):
    """Clips of the film at ``spec.fps`` frames a second of true time, each inside one shot of ``split``.

    The start is uniform over all legal starts of all shots; frame *k* is the film frame shown ``k / spec.fps`` seconds
    later, so that above the film's own rate (12 a second) frames repeat.
    """

    split: Split = "train"
    augmentation: Augmentation = Augmentation()
    name: str = "film"

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int = 0) -> Frames:
        """A random clip, uint8 ``(frames, size, size, 3)``. Raises ``UserError`` if every shot is too short."""
        return _cropped(draw, load_film().frames, self.frame_numbers(draw, spec), spec.size, self.augmentation)

    def frame_numbers(self, draw: np.random.Generator, spec: ClipSpec) -> np.ndarray:
        """The film frames of a random clip, ``(frames,)`` integers that do not decrease."""
        film = load_film()
        step = film.fps / spec.fps
        shots, chances = _legal_starts(self.split, spec.frames, step)
        shot = shots[int(np.searchsorted(chances, draw.random(), side="right"))]
        start = draw.uniform(shot.start, shot.end - (spec.frames - 1) * step)
        numbers = np.floor(start + step * np.arange(spec.frames)).astype(np.int64)
        return np.minimum(numbers, shot.end - 1)


@functools.lru_cache(maxsize=256)
def _legal_starts(split: Split, frames: int, step: float) -> tuple[list[Shot], Float[np.ndarray, " shots"]]:
    """The shots that hold ``frames`` frames ``step`` film frames apart; the sum of their shares of legal starts."""
    film = load_film()
    shots = [shot for shot in film.shots(split) if shot.end - shot.start > (frames - 1) * step]
    if not shots:
        seconds = (frames - 1) * step / film.fps
        longest = max(shot.end - shot.start for shot in film.shots(split)) / film.fps
        raise UserError(
            f"A clip of {frames} frames at {film.fps / step:g} fps lasts {seconds:.1f} s, but the longest shot of the "
            f"built-in film ({split} part) lasts {longest:.1f} s; ask for fewer frames or a higher fps."
        )
    room = np.array([shot.end - shot.start - (frames - 1) * step for shot in shots])
    chances = np.cumsum(room) / room.sum()
    chances[-1] = 1.0
    return shots, chances


@dataclass
class FilmPictures(MadeUp):
    """Still clips: one film frame of a shot of ``split``, cropped once and repeated."""

    split: Split = "train"
    augmentation: Augmentation = Augmentation()
    name: str = "film-pictures"

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int = 0) -> Frames:
        """A random picture as a still clip, uint8 ``(frames, size, size, 3)``."""
        number = np.array([self.frame_number(draw)])
        picture = _cropped(draw, load_film().frames, number, spec.size, self.augmentation)
        return np.repeat(picture, spec.frames, axis=0)

    def frame_number(self, draw: np.random.Generator) -> int:
        """The film frame of a random picture: uniform over the frames of all shots."""
        return int(FilmClips(self.split).frame_numbers(draw, ClipSpec(1, load_film().fps, 1))[0])


def _cropped(
    draw: np.random.Generator,
    film: UInt8[np.ndarray, "all_frames h w 3"],
    numbers: Int[np.ndarray, " frames"],
    size: int,
    augmentation: Augmentation,
) -> Frames:
    """A random crop of the frames ``numbers``; nothing but its window is read."""
    crop = draw_crop(draw, film.shape[1], film.shape[2], augmentation)
    window = film[numbers, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return resized_crop(window, crop._replace(top=0, left=0), size)
