"""Camera moves: a square window pans, turns or zooms over a still picture of the film, 12 ways in all.

One task: ``move``, named by what the window does (where the camera pans right, the picture slides left). Train and test
are apart in film. The middle frame (number ``frames // 2``) tells nothing: there the window is upright, and its place
and size have the same distribution whatever the move. Lengths are shares of the window's side.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import grid_sample

from nextvid.data.benchmarks.levels import Level, flatten, to_bytes
from nextvid.data.clip import ClipSpec, Frames, MadeUp
from nextvid.data.film import FilmPictures, Split, load_film, resize
from nextvid.data.transforms import mirrored
from nextvid.randomness import generator

PAN = 0.4
TURN = np.pi / 4
ZOOM = 0.8
WINDOW = (0.45, 0.6)
ROOM = 0.7

Phase = Float[np.ndarray, " frames"]
Path = Callable[[Phase], np.ndarray]

LEVELS = {level.name: level for level in (Level("still"),)}


@dataclass(frozen=True)
class Move:
    """What the window does as a function of the phase *u* from 0 to 1.

    ``pan``: its place (x + iy, y down, in sides of the window); ``turn``: its angle, clockwise, in radians; ``zoom``:
    the binary logarithm of the magnification, so that a window that zooms in shrinks.
    """

    pan: Path = np.zeros_like
    turn: Path = np.zeros_like
    zoom: Path = np.zeros_like


def pan(eighth: int) -> Move:
    """Steadily along one of 8 directions, numbered clockwise from the right."""
    return Move(pan=lambda u: PAN * u * np.exp(0.25j * np.pi * eighth))


MOVES: dict[str, Move] = {
    "pan right": pan(0),
    "pan down-right": pan(1),
    "pan down": pan(2),
    "pan down-left": pan(3),
    "pan left": pan(4),
    "pan up-left": pan(5),
    "pan up": pan(6),
    "pan up-right": pan(7),
    "turn clockwise": Move(turn=lambda u: TURN * u),
    "turn anticlockwise": Move(turn=lambda u: -TURN * u),
    "zoom in": Move(zoom=lambda u: ZOOM * u),
    "zoom out": Move(zoom=lambda u: -ZOOM * u),
}


TASKS = {"move": tuple(MOVES)}


@dataclass
class CameraMoves:
    """One split of the benchmark: ``length`` labelled clips, classes balanced in every multiple of 12."""

    split: Split
    level: Level
    length: int
    name: str = "camera-moves"
    tasks: dict[str, tuple[str, ...]] = field(init=False, default_factory=lambda: dict(TASKS))

    def __len__(self) -> int:
        return self.length

    def labels(self, index: int) -> dict[str, int]:
        """The class of clip ``index``."""
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        return {"move": index % len(MOVES)}

    def clip(self, index: int, spec: ClipSpec) -> Frames:
        """Clip ``index``, uint8 ``(frames, size, size, 3)``: a pure function of split, level, index and spec."""
        draw = generator(self.name, self.split, self.level.name, index)
        return render(draw, self.split, self.level, spec, **self.labels(index))


@dataclass
class CameraClips(MadeUp):
    """Unlabelled clips of the train part, moves drawn at random: footage to pretrain on."""

    level: Level
    name: str = "camera-moves"

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int = 0) -> Frames:
        """A random clip, uint8 ``(frames, size, size, 3)``."""
        return render(draw, "train", self.level, spec, move=int(draw.integers(len(MOVES))))


def render(draw: np.random.Generator, split: Split, level: Level, spec: ClipSpec, *, move: int) -> Frames:
    """A window moving as ``move`` says over a random picture, mirrored at random before the window is laid."""
    picture = load_film().frames[FilmPictures(split).frame_number(draw)]
    if draw.random() < 0.5:
        picture = mirrored(picture[None])[0]
    affine = windows(draw, list(MOVES.values())[move], spec.frames, picture.shape[:2])
    return to_bytes(flatten(look(picture, affine, spec.size), level.contrast))


def windows(
    draw: np.random.Generator, move: Move, frames: int, picture: tuple[int, ...]
) -> Float[np.ndarray, "frames 2 3"]:
    """For every frame the affine map from the window's (x, y, 1), each from -1 to 1, to pixels (x, y) of the picture.

    ``picture`` is (height, width). The window stays inside it; at frame ``frames // 2`` it is upright, and its place
    and side have the same distribution for every move.
    """
    height, width = picture
    side = draw.uniform(*WINDOW) * min(height, width)
    room = ROOM * side
    middle = complex(draw.uniform(room, width - room), draw.uniform(room, height - room))
    phase = (np.arange(frames) + 0.5) / frames
    place, angle, zoom = (
        path - path[frames // 2] for path in (side * move.pan(phase), move.turn(phase), move.zoom(phase))
    )
    across = side / 2 * 2**-zoom * np.exp(1j * angle)
    down = 1j * across
    centre = middle + place
    columns = np.stack([across, down, centre], axis=1)
    return np.stack([columns.real, columns.imag], axis=1)


def look(
    picture: UInt8[np.ndarray, "height width 3"], affine: Float[np.ndarray, "frames 2 3"], size: int
) -> Float[np.ndarray, "frames size size 3"]:
    """What the windows see, from 0 to 255, bilinear; the picture is first reduced to the scale of the middle window."""
    height, width = picture.shape[:2]
    side = 2 * np.hypot(*affine[len(affine) // 2, :, 0])
    reduction = min(1.0, size / side)
    small = resize(picture[None], max(1, round(height * reduction)), max(1, round(width * reduction)))
    image = torch.from_numpy(small).permute(0, 3, 1, 2).float()
    grid = torch.from_numpy(_grid(affine, size, (width, height)))
    frames = len(affine)
    seen = grid_sample(image, grid.reshape(1, frames * size, size, 2), padding_mode="border", align_corners=False)
    return seen.reshape(3, frames, size, size).permute(1, 2, 3, 0).numpy()


def _grid(
    affine: Float[np.ndarray, "frames 2 3"], size: int, picture: tuple[int, int]
) -> Float[np.ndarray, "frames size size 2"]:
    """The place (x, y), -1 to 1 over the picture's (width, height), under the middle of every pixel of every window."""
    at = (np.arange(size) + 0.5) / size * 2 - 1
    grid = np.empty((len(affine), size, size, 2), dtype=np.float32)
    for axis, extent in enumerate(picture):  # one by one: NumPy is slow over arrays whose last axis is short
        across, down, centre = affine[:, axis].T[:, :, None, None]
        grid[..., axis] = (at * across + at[:, None] * down + centre) / (extent / 2) - 1
    return grid
