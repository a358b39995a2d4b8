"""Human actions by motion capture: a jointed figure does one of 15 actions before a plain colour, a picture or the film.

One task: ``action``. The takes are those of DeepMimic that come with PyBullet, one an action, played forwards at a random
phase and pace; its CPU renderer draws the figure. Rendered once, by the extra ``nextvid[benchmarks]``: see ``rendered``.
What is kept is the figure without colours; colours and ground are laid when a clip is read.

Train and test are apart in view (they see the figure from different sides: six sectors of 30 degrees each, that take
turns, laid so that the mirror image of a train view is no test view) and in film, but not in takes. Colours, mirror
image, height of the camera, distance and light are random and the same for all actions. A single frame shows a pose, and
so tells something of the action.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import interpolate

from nextvid.data.benchmarks.figure import LEGS, SKIN, TOP, Figure, Take, read_take
from nextvid.data.benchmarks.levels import Level, mean_colour, to_bytes
from nextvid.data.benchmarks.moving_sprites import background, sprite_colour
from nextvid.data.benchmarks.rendered import FPS, FRAMES, Draw, Rendering, Row, Rows, frame_numbers
from nextvid.data.clip import ClipSpec, Frames, MadeUp
from nextvid.data.film import Split
from nextvid.randomness import generator

POOL = 2400
SIDE = 112

PACE = (0.8, 1.25)
SECTORS = 6
ELEVATION = (0.0, 30.0)
DISTANCE = (2.9, 3.8)
AIM = 0.9
SHIFT = 0.15
REACH = 0.5

LEVELS = {level.name: level for level in (Level("still"), Level("film"), Level("plain"))}

ACTIONS = {
    "backflip": "backflip",
    "cartwheel": "cartwheel",
    "crawl": "crawl",
    "dance A": "dance_a",
    "dance B": "dance_b",
    "get up, face down": "getup_facedown",
    "get up, face up": "getup_faceup",
    "jump": "jump",
    "kick": "kick",
    "punch": "punch",
    "roll": "roll",
    "run": "run",
    "spin": "spin",
    "spin kick": "spinkick",
    "walk": "walk",
}
"""The classes, and what PyBullet calls their takes."""

TASKS = {"action": tuple(ACTIONS)}


@dataclass
class MotionCapture:
    """One split of the benchmark: ``length`` labelled clips, classes balanced in every multiple of 15."""

    split: Split
    level: Level
    length: int
    name: str = "motion-capture"
    tasks: dict[str, tuple[str, ...]] = field(init=False, default_factory=lambda: dict(TASKS))
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        """Raise ``UserError`` where clips have yet to be rendered and the extra is not installed."""
        self.rows = Rows(RENDERING, self.split, self.length)

    def __len__(self) -> int:
        return self.length

    def labels(self, index: int) -> dict[str, int]:
        """The class of clip ``index``."""
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        return {"action": index % len(ACTIONS)}

    def clip(self, index: int, spec: ClipSpec) -> Frames:
        """Clip ``index``, uint8 ``(frames, size, size, 3)``: a pure function of split, level, index and spec.

        The first call renders the split, for minutes. Raises ``UserError`` for a clip longer than 2.67 s, and where
        the cache folder cannot be written.
        """
        self.labels(index)
        numbers = frame_numbers(self.name, spec)
        draw = generator(self.name, self.split, self.level.name, index)
        return paint(draw, self.rows[index][numbers], self.split, self.level, spec)


@dataclass
class MotionCaptureClips(MadeUp):
    """Unlabelled clips, drawn at random from 2,400 of the train part and coloured anew: footage to pretrain on.

    What is missing is rendered when it is opened.
    """

    level: Level
    name: str = "motion-capture"
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        """Render what is missing. Raises ``UserError`` where the extra is not installed or the cache has no room."""
        self.rows = Rows(RENDERING, "train", POOL)
        self.rows.render()

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int = 0) -> Frames:
        """A random clip, uint8 ``(frames, size, size, 3)``. Raises ``UserError`` for one longer than 2.67 s."""
        numbers = frame_numbers(self.name, spec)
        return paint(draw, self.rows[int(draw.integers(POOL))][numbers], "train", self.level, spec)


def paint(draw: np.random.Generator, figure: Row, split: Split, level: Level, spec: ClipSpec) -> Frames:
    """The figure in random colours over the ground of ``level``.

    A byte of ``figure`` ``(frames, side, side)`` is 0 where there is none, else 64 times the colour's number plus how
    bright it is, from 0 to 63.
    """
    ground = background(draw, split, level, spec)
    around = mean_colour(ground)
    colours = np.stack([sprite_colour(draw, around) for _ in (SKIN, TOP, LEGS)])
    cover = torch.from_numpy(_inks(colours)[figure]).permute(0, 3, 1, 2)
    sized = interpolate(cover, (spec.size, spec.size), mode="bilinear", antialias=True)
    covered = sized.permute(0, 2, 3, 1).contiguous().numpy()
    return to_bytes(np.clip(covered[..., :3] + (1 - covered[..., 3:]) * ground, 0, 255))


def _inks(colours: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "256 4"]:
    """What each byte of a row looks like: red, green, blue (0 to 255) and how much of the ground it covers."""
    lit = colours[:, None, :] * (np.arange(64, dtype=np.float32) / 63)[:, None]
    seen = np.concatenate([lit, np.ones((3, 64, 1), np.float32)], axis=2)
    return np.concatenate([np.zeros((1, 64, 4), np.float32), seen]).reshape(256, 4)


# Rendering


class Shot(NamedTuple):
    """How one clip is filmed: angles in degrees, ``aim`` and ``distance`` in metres, ``pace`` 1 for as recorded."""

    moment: float
    pace: float
    azimuth: float
    elevation: float
    distance: float
    aim: Float[np.ndarray, " 3"]
    light: Float[np.ndarray, " 3"]
    mirrored: bool


def draw_shot(draw: np.random.Generator, split: Split, take: Take) -> Shot:
    """A random shot of a take; one that does not loop is filmed about a moment in the middle 40% of it."""
    middle = draw.random() if take.loops else draw.uniform(0.3, 0.7)
    sector = 2 * int(draw.integers(SECTORS)) + (split == "test")
    azimuth = 180 / SECTORS * (sector + draw.random() - 0.5)
    lamp = np.radians([azimuth + draw.uniform(-60, 60), draw.uniform(30, 70)])
    return Shot(
        moment=middle * take.seconds,
        pace=draw.uniform(*PACE),
        azimuth=azimuth,
        elevation=draw.uniform(*ELEVATION),
        distance=draw.uniform(*DISTANCE),
        aim=np.array([0, AIM, 0]) + draw.uniform(-SHIFT, SHIFT, size=3),
        light=towards(*lamp),
        mirrored=bool(draw.random() < 0.5),
    )


def towards(azimuth: float, elevation: float) -> Float[np.ndarray, " 3"]:
    """The unit vector (y up) in a direction given in radians."""
    level = np.cos(elevation)
    return np.array([level * np.cos(azimuth), np.sin(elevation), level * np.sin(azimuth)])


def follow(places: Float[np.ndarray, "frames 3"]) -> Float[np.ndarray, "frames 3"]:
    """Where on the floor the camera is aimed while the root is at ``places``.

    It stands still as long as the root stays within ``REACH`` of where it is in the middle, and otherwise goes along
    just as much as that takes.
    """
    middle = places[len(places) // 2]
    moved = (places - middle) * [1, 0, 1]
    farthest = np.linalg.norm(moved, axis=1).max()
    return middle * [1, 0, 1] + max(0.0, 1 - REACH / max(farthest, REACH)) * moved


@contextlib.contextmanager
def stage(split: Split) -> Iterator[Draw]:
    """A physics client with the figure in it that draws the rows of ``split``."""
    import pybullet  # noqa: PLC0415
    import pybullet_data  # noqa: PLC0415

    data = Path(pybullet_data.getDataPath())
    takes = [read_take(data / "data" / "motions" / f"humanoid3d_{take}.txt") for take in ACTIONS.values()]
    client = pybullet.connect(pybullet.DIRECT)
    try:
        yield functools.partial(
            _film, Figure(pybullet, client, data / "humanoid" / "humanoid.urdf", SIDE), takes, split
        )
    finally:
        pybullet.disconnect(client)


def _film(figure: Figure, takes: list[Take], split: Split, index: int) -> UInt8[np.ndarray, "frames side side"]:
    """The row of clip ``index``."""
    take = takes[index % len(takes)]
    shot = draw_shot(generator("motion-capture", split, index), split, take)
    moments = shot.moment + shot.pace / FPS * (np.arange(FRAMES) - FRAMES // 2)
    poses = [take.at(moment) for moment in moments.tolist()]
    aims = follow(np.stack([place for place, _ in poses])) + shot.aim
    back = shot.distance * towards(*np.radians([shot.azimuth, shot.elevation]))
    frames = []
    for (place, turns), aim in zip(poses, aims, strict=True):
        figure.pose(place, turns)
        frames.append(figure.look(aim + back, aim, shot.light))
    film = np.stack(frames)
    return film[:, :, ::-1] if shot.mirrored else film


RENDERING = Rendering("motion-capture", 1, "pybullet", (FRAMES, SIDE, SIDE), stage)
