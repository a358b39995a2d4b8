"""The pictures that a page shows, as arrays, and the strips and films that are made of them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Clips = UInt8[np.ndarray, "clips frames height width 3"]
Picture = UInt8[np.ndarray, "height width 3"]

GAP = 2
CLEAR = (254, 1, 254)
"""What becomes transparent in a PNG: gaps, and places where there is no picture."""
REAL_BORDER = (128, 128, 128)
DRAWN_BORDER = (214, 84, 43)
FRAME_MILLISECONDS = 220


@dataclass(frozen=True)
class Drawings:
    """What a model makes of what it sees: RGB, channels last; ``meaning`` says what ``drawn`` is.

    ``drawn`` and ``truth`` are the last frames of each clip, all of them or those that have frames before them.
    """

    masked_input: UInt8[np.ndarray, "clips frames height width 3"]
    drawn: UInt8[np.ndarray, "clips drawn rows columns 3"]
    truth: UInt8[np.ndarray, "clips drawn rows columns 3"]
    meaning: str


@dataclass(frozen=True)
class RollOut:
    """Clips that go on by themselves: the first ``context`` frames of both are the same real ones."""

    truth: UInt8[np.ndarray, "rolled long rows columns 3"]
    drawn: UInt8[np.ndarray, "rolled long rows columns 3"]
    context: int


@dataclass(frozen=True)
class FeatureMaps:
    """Clips, and the first three principal components of the encoder's tokens."""

    clips: UInt8[np.ndarray, "clips frames height width 3"]
    maps: UInt8[np.ndarray, "clips latent_frames grid_rows grid_columns 3"]


@dataclass(frozen=True)
class Pictures:
    """What a page shows: every method has features; not every one draws, and few go on by themselves."""

    features: FeatureMaps
    drawings: Drawings | None = None
    rollout: RollOut | None = None


def strip(frames: UInt8[np.ndarray, "frames height width 3"], side: int) -> UInt8[np.ndarray, "{side} length 3"]:
    """Frames side by side, each enlarged to ``side`` pixels without smoothing, with a gap between them."""
    tiles = [enlarge(frame, side) for frame in frames]
    gap = _clear(side, GAP)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def stack(pictures: Sequence[UInt8[np.ndarray, "_ width 3"]]) -> UInt8[np.ndarray, "total width 3"]:
    """Pictures of one width, one above the other, with a gap between them."""
    gap = _clear(GAP, pictures[0].shape[1])
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=0)


def enlarge(frame: Picture, side: int) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """A square picture at ``side`` x ``side`` pixels, every pixel a sharp square."""
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST))


def png(picture: Picture) -> bytes:
    """A PNG file, transparent where the picture is ``CLEAR``."""
    buffer = io.BytesIO()
    alpha = np.where((picture == CLEAR).all(axis=-1, keepdims=True), 0, 255).astype(np.uint8)
    Image.fromarray(np.concatenate([picture, alpha], axis=-1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _clear(height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    return np.full((height, width, 3), CLEAR, np.uint8)


def drawing_sheet(drawings: Drawings, clip: int, side: int = 64) -> Picture:
    """Of one clip: what the encoder saw, what was drawn, and the truth; frames that are not drawn have nothing beneath."""
    drawn, truth = drawings.drawn[clip], drawings.truth[clip]
    seen = drawings.masked_input[clip]
    blank = np.tile(_clear(*drawn.shape[1:3])[None], (len(seen) - len(drawn), 1, 1, 1))
    rows = (seen, np.concatenate([blank, drawn]), np.concatenate([blank, truth]))
    return stack([strip(row, side) for row in rows])


def feature_sheet(features: FeatureMaps, clip: int, side: int = 96) -> Picture:
    """Of one clip: the last frame of every tubelet, and the features of that latent frame as RGB."""
    maps = features.maps[clip]
    tubelet = features.clips.shape[1] // len(maps)
    return stack([strip(features.clips[clip][tubelet - 1 :: tubelet], side), strip(maps, side)])


def roll_out_film(rollout: RollOut, side: int = 96, columns: int = 3) -> list[Picture]:
    """A picture a frame: every clip's truth beside its roll-out, which has a coloured border once it is drawn."""
    return [_roll_out_picture(rollout, frame, side, columns) for frame in range(rollout.truth.shape[1])]


def gif(film: Sequence[Picture], milliseconds: int = FRAME_MILLISECONDS) -> bytes:
    """A film as a looped GIF, resting on its last frame; each of the others stays for so many ``milliseconds``."""
    images = [Image.fromarray(picture) for picture in film]
    palette = Image.fromarray(np.concatenate(film, axis=1)).quantize(255)
    reduced = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(film) - 1) + [4 * milliseconds]
    reduced[0].save(buffer, "GIF", save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=False)
    return buffer.getvalue()


def roll_out_sheet(rollout: RollOut, clip: int, side: int = 64) -> Picture:
    """The roll-out of one clip at rest: truth above, drawn below."""
    return stack([strip(rollout.truth[clip], side), strip(rollout.drawn[clip], side)])


def _roll_out_picture(rollout: RollOut, frame: int, side: int, columns: int) -> Picture:
    drawn = frame >= rollout.context
    pairs = [
        np.concatenate([_bordered(truth[frame], side, False), _bordered(made[frame], side, drawn)], axis=1)
        for truth, made in zip(rollout.truth, rollout.drawn, strict=True)
    ]
    pairs += [np.full_like(pairs[0], REAL_BORDER)] * (-len(pairs) % columns)
    rows = [np.concatenate(pairs[i : i + columns], axis=1) for i in range(0, len(pairs), columns)]
    return np.concatenate(rows, axis=0)


def _bordered(frame: Picture, side: int, drawn: bool) -> UInt8[np.ndarray, "{side+6} {side+6} 3"]:
    border = np.array(DRAWN_BORDER if drawn else REAL_BORDER, np.uint8)
    framed = np.broadcast_to(border, (side + 6, side + 6, 3)).copy()
    framed[3:-3, 3:-3] = enlarge(frame, side)
    return framed
