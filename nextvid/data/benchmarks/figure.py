"""The figure of ``motion-capture``: recorded poses, a body on PyBullet's joints, and the camera before it."""

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, UInt8

FIELD = 40.0
"""Degrees that the camera sees from top to bottom."""

GAP = 0.1
MERIDIANS, PARALLELS = 14, 8
SKIN, TOP, LEGS = 1, 2, 3


class Part(NamedTuple):
    """An ellipsoid of the figure: its colour, its centre and half its axes, in metres along the link's own axes."""

    link: str
    colour: int
    centre: tuple[float, float, float]
    axes: tuple[float, float, float]


def both(link: str, *shape: Any) -> tuple[Part, Part]:
    """A part of the left side and its like on the right."""
    return Part(f"left_{link}", *shape), Part(f"right_{link}", *shape)


PARTS = (
    Part("root", LEGS, (0.0, 0.05, 0.0), (0.10, 0.12, 0.14)),
    Part("chest", TOP, (0.0, 0.08, 0.0), (0.11, 0.21, 0.16)),
    Part("neck", TOP, (0.0, 0.03, 0.0), (0.05, 0.09, 0.05)),
    Part("neck", SKIN, (0.0, 0.175, 0.0), (0.11, 0.13, 0.095)),
    Part("neck", SKIN, (0.10, 0.165, 0.0), (0.035, 0.03, 0.025)),
    *both("shoulder", TOP, (0.0, -0.13, 0.0), (0.055, 0.17, 0.055)),
    *both("elbow", SKIN, (0.0, -0.12, 0.0), (0.045, 0.15, 0.045)),
    *both("wrist", SKIN, (0.0, -0.02, 0.0), (0.045, 0.06, 0.03)),
    *both("hip", LEGS, (0.0, -0.20, 0.0), (0.08, 0.25, 0.08)),
    *both("knee", LEGS, (0.0, -0.19, 0.0), (0.06, 0.23, 0.06)),
    *both("ankle", SKIN, (0.045, -0.0225, 0.0), (0.12, 0.04, 0.05)),
)

MODEL_SCALE = 0.25
"""Metres per unit of PyBullet's model of the figure."""

TURNING = ("root", "chest", "neck", "right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow",
           "left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow")  # fmt: skip
HINGES = {"right_knee", "right_elbow", "left_knee", "left_elbow"}


