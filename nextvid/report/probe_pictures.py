"""The pictures of a probe's page and of a leaderboard: looping films, attention over frames, intervals, a map, matrices."""

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from nextvid.evaluation.looking import Attended, FeatureMap2d, Look
from nextvid.report.curves import INK, LINE, dress, svg
from nextvid.report.tables import Cell

FrameStack = UInt8[np.ndarray, "frames height width 3"]
Picture = UInt8[np.ndarray, "height width 3"]

PICTURE_BYTES = 3_600_000
"""For all films together; a page holds a byte in four thirds of a letter."""
FILM_BYTES = 120_000
FILM_FRAMES = 16
REST = 500
"""Milliseconds for which a film stands still at its end."""
SHARP_SIDE = 64
"""Clips of up to so many pixels a side keep every pixel, as a sharp square."""
LADDER = ((160, 80), (144, 65), (112, 50), (96, 40), (64, 30), (48, 20), (40, 10))
"""Pixels a side and quality that are tried, the best first, until a film is small enough."""
TILES = 8
MAP_COLOURS = (
    "#d6542b",
    "#2b7fd6",
    "#3f9b57",
    "#9b59b6",
    "#c49a1a",
    "#1aa6a6",
    "#e377c2",
    "#8c564b",
    "#7f9a1a",
    "#4b5aa6",
)
MAP_MARKS = ("o", "^")
MOST_IN_LEGEND = len(MAP_COLOURS) * len(MAP_MARKS)
HEAT_COLOUR = (255, 120, 20)


class Film(NamedTuple):
    """A looping film and, for those who want nothing to move, a still of it, as addresses that hold their data."""

    moving: str
    still: str
    sharp: bool

    @property
    def size(self) -> int:
        """Characters that it takes in a page."""
        return len(self.moving) + len(self.still)


