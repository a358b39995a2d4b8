"""Ego-motion: the camera walks, turns or looks in one of 12 ways through the maps of Freedoom, drawn by ViZDoom.

One task: ``motion``, what the camera does. Train clips are of the maps MAP01 to MAP16 and test clips of MAP17 to MAP32,
without monsters. Rendered once, by the extra ``nextvid[benchmarks]``: see ``rendered``.

What a single frame cannot tell: the middle frame (number ``frames // 2``) has the same distribution of place, heading
and pitch whatever the motion. All that a place must satisfy (room all round it, a view ahead, light) is asked of the
middle frame alone, before the motion is known, and each path is laid so that it passes there just then.

Lengths are map units, of which the camera is 41 above the floor, and angles degrees, anticlockwise and up.
"""

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Complex, Float, UInt8

from nextvid.data.benchmarks.levels import Level, flatten, to_bytes
from nextvid.data.benchmarks.rendered import FPS, FRAMES, Draw, Rendering, Row, Rows, frame_numbers
from nextvid.data.clip import ClipSpec, Frames, MadeUp
from nextvid.data.film import Split, resize
from nextvid.randomness import generator, key_of

if TYPE_CHECKING:
    from vizdoom import DoomGame

POOL = 2400
SIDE = 120
MARGIN = 20
PALETTE_BYTES = 768
MAPS = 16

SPEED = (60.0, 110.0)
TURN = (60.0, 120.0)
LOOK = (25.0, 45.0)
PITCH = 8.0
BODY = 20.0
VIEW = 160.0
STEP = 24.0
HEADROOM = 56.0
DARK, FLAT = 35.0, 12.0
SETTLE = 12
ATTEMPTS = 8000
EASE = 0.9995

LEVELS = {level.name: level for level in (Level("still"),)}


class Motion(NamedTuple):
    """What the camera does: where it walks (ahead + i left, as seen by itself), how it turns and looks (1, 0 or -1)."""

    walk: complex = 0
    turn: int = 0
    look: int = 0


MOTIONS: dict[str, Motion] = {
    "forward": Motion(1),
    "backward": Motion(-1),
    "left": Motion(1j),
    "right": Motion(-1j),
    "turn left": Motion(turn=1),
    "turn right": Motion(turn=-1),
    "look up": Motion(look=1),
    "look down": Motion(look=-1),
    "forward, turning left": Motion(1, turn=1),
    "forward, turning right": Motion(1, turn=-1),
    "circle left": Motion(1j, turn=-1),
    "circle right": Motion(-1j, turn=1),
}

TASKS = {"motion": tuple(MOTIONS)}


class View(NamedTuple):
    """Where the camera is (x + iy), where it heads and how far up it looks."""

    place: complex
    heading: float
    pitch: float


class Pace(NamedTuple):
    """How fast a clip's motion is: units a second, and degrees turned and looked in a whole clip."""

    speed: float
    turn: float
    look: float


@dataclass
class EgoMotion:
    """One split of the benchmark: ``length`` labelled clips, classes balanced in every multiple of 12."""

    split: Split
    level: Level
    length: int
    name: str = "ego-motion"
    tasks: dict[str, tuple[str, ...]] = field(init=False, default_factory=lambda: dict(TASKS))
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        """Raise ``UserError`` where clips have yet to be rendered and the extra is not installed."""
        self.rows = Rows(RENDERING, self.split, self.length)

    def __len__(self) -> int:
        return self.length

    def labels(self, index: int) -> dict[str, int]:
        """The class of clip ``index``; all 192 pairs of motion and map come equally often in 192 clips."""
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        return {"motion": index % len(MOTIONS)}

    def clip(self, index: int, spec: ClipSpec) -> Frames:
        """Clip ``index``, uint8 ``(frames, size, size, 3)``: a pure function of split, level, index and spec.

        The first call renders the split, for minutes. Raises ``UserError`` for a clip longer than 2.67 s, and where
        the cache folder cannot be written.
        """
        self.labels(index)
        numbers = frame_numbers(self.name, spec)
        return play(self.rows[index], numbers, spec, self.level)


@dataclass
class EgoMotionClips(MadeUp):
    """Unlabelled clips, drawn at random from 2,400 of the train part: footage to pretrain on, rendered when opened."""

    level: Level
    name: str = "ego-motion"
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        """Render what is missing. Raises ``UserError`` where the extra is not installed or the cache has no room."""
        self.rows = Rows(RENDERING, "train", POOL)
        self.rows.render()

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int = 0) -> Frames:
        """A random clip, uint8 ``(frames, size, size, 3)``. Raises ``UserError`` for one longer than 2.67 s."""
        numbers = frame_numbers(self.name, spec)
        return play(self.rows[int(draw.integers(POOL))], numbers, spec, self.level)