@dataclass(frozen=True)
class Take:
    """A recorded action: ``times`` in seconds from 0, places of the root in metres (y up) and turns of the joints.

    ``turns`` has a quaternion (x, y, z, w) for the root and every ball joint and ``(angle, 0, 0, 0)`` for a hinge, in the
    order of ``TURNING``. A take that loops ends in its first pose, and each round begins where the last one ended.
    """

    times: Float[np.ndarray, " poses"]
    places: Float[np.ndarray, "poses 3"]
    turns: Float[np.ndarray, "poses 13 4"]
    loops: bool

    @property
    def seconds(self) -> float:
        """How long a round lasts."""
        return float(self.times[-1])

    def at(self, moment: float) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "13 4"]]:
        """The root's place and the joints' turns at any moment; a take that does not loop rests before and after."""
        rounds = np.floor(moment / self.seconds) if self.loops else 0.0
        moment = float(np.clip(moment - rounds * self.seconds, 0, self.seconds))
        after = int(np.clip(np.searchsorted(self.times, moment, side="right"), 1, len(self.times) - 1))
        share = (moment - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
        place = (1 - share) * self.places[after - 1] + share * self.places[after]
        turns = (1 - share) * self.turns[after - 1] + share * self.turns[after]
        return place + rounds * (self.places[-1] - self.places[0]), turns


def read_take(path: Path) -> Take:
    """A take from PyBullet's text: per pose its seconds, the root's place and then all turns, quaternions from w."""
    content = json.loads(path.read_text())
    table, loops = np.array(content["Frames"]), content["Loop"] == "wrap"
    turns, column = [], 4
    for joint in TURNING:
        width = 1 if joint in HINGES else 4
        turns.append(_continuous(table[:, column : column + width]))
        column += width
    take = Take(np.cumsum(table[:, 0]) - table[:, 0], table[:, 1:4], np.stack(turns, axis=1), loops)
    return _closed(take) if loops else take


def _continuous(turns: Float[np.ndarray, "poses width"]) -> Float[np.ndarray, "poses 4"]:
    """Quaternions from w first to w last, with signs that do not jump; a hinge's angle padded with zeros."""
    if turns.shape[1] == 1:
        return np.pad(turns, ((0, 0), (0, 3)))
    signs = np.sign(np.sum(turns[1:] * turns[:-1], axis=1))
    return np.roll(turns, -1, axis=1) * np.cumprod(np.concatenate([[1], signs]))[:, None]


def _closed(take: Take) -> Take:
    """A take that loops, with ``GAP`` seconds more in which it goes on to its first pose."""
    stay = np.array([1, 0, 1]) * (take.places[-1] - take.places[0]) * (1 + GAP / take.seconds)
    signs = np.where(np.sum(take.turns[-1] * take.turns[0], axis=1) < 0, -1, 1)
    hinges = np.array([joint in HINGES for joint in TURNING])
    first = take.turns[0] * np.where(hinges, 1, signs)[:, None]
    return Take(
        np.append(take.times, take.seconds + GAP),
        np.concatenate([take.places, [take.places[0] + stay]]),
        np.concatenate([take.turns, [first]]),
        True,
    )


class Figure:
    """PyBullet's humanoid with a rounder body, and the camera before it."""

    def __init__(self, bullet: Any, client: int, model: Path, side: int) -> None:
        self.bullet, self.client, self.side = bullet, client, side
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "figure.urdf"
            sphere = Path(folder) / "sphere.obj"
            sphere.write_text(unit_sphere())
            file.write_bytes(dressed(model, sphere))
            self.body = bullet.loadURDF(str(file), globalScaling=MODEL_SCALE, physicsClientId=client)
        count = bullet.getNumJoints(self.body, physicsClientId=client)
        found = [bullet.getJointInfo(self.body, joint, physicsClientId=client) for joint in range(count)]
        self.joints = {joint[12].decode(): int(joint[0]) for joint in found}
        self.projection = bullet.computeProjectionMatrixFOV(FIELD, 1.0, 0.1, 20.0)

    def pose(self, place: Float[np.ndarray, " 3"], turns: Float[np.ndarray, "13 4"]) -> None:
        """Put the root at ``place`` and turn the joints."""
        unit = turns / np.linalg.norm(turns, axis=1, keepdims=True).clip(1e-9)
        client = {"physicsClientId": self.client}
        for joint, turn, quaternion in zip(TURNING, turns.tolist(), unit.tolist(), strict=True):
            if joint == "root":
                self.bullet.resetBasePositionAndOrientation(self.body, place.tolist(), quaternion, **client)
            elif joint in HINGES:
                self.bullet.resetJointState(self.body, self.joints[joint], turn[0], **client)
            else:
                self.bullet.resetJointStateMultiDof(self.body, self.joints[joint], quaternion, **client)

    def look(
        self, eye: Float[np.ndarray, " 3"], aim: Float[np.ndarray, " 3"], light: Float[np.ndarray, " 3"]
    ) -> UInt8[np.ndarray, "side side"]:
        """What a camera sees that is at ``eye`` and aimed at ``aim``, in the bytes that ``paint`` reads."""
        *_, image, _, segments = self.bullet.getCameraImage(
            self.side,
            self.side,
            self.bullet.computeViewMatrix(eye.tolist(), aim.tolist(), [0, 1, 0]),
            self.projection,
            lightDirection=light.tolist(),
            lightAmbientCoeff=0.45,
            lightDiffuseCoeff=0.5,
            lightSpecularCoeff=0.05,
            shadow=0,
            renderer=self.bullet.ER_TINY_RENDERER,
            flags=self.bullet.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX,
            physicsClientId=self.client,
        )
        bright = np.reshape(image, (self.side, self.side, 4))[..., 0].astype(np.uint8) >> 2
        links = np.reshape(segments, (self.side, self.side))
        return np.where(links >= 0, (self._colours()[(links >> 24) - 1] << 6) + bright, 0).astype(np.uint8)

    @functools.cache  # noqa: B019
    def _colours(self) -> UInt8[np.ndarray, " links"]:
        colours = np.zeros(len(self.joints), np.uint8)
        for part in PARTS:
            colours[self.joints[part.link]] = part.colour
        return colours


def dressed(model: Path, sphere: Path) -> bytes:
    """The model file with the shapes of ``PARTS`` in place of its own; its joints stay as they are."""
    robot = ElementTree.fromstring(model.read_bytes().strip(b"\0 \r\n"))
    for link in robot.iter("link"):
        for shape in link.findall("collision"):
            link.remove(shape)
        for part in PARTS:
            if part.link == link.get("name"):
                link.append(_visual(part, sphere))
    return ElementTree.tostring(robot)


def _visual(part: Part, sphere: Path) -> ElementTree.Element:
    def in_units(lengths: tuple[float, float, float]) -> str:
        return " ".join(f"{length / MODEL_SCALE:.6f}" for length in lengths)

    visual = ElementTree.Element("visual")
    ElementTree.SubElement(visual, "origin", xyz=in_units(part.centre), rpy="0 0 0")
    geometry = ElementTree.SubElement(visual, "geometry")
    ElementTree.SubElement(geometry, "mesh", filename=str(sphere), scale=in_units(part.axes))
    material = ElementTree.SubElement(visual, "material", name="white")
    ElementTree.SubElement(material, "color", rgba="1 1 1 1")
    return visual


def unit_sphere() -> str:
    """A sphere of radius 1 in OBJ text, its poles up and down; normals are those of the true sphere."""
    across = np.arange(MERIDIANS) / MERIDIANS * 2 * np.pi
    down = np.arange(PARALLELS + 1) / PARALLELS * np.pi
    ring = np.stack([np.cos(across), np.zeros(MERIDIANS), np.sin(across)], axis=1)
    points = np.sin(down)[:, None, None] * ring + np.cos(down)[:, None, None] * np.array([0, 1, 0])
    lines = [f"{kind} {x:.6f} {y:.6f} {z:.6f}" for kind in ("v", "vn") for x, y, z in points.reshape(-1, 3)]
    for row in range(PARALLELS):
        for column in range(MERIDIANS):
            here, beside = row * MERIDIANS + column, row * MERIDIANS + (column + 1) % MERIDIANS
            if row > 0:
                lines.append(_face(here, beside, here + MERIDIANS))
            if row < PARALLELS - 1:
                lines.append(_face(beside, beside + MERIDIANS, here + MERIDIANS))
    return "\n".join(["o sphere", *lines, ""])


def _face(*corners: int) -> str:
    return "f " + " ".join(f"{corner + 1}//{corner + 1}" for corner in corners)
