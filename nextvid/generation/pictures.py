"""The contact sheet and the films of what was drawn."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from nextvid.generation.board import Picture, Row, Tile, paint, side_for, sized
from nextvid.generation.drawing import Drawing, Scene

SHEET_CLIPS, SHEET_SAMPLES, SHEET_COLUMNS = 3, 3, 16
FILM_CLIPS, FILM_SAMPLES = 6, 3
SHEET_SIDE, FILM_SIDE, ALONE_SIDE = (64, 112), (96, 224), (256, 1024)

Images = UInt8[np.ndarray, "_ height width 3"]


@dataclass(frozen=True)
class Shown:
    """One clip, and rows of frames: what each row is, the frame of the clip that it begins at, and whether it is drawn."""

    real: Images
    rows: list[tuple[str, int, bool, Images]]
    frames: int
    first: int


def shown_of(scene: Scene, drawing: Drawing, other: Drawing | None, clip: int, samples: int) -> Shown:
    """What there is to see of a clip: what is seen of it, the truth, copying, another model, the mean, and single samples."""
    drawn = [images_of(sample[clip]) for sample in drawing.samples[:samples]]
    rows: list[tuple[str, int, bool, Images]] = []
    if scene.seen is not None:
        rows.append(("seen", 0, False, images_of(scene.seen[clip])))
    real = images_of(scene.real[clip])
    rows.append(("given" if drawing.measured is None else "truth", 0, False, real))
    if drawing.measured is not None:
        rows.append(("copy last", scene.first, False, images_of(drawing.measured.copied[clip])))
    if other is not None:
        rows.append(("against", scene.first, True, images_of(other.samples.mean(dim=0)[clip])))
    if len(drawing.samples) > 1:
        rows.append(
            (f"mean of {len(drawing.samples)}", scene.first, True, images_of(drawing.samples.mean(dim=0)[clip]))
        )
    names = [f"sample {i + 1}" for i in range(len(drawn))] if len(drawing.samples) > 1 else ["drawn"]
    rows += [(name, scene.first, True, sample) for name, sample in zip(names, drawn, strict=True)]
    return Shown(real, rows, scene.first + drawing.samples.shape[2], scene.first)


def contact_sheet(scene: Scene, drawing: Drawing, other: Drawing | None, fps: float, title: str) -> Picture:
    """The first clips at rest: time from left to right, in seconds from the first frame; below each other what is what."""
    clips = range(min(SHEET_CLIPS, len(scene.real)))
    shown = [shown_of(scene, drawing, other, clip, SHEET_SAMPLES) for clip in clips]
    columns = _columns(shown[0])
    rows = [
        Row(name, [_tile(images, column - begins, drawn) for column in columns], opens=number == 0)
        for clip in shown
        for number, (name, begins, drawn, images) in enumerate(clip.rows)
    ]
    return paint(rows, [f"{column / fps:.2f} s" for column in columns], side_for(_pixels(scene), *SHEET_SIDE), title)


def film(scene: Scene, drawing: Drawing, other: Drawing | None) -> list[Picture]:
    """The first clips as a film: a line a clip, with the truth beside what is drawn."""
    clips = range(min(FILM_CLIPS, len(scene.real)))
    shown = [shown_of(scene, drawing, other, clip, FILM_SAMPLES) for clip in clips]
    kept = [number for number, row in enumerate(shown[0].rows) if row[0] != "copy last"]
    names = [shown[0].rows[number][0] for number in kept]
    side = side_for(_pixels(scene), *FILM_SIDE)
    return [
        paint([Row("", [_moment(clip, number, frame) for number in kept]) for clip in shown], names, side)
        for frame in range(shown[0].frames)
    ]


def films_alone(scene: Scene, drawing: Drawing) -> list[list[Picture]]:
    """Every sample of the first clip by itself, after the real frames that it goes on from."""
    side = side_for(_pixels(scene), *ALONE_SIDE)
    begun = images_of(scene.real[0, : scene.first])
    return [[sized(frame, side) for frame in (*begun, *images_of(sample[0]))] for sample in drawing.samples]


def images_of(pictures: Float[Tensor, "frames 3 rows columns"]) -> Images:
    """Pictures in [0, 1] as bytes, channels last."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _pixels(scene: Scene) -> int:
    return scene.real.shape[-1]


def _columns(shown: Shown) -> list[int]:
    """The frames that are on a sheet: the last real ones before the first drawn, and of the drawn so many as fit, evenly."""
    before = list(range(shown.first))[-4:]
    drawn = np.arange(shown.first, shown.frames)
    room = SHEET_COLUMNS - len(before)
    chosen = drawn if len(drawn) <= room else drawn[np.linspace(0, len(drawn) - 1, room).round().astype(int)]
    return [*before, *chosen.tolist()]


def _tile(images: Images, number: int, drawn: bool) -> Tile | None:
    return Tile(images[number], drawn) if 0 <= number < len(images) else None


def _moment(shown: Shown, row: int, frame: int) -> Tile | None:
    """What a row shows at a time: what is real until something is drawn, and nothing where a clip has ended."""
    _, begins, drawn, images = shown.rows[row]
    return _tile(shown.real, frame, False) if frame < begins else _tile(images, frame - begins, drawn)