def play(row: Row, numbers: np.ndarray, spec: ClipSpec, level: Level) -> Frames:
    """Frames ``numbers`` of a row, at the size of ``spec`` and the contrast of ``level``."""
    palette = row[:PALETTE_BYTES].reshape(256, 3)
    pixels = row[PALETTE_BYTES:].reshape(FRAMES, SIDE, SIDE)[numbers]
    frames = resize(palette[pixels], spec.size, spec.size)
    return frames if level.contrast == 1 else to_bytes(flatten(frames.astype(np.float32), level.contrast))


# Rendering


@dataclass(frozen=True)
class Map:
    """What is known of a map: the walls (two ends each, x + iy) that stop a walker, and where its things lie."""

    walls: Complex[np.ndarray, "walls 2"]
    things: Complex[np.ndarray, " things"]

    def room(self, place: complex) -> float:
        """How far the nearest wall is from ``place``."""
        start, along = self.walls[:, 0], self.walls[:, 1] - self.walls[:, 0]
        share = np.clip(((place - start) * along.conj()).real / np.maximum(abs(along) ** 2, 1e-9), 0, 1)
        return float(abs(start + share * along - place).min())

    def sight(self, place: complex, heading: float) -> float:
        """How far the nearest wall is ahead."""
        ends = (self.walls - place) * np.exp(-1j * np.radians(heading))
        ends = ends[ends[:, 0].imag * ends[:, 1].imag < 0]
        share = ends[:, 0].imag / (ends[:, 0] - ends[:, 1]).imag
        met = (ends[:, 0] + share * (ends[:, 1] - ends[:, 0])).real
        return float(met[met > 0].min(initial=np.inf))


@dataclass(frozen=True)
class Camera:
    """A running game whose player is put wherever a view says."""

    game: "DoomGame"
    greys: Float[np.ndarray, " 256"]
    """How bright every colour is, from 0 to 255."""
    maps: dict[str, Map] = field(default_factory=dict)

    def enter(self, name: str, seed: int) -> Map:
        """Begin map ``name`` anew, so that nothing of what was done before is left."""
        if self.game.get_doom_map() != name:
            self.game.set_doom_map(name)
        self.game.set_seed(seed)
        self.game.new_episode()
        if name not in self.maps:
            self.maps[name] = _survey(self.game)
        self.game.make_action([0.0, 0.0], SETTLE)
        return self.maps[name]

    def shoot(self, view: View) -> UInt8[np.ndarray, "side side"] | None:
        """The middle square of what is seen, as numbers of colours; None where the player cannot stand."""
        *_, heading, pitch = self._variables()
        place = complex(round(view.place.real), round(view.place.imag))
        turn = (heading - view.heading + 180) % 360 - 180
        self.game.send_game_command(f"warp {place.real:.0f} {place.imag:.0f}")
        self.game.make_action([turn / 2, (view.pitch - pitch) / 2], 2)
        state = self.game.get_state()
        x, y, *_ = self._variables()
        if state is None or abs(complex(x, y) - place) > 1.5:
            return None
        return state.screen_buffer[:, MARGIN : MARGIN + SIDE].copy()

    def sees(self, view: View) -> bool:
        """Whether the player can stand there and sees neither darkness nor one flat surface."""
        seen = self.shoot(view)
        if seen is None:
            return False
        greys = self.greys[seen]
        return bool(greys.mean() >= DARK and greys.std() >= FLAT)

    def _variables(self) -> tuple[float, float, float, float]:
        from vizdoom import GameVariable as Variable  # noqa: PLC0415

        known = (Variable.POSITION_X, Variable.POSITION_Y, Variable.ANGLE, Variable.PITCH)
        x, y, heading, down = (self.game.get_game_variable(variable) for variable in known)
        return x, y, heading, -down


@contextlib.contextmanager
def stage(split: Split) -> Iterator[Draw]:
    """A game that draws the rows of ``split``; it runs in a folder of its own, where it leaves its settings."""
    import vizdoom  # noqa: PLC0415

    wad = Path(vizdoom.__file__).parent / "freedoom2.wad"
    palette = read_palette(wad)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        game = _game(wad)
        try:
            game.init()
            camera = Camera(game, palette.reshape(256, 3).mean(1))
            yield lambda index: np.concatenate([palette, _film(camera, split, index).ravel()])
        finally:
            game.close()


