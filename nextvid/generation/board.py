"""Pictures on a board: tiles in rows and columns with names, real ones in a grey border and drawn ones in an orange one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from nextvid.report.pictures import DRAWN_BORDER, REAL_BORDER

Picture = UInt8[np.ndarray, "height width 3"]

PAPER, INK, FAINT = (255, 255, 255), (34, 34, 34), (110, 110, 110)
BORDER, GAP, MARGIN = 2, 4, 10
TEXT, TITLE = 13, 15


class Tile(NamedTuple):
    """A picture, and whether a model has drawn it."""

    picture: Picture
    drawn: bool


class Row(NamedTuple):
    """Tiles beside each other, some perhaps left out, with a name at the left; ``opens`` a group, after a wider gap."""

    name: str
    tiles: Sequence[Tile | None]
    opens: bool = False


def paint(rows: Sequence[Row], columns: Sequence[str], side: int, title: str = "") -> Picture:
    """A board whose tiles are ``side`` pixels wide and high, without their borders; title and names are drawn as text."""
    cell = side + 2 * BORDER
    left = (
        MARGIN
        + max((_width(row.name, TEXT) for row in rows), default=0)
        + (MARGIN if any(row.name for row in rows) else 0)
    )
    named = any(columns)
    top = MARGIN + (TITLE + MARGIN if title else 0) + (TEXT + GAP + 2 if named else 0)
    tops = _tops(rows, top, cell)
    width = max(left + len(columns) * (cell + GAP) - GAP, MARGIN + _width(title, TITLE)) + MARGIN
    board = Image.new("RGB", (width, tops[-1] + cell + MARGIN), PAPER)
    pen = ImageDraw.Draw(board)
    if title:
        pen.text((MARGIN, MARGIN - 2), title, INK, _font(TITLE))
    for number, name in enumerate(columns):
        middle = left + number * (cell + GAP) + cell // 2
        pen.text((middle, top - GAP), name, FAINT, _font(TEXT), anchor="md")
    for row, place in zip(rows, tops, strict=True):
        pen.text((left - MARGIN, place + cell // 2), row.name, INK, _font(TEXT), anchor="rm")
        for number, tile in enumerate(row.tiles):
            if tile is not None:
                board.paste(_framed(tile, side), (left + number * (cell + GAP), place))
    return np.asarray(board)


def sized(picture: Picture, side: int) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """A square picture at ``side`` pixels: enlarged in sharp squares, or averaged down."""
    way = Image.Resampling.NEAREST if side >= picture.shape[0] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((side, side), way))


def side_for(pixels: int, smallest: int, largest: int) -> int:
    """The side of a tile: a whole multiple of the picture's that is ``smallest`` or more, or ``largest`` where that is less."""
    return min(-(-max(smallest, pixels) // pixels) * pixels, largest)


def _tops(rows: Sequence[Row], top: int, cell: int) -> list[int]:
    found: list[int] = []
    for row in rows:
        found.append(top if not found else found[-1] + cell + (3 * GAP if row.opens else GAP))
    return found


def _framed(tile: Tile, side: int) -> Image.Image:
    frame = Image.new("RGB", (side + 2 * BORDER, side + 2 * BORDER), DRAWN_BORDER if tile.drawn else REAL_BORDER)
    frame.paste(Image.fromarray(sized(tile.picture, side)), (BORDER, BORDER))
    return frame


def _width(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
