"""Moving sprites: a handwritten digit moves in one of 16 ways over a plain colour, a still picture or the moving film.

Two tasks: ``motion``, which no single frame tells, and ``digit``, which every frame tells. Train and test are apart in
digits and in film. Lengths are shares of the frame's side, so that every size of clip shows the same scene.

What a single frame cannot tell: the middle frame (number ``frames // 2``) has the same distribution of place, size,
colour and background whatever the motion, since each trajectory is laid so that it passes its random place and size
just then. Other frames tell a little: what moves right begins further to the left.

The digit has one colour, uniform among those that differ from the mean colour of its background by at least
``COLOUR_GAP`` (mean over channels, of 1): neither brightness nor hue marks the sprite, and over a background of full
contrast much of the film has its colour.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from nextvid.data.benchmarks.digits import DIGITS, load_digits
from nextvid.data.benchmarks.levels import Level, flatten, mean_colour, to_bytes
from nextvid.data.clip import ClipSpec, Frames, MadeUp
from nextvid.data.film import FilmClips, FilmPictures, Split
from nextvid.randomness import generator

TRAVEL = 0.4
RADIUS = 0.25
GROWTH = 1.2
BOX = (0.45, 0.55)
PLACE = (0.38, 0.62)
COLOUR_GAP = 0.25

Phase = Float[np.ndarray, " frames"]
Path = Callable[[Phase], np.ndarray]

LEVELS = {level.name: level for level in (Level("film"), Level("still"), Level("plain"))}


@dataclass(frozen=True)
class Motion:
    """``path``: the place (x + iy, y down, in units of ``TRAVEL``) as a function of the phase *u* from 0 to 1.

    ``size``: the binary logarithm of the magnification. ``any_heading``: the path is turned by a random angle.
    """

    path: Path = np.zeros_like
    size: Path = np.zeros_like
    any_heading: bool = False


def straight(eighth: int) -> Motion:
    """Steadily along one of 8 directions, numbered clockwise from the right."""
    return Motion(lambda u: u * np.exp(0.25j * np.pi * eighth))


MOTIONS: dict[str, Motion] = {
    "right": straight(0),
    "down-right": straight(1),
    "down": straight(2),
    "down-left": straight(3),
    "left": straight(4),
    "up-left": straight(5),
    "up": straight(6),
    "up-right": straight(7),
    "clockwise": Motion(lambda u: RADIUS * np.exp(2j * np.pi * u), any_heading=True),
    "anticlockwise": Motion(lambda u: RADIUS * np.exp(-2j * np.pi * u), any_heading=True),
    "growing": Motion(size=lambda u: GROWTH * (u - 0.5)),
    "shrinking": Motion(size=lambda u: GROWTH * (0.5 - u)),
    "bounce": Motion(lambda u: (u - 0.5) + 1j * abs(u - 0.5), any_heading=True),
    "stop": Motion(lambda u: 1.3 * np.minimum(u, 0.5), any_heading=True),
    "speed up": Motion(lambda u: np.where(u < 0.5, 0.3 * u, 1.3 * u - 0.5), any_heading=True),
    "turn back": Motion(lambda u: 1.3 * (0.5 - abs(u - 0.5)), any_heading=True),
}


TASKS = {"motion": tuple(MOTIONS), "digit": DIGITS}


@dataclass
class MovingSprites:
    """One split of the benchmark: ``length`` labelled clips, classes balanced in every multiple of 80."""

    split: Split
    level: Level
    length: int
    name: str = "moving-sprites"
    tasks: dict[str, tuple[str, ...]] = field(init=False, default_factory=lambda: dict(TASKS))

    def __len__(self) -> int:
        return self.length

    def labels(self, index: int) -> dict[str, int]:
        """The classes of clip ``index``; all 160 pairs of motion and digit come equally often in 160 clips."""
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        return {"motion": index % 16, "digit": (index + index // 80) % 10}

    def clip(self, index: int, spec: ClipSpec) -> Frames:
        """Clip ``index``, uint8 ``(frames, size, size, 3)``: a pure function of split, level, index and spec."""
        draw = generator(self.name, self.split, self.level.name, index)
        return render(draw, self.split, self.level, spec, **self.labels(index))


@dataclass
class SpriteClips(MadeUp):
    """Unlabelled clips of the train part, motions and digits drawn at random: footage to pretrain on."""

    level: Level
    name: str = "moving-sprites"

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int = 0) -> Frames:
        """A random clip, uint8 ``(frames, size, size, 3)``."""
        motion, digit = int(draw.integers(len(MOTIONS))), int(draw.integers(len(DIGITS)))
        return render(draw, "train", self.level, spec, motion=motion, digit=digit)


def render(draw: np.random.Generator, split: Split, level: Level, spec: ClipSpec, *, motion: int, digit: int) -> Frames:
    """A digit of class ``digit`` moving as ``motion`` says over the background of ``level``."""
    digits = load_digits(split)
    image = digits.images[draw.choice(digits.numbers_of(digit))]
    place, box = trajectory(draw, list(MOTIONS.values())[motion], spec.frames)
    ground = background(draw, split, level, spec)
    colour = sprite_colour(draw, mean_colour(ground))
    planes = np.ascontiguousarray(ground.transpose(3, 0, 1, 2))
    covered = planes + stamp(image, place, box, spec.size) * (colour[:, None, None, None] - planes)
    return to_bytes(covered.transpose(1, 2, 3, 0))


def trajectory(
    draw: np.random.Generator, motion: Motion, frames: int
) -> tuple[Float[np.ndarray, "frames 2"], Float[np.ndarray, " frames"]]:
    """The digit's centre (x, y) and the side of its box in every frame, as shares of the frame's side.

    At frame ``frames // 2`` both have the same distribution for every motion.
    """
    middle_place = complex(*draw.uniform(*PLACE, size=2))
    middle_box = draw.uniform(*BOX)
    heading = np.exp(2j * np.pi * draw.random()) if motion.any_heading else 1.0
    phase = (np.arange(frames) + 0.5) / frames
    path, size = TRAVEL * heading * motion.path(phase), motion.size(phase)
    place = middle_place + path - path[frames // 2]
    return np.stack([place.real, place.imag], axis=1), middle_box * 2 ** (size - size[frames // 2])


def background(
    draw: np.random.Generator, split: Split, level: Level, spec: ClipSpec
) -> Float[np.ndarray, "frames size size 3"]:
    """What the digit moves over, from 0 to 255, its contrast as ``level`` says."""
    if level.ground == "plain":
        colour = draw.uniform(0, 255, size=3).astype(np.float32)
        return np.broadcast_to(colour, (spec.frames, spec.size, spec.size, 3))
    source = FilmPictures(split) if level.ground == "still" else FilmClips(split)
    return flatten(source.clip(draw, spec).astype(np.float32), level.contrast)


def sprite_colour(draw: np.random.Generator, ground: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
    """A uniform colour (0 to 255) among those that differ from ``ground`` by ``COLOUR_GAP`` or more."""
    while True:
        colour = draw.uniform(0, 255, size=3).astype(np.float32)
        if np.abs(colour - ground).mean() >= 255 * COLOUR_GAP:
            return colour


def stamp(
    image: UInt8[np.ndarray, "28 28"],
    place: Float[np.ndarray, "frames 2"],
    box: Float[np.ndarray, " frames"],
    size: int,
) -> Float[np.ndarray, "frames size size"]:
    """The share of each pixel that the digit covers: ``image`` drawn with its centre at ``place``, ``box`` wide.

    Bilinear, to a fraction of a pixel, and antialiased where the image is reduced.
    """
    columns = _weights(place[:, 0] * size, box * size, image.shape[1], size)
    rows = _weights(place[:, 1] * size, box * size, image.shape[0], size)
    return rows @ (image.astype(np.float32) / 255) @ columns.transpose(0, 2, 1)


def _weights(
    centre: Float[np.ndarray, " frames"], extent: Float[np.ndarray, " frames"], samples: int, size: int
) -> Float[np.ndarray, "frames size samples"]:
    """What each of ``samples``, evenly spaced over ``extent`` pixels about ``centre``, adds to each of ``size`` pixels.

    A pixel well inside gets a sum of 1; towards the edge it falls to 0.
    """
    pitch = (extent / samples)[:, None, None]
    at = centre[:, None, None] + (np.arange(samples) - (samples - 1) / 2) * pitch
    reach = np.maximum(pitch, 1.0)
    distance = np.abs(np.arange(size)[:, None] + 0.5 - at) / reach
    weights = np.maximum(0, 1 - distance) * pitch / reach
    return (weights / np.maximum(weights.sum(axis=2, keepdims=True), 0.75)).astype(np.float32)
