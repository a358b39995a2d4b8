"""How a video becomes the clips that a probe reads: segments along time, views across the picture, augmentation for training."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from nextvid.data.clip import ClipSpec, Frames, LabelledClips
from nextvid.data.transforms import Augmentation, Crop, draw_crop, resized_crop
from nextvid.errors import UserError

ViewFrames = UInt8[np.ndarray, "views segments frames size size 3"]

ERASED_AREA, ERASED_ASPECT, ERASING_TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10


@dataclass(frozen=True)
class ViewAugmentation:
    """What changes from epoch to epoch: a random crop (share of the area, aspect ratio), a mirror image, and with the probability
    ``erase`` a rectangle of noise; the same for all frames of all segments. Clips also begin at random times.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    erase: float = 0.25

    @property
    def crop(self) -> Augmentation:
        """The part that is drawn as in pretraining."""
        return Augmentation(self.crop_scale, self.crop_aspect, self.flip)


@dataclass(frozen=True)
class Views:
    """``segments`` clips spread evenly over the video, each cut to ``views`` squares spread along the longer side.

    A square's side is ``crop_share`` of the picture's shorter one. With an ``augmentation`` there is one random view instead.
    """

    segments: int = 1
    views: int = 1
    crop_share: float = 1.0
    augmentation: ViewAugmentation | None = None

    @property
    def rows(self) -> int:
        """Views of a video."""
        return 1 if self.augmentation else self.views


@runtime_checkable
class Videos(LabelledClips, Protocol):
    """Labelled clips that are cut from longer, larger videos."""

    def windows(self, index: int, spec: ClipSpec, views: Views, draw: np.random.Generator) -> ViewFrames:
        """All clips of video ``index``; random ones, of one view, where ``views`` augments."""
        ...


def views_of(clips: LabelledClips, index: int, spec: ClipSpec, views: Views, draw: np.random.Generator) -> ViewFrames:
    """All clips of sample ``index``; ``draw`` decides the augmentation, where there is one. Raises ``BrokenFile``."""
    if isinstance(clips, Videos):
        return clips.windows(index, spec, views, draw)
    frames = clips.clip(index, spec)
    if views.augmentation:
        crop = draw_crop(draw, spec.size, spec.size, views.augmentation.crop)
        frames = erased(resized_crop(frames, crop, spec.size), views.augmentation.erase, draw)
    return frames[None, None]


def check_views(clips: LabelledClips, views: Views) -> None:
    """Raise ``UserError`` where segments or views are asked of clips that are made up and have but one."""
    if isinstance(clips, Videos):
        return
    for name, value, one in (
        ("segments", views.segments, 1),
        ("views", views.views, 1),
        ("crop_share", views.crop_share, 1.0),
    ):
        if value != one:
            raise UserError(
                f"{name}={value:g}: the clips of {clips.name} are made to the frame and last as long as they are read, so that "
                f"there is nothing else to cut from them; leave out {name}"
            )


def segment_times(
    first: float, last: float, spec: ClipSpec, segments: int, shifts: Float[np.ndarray, " segments"] | None = None
) -> Float[np.ndarray, "segments frames"]:
    """The times of every segment's frames, ``1 / spec.fps`` seconds apart, of a video shown from ``first`` to ``last`` seconds.

    Clips start evenly from the first start that fits to the last (a single one in the middle); they may overlap. With ``shifts``
    (0 to 1) each starts somewhere in its own part. Where the video is too short its last frame is held: played backwards, it
    might show another class.
    """
    room = max(0.0, last - first - (spec.frames - 1) / spec.fps)
    if shifts is not None:
        shares = (np.arange(segments) + shifts) / segments
    else:
        shares = np.linspace(0, 1, segments) if segments > 1 else np.array([0.5])
    starts = first + room * shares
    return np.minimum(starts[:, None] + np.arange(spec.frames) / spec.fps, last)


def view_crops(height: int, width: int, views: Views) -> list[Crop]:
    """The squares of a picture, from left to right or from top to bottom; a single one in the middle."""
    side = max(1, round(min(height, width) * views.crop_share))
    along = np.linspace(0, 1, views.views) if views.views > 1 else np.array([0.5])
    tall = height > width
    return [
        Crop(
            top=int((height - side) * float(share if tall else 0.5)),
            left=int((width - side) * float(0.5 if tall else share)),
            height=side,
            width=side,
        )
        for share in along
    ]


def erased(frames: Frames, probability: float, draw: np.random.Generator) -> Frames:
    """With ``probability`` a rectangle of uniform noise over all frames: 2% to 33% of the area (Zhong et al. 2017)."""
    if draw.random() >= probability:
        return frames
    _, height, width, _ = frames.shape
    for _ in range(ERASING_TRIES):
        area = height * width * draw.uniform(*ERASED_AREA)
        aspect = np.exp(draw.uniform(*np.log(ERASED_ASPECT)))
        tall, wide = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < tall < height and 0 < wide < width:
            top, left = int(draw.integers(height - tall + 1)), int(draw.integers(width - wide + 1))
            covered = frames.copy()
            noise = draw.integers(0, 256, (tall, wide, 3), dtype=np.uint8)
            covered[:, top : top + tall, left : left + wide] = noise
            return covered
    return frames