def film_of(frames: FrameStack, milliseconds: float, limit: int) -> Film:
    """A looping film whose frames each stay so many ``milliseconds``; at most ``limit`` bytes where pictures allow it."""
    shown = evenly(len(frames), FILM_FRAMES)
    stay = round(min(max(milliseconds * len(frames) / len(shown), 40), 500))
    stays = [stay] * (len(shown) - 1) + [stay + REST]
    sharp = max(frames.shape[1:3]) <= SHARP_SIDE
    for side, quality in LADDER:
        images = [sized(frames[number], side) for number in shown]
        moving, still = (_webp(part, stays, quality, sharp) for part in (images, images[len(images) // 2 :][:1]))
        if len(moving) + len(still) <= limit:
            break
        sharp = False
    return Film(address(moving), address(still), max(frames.shape[1:3]) <= SHARP_SIDE)


def still_of(picture: Picture, limit: int) -> str:
    """A picture at rest of at most ``limit`` bytes, where pictures allow it."""
    sharp = max(picture.shape[:2]) <= SHARP_SIDE
    for side, quality in LADDER:
        content = _webp([sized(picture, side)], [0], quality, sharp)
        if len(content) <= limit:
            break
        sharp = False
    return address(content)


def _webp(images: Sequence[Image.Image], stays: list[int], quality: int, sharp: bool) -> bytes:
    buffer = io.BytesIO()
    moving = {"save_all": True, "append_images": images[1:], "duration": stays, "loop": 0} if len(images) > 1 else {}
    images[0].save(buffer, "WEBP", quality=quality, lossless=sharp, method=2, **moving)
    return buffer.getvalue()


def address(content: bytes) -> str:
    """A WebP file as an address that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def sized(picture: Picture, side: int) -> Image.Image:
    """A picture of at most ``side`` pixels a side; a small one is left as it is."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.BOX)
    return image


def evenly(length: int, most: int) -> list[int]:
    """At most ``most`` numbers below ``length``, the last one among them, at even steps."""
    count = min(length, most)
    return [(number + 1) * length // count - 1 for number in range(count)]


def heated(
    frames: FrameStack, weights: Float[np.ndarray, "time rows columns"]
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Frames in grey with what is read of each place in colour over it, strongest where most of the clip is read."""
    high = max(float(np.quantile(weights, 0.995)), 1e-12)
    height, width = frames.shape[1:3]
    grey = frames.mean(-1, keepdims=True) * 0.6 + 30
    found = np.empty_like(frames)
    for number, frame in enumerate(grey):
        latent = weights[number * len(weights) // len(frames)]
        over = np.clip(latent / high, 0, 1)[..., None] ** 0.7 * 0.85
        rows = np.arange(height) * over.shape[0] // height
        columns = np.arange(width) * over.shape[1] // width
        strength = over[rows][:, columns]
        found[number] = (frame * (1 - strength) + np.array(HEAT_COLOUR) * strength).round().astype(np.uint8)
    return found


class Tile(NamedTuple):
    """One latent frame of a strip: its last frame with what is read of it, and the share of all that is read there."""

    image: str
    share: float


@dataclass(frozen=True)
class AttendedFilms:
    """A clip moving, the same with the probe's attention over it, and its latent frames at rest."""

    plain: Film
    heated: Film
    tiles: list[Tile]


def attended_films(attended: Attended, milliseconds: float, limit: int) -> AttendedFilms:
    """The pictures of one clip's attention; of many latent frames some, at even steps."""
    hot = heated(attended.frames, attended.weights)
    time = len(attended.weights)
    shares = attended.weights.sum((1, 2))
    tiles = []
    for latent in evenly(time, TILES):
        frame = max(0, (latent + 1) * len(hot) // time - 1)
        tiles.append(Tile(still_of(hot[frame], limit // TILES), float(shares[latent])))
    return AttendedFilms(film_of(attended.frames, milliseconds, limit), film_of(hot, milliseconds, limit), tiles)


@dataclass(frozen=True)
class HeatCell:
    """A square of a matrix: where it is, how strong its colour is (0 to 1), what is written in it and what pointing says."""

    row: int
    column: int
    strength: float
    words: str
    tip: str
    own: bool = False
    """In the other colour: what is right, among mistakes."""
    marked: bool = False


@dataclass(frozen=True)
class Heat:
    """A matrix of squares with names, drawn by ``heat.html.j2``."""

    rows: list[str]
    columns: list[str]
    cells: list[HeatCell]
    row_title: str
    column_title: str
    side: int
    slanted: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slanted", self._longest(self.columns) * LETTER > self.side)

    @staticmethod
    def _longest(names: list[str]) -> int:
        return max((len(name) for name in names), default=0)

    @property
    def left(self) -> int:
        """Pixels left of the squares."""
        return round(self._longest(self.rows) * LETTER) + 26

    @property
    def top(self) -> int:
        """Pixels above the squares."""
        return (round(self._longest(self.columns) * LETTER * 0.87) + 12 if self.slanted else 20) + 20

    @property
    def width(self) -> int:
        """Pixels in all, with room for the last column's slanted name."""
        spill = self._longest(self.columns) * LETTER * 0.5 if self.slanted else 0
        return round(self.left + self.side * len(self.columns) + max(spill, self.side / 2) + 4)

    @property
    def height(self) -> int:
        """Pixels in all."""
        return self.top + self.side * len(self.rows) + 4


LETTER = 6.3
"""Pixels that a letter of a matrix's names takes."""


def short(name: str, most: int = 28) -> str:
    """A name of at most so many letters, without its middle where it is longer: names of actions often begin alike."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head].rstrip()}…{name[len(name) - (most - 1 - head) :].lstrip()}"


def shorts(names: Sequence[str], chosen: Sequence[int], most: int = 28) -> list[str]:
    """The names of the chosen classes, shortened; those that are then alike begin with the number of their class."""
    cut = [short(names[label], most) for label in chosen]
    again = Counter(cut)
    return [f"{label} {text}" if again[text] > 1 else text for label, text in zip(chosen, cut, strict=True)]


class Interval(NamedTuple):
    """A line of the picture of intervals."""

    name: str
    cell: Cell
    colour: str


def intervals(lines: Sequence[Interval], chance: float, band: Cell | None = None) -> Figure:
    """Scores (percent) as points with their 95% intervals, the first on top; ``band``: the best one's interval, shaded."""
    figure = Figure(figsize=(9.6, 0.6 + 0.28 * len(lines)), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    dress(axes, "")
    axes.axvline(chance, color=INK, linewidth=1, linestyle=":")
    if band:
        axes.axvspan(band.low, band.high, color=LINE, alpha=0.12, linewidth=0)
    for place, (_, cell, colour) in enumerate(lines):
        axes.plot([cell.low, cell.high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot([cell.top1], [place], "o", color=colour, markersize=6)
    axes.set_yticks(range(len(lines)), [short(line.name, 40) for line in lines], parse_math=False, fontsize=9)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlabel("top-1, percent; dotted: chance", fontsize=8, color=INK)
    return figure


def map_figure(shown: FeatureMap2d) -> Figure:
    """The map of test clips: a colour a class, with a legend; of more than ``MOST_IN_LEGEND`` classes the most common ones."""
    counts = Counter(shown.labels.tolist())
    kept = sorted(label for label, _ in counts.most_common(MOST_IN_LEGEND))
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal", "datalim")
    others = ~np.isin(shown.labels, kept)
    if others.any():
        x, y = shown.points[others].T
        axes.scatter(x, y, s=7, color=INK, alpha=0.35, linewidth=0)
    handles = []
    for place, label in enumerate(kept):
        mark = MAP_MARKS[place // len(MAP_COLOURS)]
        colour = MAP_COLOURS[place % len(MAP_COLOURS)]
        x, y = shown.points[shown.labels == label].T
        axes.scatter(x, y, s=16, color=colour, marker=mark, alpha=0.8, linewidth=0)
        handles.append(Line2D([], [], color=colour, marker=mark, linewidth=0, markersize=5))
    names = shorts(shown.names, kept, 34)
    if others.any():
        handles.append(Line2D([], [], color=INK, marker="o", linewidth=0, markersize=2.5))
        names.append(f"{len(counts) - len(kept)} other classes")
    _legend(figure, handles, names)
    return figure


def _legend(figure: Figure, handles: list[Line2D], names: list[str]) -> None:
    """A legend of any names: one that begins with a line or holds dollars is text as well."""
    made = figure.legend(
        handles, ["-"] * len(names), loc="outside right upper", fontsize=9, frameon=False, labelcolor=INK
    )
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def most_confused(confusion: Int[np.ndarray, "classes classes"], most: int) -> list[int]:
    """The classes that most mistakes are about, as truth or as answer, by number, rising."""
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:most]
    return sorted(order.tolist())


def confusion_heat(confusion: Int[np.ndarray, "classes classes"], names: Sequence[str], classes: Sequence[int]) -> Heat:
    """The part of a confusion matrix that is of these classes; each square's colour is its share of the true class's clips."""
    side = 34 if len(classes) <= 12 else 26 if len(classes) <= 20 else 17
    totals = confusion.sum(1)
    cells = []
    for row, truth in enumerate(classes):
        for column, answer in enumerate(classes):
            count = int(confusion[truth, answer])
            if count:
                tip = f"{names[truth]} → {names[answer]}: {count} of {totals[truth]}"
                words = str(count) if side > 20 else ""
                cells.append(HeatCell(row, column, count / int(totals[truth]), words, tip, own=truth == answer))
    labels = shorts(names, classes)
    return Heat(labels, labels, cells, "truth", "answer", side)


def grid_heat(grid: Sequence[dict[str, Any]], found: dict[str, Any]) -> Heat:
    """Held-out accuracy by learning rate (rows) and weight decay (columns); colours go from the worst to the best."""
    rates = sorted({member["lr"] for member in grid}, reverse=True)
    decays = sorted({member["weight_decay"] for member in grid})
    scores = [member["held_out_top1"] for member in grid]
    low, high = min(scores), max(scores)
    chosen = (found.get("best_lr"), found.get("best_weight_decay"))
    cells = []
    for member in grid:
        top1 = member["held_out_top1"]
        lost = member.get("held_out_loss", 0.0) is None or not math.isfinite(top1)
        tip = f"learning rate {member['lr']:g}, weight decay {member['weight_decay']:g}: {100 * top1:.1f}%"
        strength = 0.0 if lost else 0.75 * (top1 - low) / max(high - low, 1e-9)
        words = "–" if lost else f"{100 * top1:.1f}"
        at = rates.index(member["lr"]), decays.index(member["weight_decay"])
        cells.append(HeatCell(*at, strength, words, tip, marked=(member["lr"], member["weight_decay"]) == chosen))
    return Heat([f"{r:g}" for r in rates], [f"{d:g}" for d in decays], cells, "learning rate", "weight decay", 48)


def films_of(look: Look | None, milliseconds: float) -> dict[str, Any]:
    """The clips to look at as films, each so small that all of them together stay within ``PICTURE_BYTES``."""
    if look is None:
        return {"looked": False, "misread": [], "neighbours": [], "attended": [], "map": None}
    films = len(look.misread) + sum(1 + len(row.nearest) for row in look.neighbours) + 3 * len(look.attended)
    limit = min(FILM_BYTES, PICTURE_BYTES // max(films, 1))
    return {
        "looked": True,
        "misread": [
            {
                "film": film_of(row.frames, milliseconds, limit),
                "truth": row.truth,
                "answer": row.answer,
                "sure": f"{100 * row.probability:.0f}",
                "of_truth": f"{100 * row.truth_probability:.0f}",
            }
            for row in look.misread
        ],
        "neighbours": [
            {
                "film": film_of(row.frames, milliseconds, limit),
                "label": row.label,
                "nearest": [
                    {
                        "film": film_of(near.frames, milliseconds, limit),
                        "label": near.label,
                        "same": near.label == row.label,
                        "similarity": near.similarity,
                    }
                    for near in row.nearest
                ],
            }
            for row in look.neighbours
        ],
        "attended": [
            {
                "films": attended_films(row, milliseconds, limit),
                "truth": row.truth,
                "answer": row.answer,
                "right": row.truth == row.answer,
            }
            for row in look.attended
        ],
        "map": Markup(svg(map_figure(look.points))) if look.points else None,
        "map_clips": f"{len(look.points.points):,}" if look.points else "",
    }