def read_palette(wad: Path) -> UInt8[np.ndarray, " 768"]:
    """The red, green and blue of the game's 256 colours, from the first palette of a WAD file."""
    content = np.memmap(wad, np.uint8, "r")
    lumps, at = content[4:12].view("<i4")
    directory = content[at : at + 16 * lumps].view([("at", "<i4"), ("bytes", "<i4"), ("name", "S8")])
    first = int(directory["at"][directory["name"] == b"PLAYPAL"][0])
    return np.array(content[first : first + PALETTE_BYTES])


def _game(wad: Path) -> "DoomGame":
    import vizdoom  # noqa: PLC0415

    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(wad))
    game.set_doom_map("MAP01")
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.DOOM_256_COLORS8)
    game.set_sectors_info_enabled(True)
    game.set_objects_info_enabled(True)
    game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA, vizdoom.Button.LOOK_UP_DOWN_DELTA])
    for part in ("hud", "weapon", "crosshair", "decals", "particles", "effects_sprites", "messages", "screen_flashes"):
        getattr(game, f"set_render_{part}")(False)
    game.add_game_args("-nomonsters +freelook 1 +sv_cheats 1 +cl_showsecretmessage 0 +con_midtime 0")
    return game


def _survey(game: "DoomGame") -> Map:
    """The walls of the map that the game is in: lines with nothing behind, high steps, low openings."""
    state = game.get_state()
    behind, blocking = defaultdict(list), set()
    for sector in state.sectors:
        for line in sector.lines:
            ends = tuple(sorted([(line.x1, line.y1), (line.x2, line.y2)]))
            behind[ends].append((sector.floor_height, sector.ceiling_height))
            if line.is_blocking:
                blocking.add(ends)
    walls = [ends for ends, sides in behind.items() if ends in blocking or _stops(sides)]
    things = [complex(thing.position_x, thing.position_y) for thing in state.objects]
    return Map(np.array(walls) @ np.array([1, 1j]), np.array(things))


def _stops(sides: list[tuple[float, float]]) -> bool:
    floors, ceilings = zip(*sides, strict=True)
    return len(sides) < 2 or max(floors) - min(floors) > STEP or min(ceilings) - max(floors) < HEADROOM


def path(middle: View, motion: Motion, pace: Pace) -> list[View]:
    """The views of all rendered frames, of which frame ``FRAMES // 2`` is ``middle``."""
    steps = np.arange(FRAMES) - FRAMES // 2
    heading = middle.heading + motion.turn * pace.turn / FRAMES * steps
    pitch = middle.pitch + motion.look * pace.look / FRAMES * steps
    ways = motion.walk * np.exp(1j * np.radians((heading[1:] + heading[:-1]) / 2))
    walked = pace.speed / FPS * np.concatenate([[0], np.cumsum(ways)])
    place = middle.place + walked - walked[FRAMES // 2]
    return [View(*view) for view in zip(place.tolist(), heading.tolist(), pitch.tolist(), strict=True)]


def _film(camera: Camera, split: Split, index: int) -> UInt8[np.ndarray, "frames side side"]:
    """Clip ``index``: places are tried, at an ever lower pace, until one suits and the camera gets all the way."""
    draw = generator("ego-motion", split, index)
    number = index // len(MOTIONS) % MAPS + (1 if split == "train" else 1 + MAPS)
    motion = list(MOTIONS.values())[index % len(MOTIONS)]
    ground = camera.enter(f"MAP{number:02d}", key_of("ego-motion", split, index) % 2**31)
    for attempt in range(ATTEMPTS):
        pace = Pace(EASE**attempt * draw.uniform(*SPEED), draw.uniform(*TURN), draw.uniform(*LOOK))
        middle = _find_view(draw, ground, pace)
        if middle is None or not camera.sees(middle):
            continue
        frames = [frame for view in path(middle, motion, pace) if (frame := camera.shoot(view)) is not None]
        if len(frames) == FRAMES:
            return np.stack(frames)
    raise RuntimeError(f"MAP{number:02d} has no place for clip {index} ({split}) of ego-motion")


def _find_view(draw: np.random.Generator, ground: Map, pace: Pace) -> View | None:
    """A random view near one of the map's things, or None where a path of any kind might meet a wall."""
    reach = BODY + pace.speed * FRAMES / FPS / 2
    thing = complex(draw.choice(ground.things))
    place = thing + reach * draw.random() * np.exp(2j * np.pi * draw.random())
    view = View(complex(place), draw.uniform(0, 360), draw.uniform(-PITCH, PITCH))
    free = ground.room(view.place) >= reach and ground.sight(view.place, view.heading) >= VIEW
    return view if free else None


RENDERING = Rendering("ego-motion", 1, "vizdoom", (PALETTE_BYTES + FRAMES * SIDE * SIDE,), stage)
