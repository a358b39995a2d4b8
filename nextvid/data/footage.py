"""A manifest's videos and pictures as a source of clips."""

import math
import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from nextvid.data.backends import TIME_TOLERANCE, BackendChoice, choose_backend
from nextvid.data.clip import BrokenFile, ClipSpec, Frames
from nextvid.data.cuts import back_and_forth, longest_shot
from nextvid.data.decode import FileInfo, decode_clip
from nextvid.data.latents import LatentCache, Maps
from nextvid.data.manifest import Manifest, UsableFile
from nextvid.data.transforms import Augmentation, Crop, draw_crop, resized_crop
from nextvid.errors import UserError

DEFAULT_AUGMENTATION = Augmentation()


class Drawn(NamedTuple):
    """What a clip is of: the manifest's usable row ``number``, a window, and the times in seconds (None: a picture)."""

    number: int
    file: UsableFile
    crop: Crop
    times: Float[np.ndarray, " frames"] | None


class FootageSource:
    """Clips of a manifest's usable files: an item is a file, or with ``clips_per_video`` *n* one of *n* parts of it.

    A clip starts at a time drawn evenly over its part, is sampled by true time, and lies inside one shot: inside the
    manifest's where it knows them all; else the longest side of a hard cut that the clip crosses is played back and
    forth. So is a video, or a shot, shorter than the clip. A picture is a still clip.
    """

    def __init__(
        self,
        manifest: Manifest,
        name: str | os.PathLike[str] | None = None,
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
        backend: BackendChoice = "pyav",
        clips_per_video: int = 1,
    ) -> None:
        """``name``: what the footage is called, by default the manifest's path. ``UserError`` where nothing is usable."""
        self.manifest = manifest
        self.name = os.fspath(name or manifest.path)
        self.augmentation = augmentation
        self.backend = choose_backend(backend)
        self.clips_per_video = clips_per_video
        self.items = len(manifest) * clips_per_video
        self.latents: dict[int, LatentCache] = {}
        """Caches of the latents of these very clips, by the size that frames are cut to."""
        if not self.items:
            raise UserError(f"{self.name} has no usable file. Point data.sources at footage that a player can play.")

    def describe(self, item: int) -> str:
        """The path of the file that ``item`` is of."""
        return str(self.manifest[item // self.clips_per_video].place)

    def clip(self, draw: np.random.Generator, spec: ClipSpec, item: int) -> Frames:
        """A random clip, RGB uint8 ``(frames, size, size, 3)``, a pure function of ``draw``, ``item`` and the manifest.

        Raises ``BrokenFile`` where the file cannot be decoded, or could not be when its latents were stored.
        """
        number, file, crop, times = self.drawn(draw, spec, item)
        broken = self.latents[spec.size].broken(number) if spec.size in self.latents else None
        if broken is not None:
            raise BrokenFile(str(file.place), broken)
        if times is None:
            still = self._decode(file, np.zeros(1), crop, spec.size)
            return np.repeat(cut(still, file.info, crop, spec.size), spec.frames, axis=0)
        frames = self._decode(file, times, crop, spec.size)
        shot = range(spec.frames) if file.shots else longest_shot(frames)
        return cut(frames[back_and_forth(shot, spec.frames)], file.info, crop, spec.size)

    def drawn(self, draw: np.random.Generator, spec: ClipSpec, item: int) -> Drawn:
        """What the clip of the same arguments is of; nothing is decoded."""
        number, part = divmod(item, self.clips_per_video)
        file = self.manifest[number]
        crop = draw_crop(draw, file.info.height, file.info.width, self.augmentation)
        times = None if file.info.kind == "picture" else self._times(draw, file, spec, part)
        return Drawn(number, file, crop, times)

    def maps(self, draw: np.random.Generator, spec: ClipSpec, item: int) -> Maps:
        """The stored latents of the clip of the same arguments, from :attr:`latents`, not normalised; nothing is decoded.

        Raises ``UserError`` where they are damaged.
        """
        drawn = self.drawn(draw, spec, item)
        return self.latents[spec.size].maps(drawn.number, drawn.times, spec.frames)

    def _times(
        self, draw: np.random.Generator, file: UsableFile, spec: ClipSpec, part: int
    ) -> Float[np.ndarray, " frames"]:
        at = (part + draw.random()) / self.clips_per_video
        if not file.shots:
            return clip_times(at, 0.0, file.info.seconds, file.info.fps, spec)
        starts = np.array(file.shots)
        ends = np.append(starts[1:] - 2 * TIME_TOLERANCE, file.info.seconds)
        room = np.cumsum(np.maximum(ends - starts, 0.0))
        place = at * room[-1]
        shot = min(int(np.searchsorted(room, place, side="right")), len(starts) - 1)
        within = (place - (room[shot] - (ends[shot] - starts[shot]))) / max(ends[shot] - starts[shot], 1e-9)
        return clip_times(float(within), float(starts[shot]), float(ends[shot]), file.info.fps, spec)

    def _decode(self, file: UsableFile, times: Float[np.ndarray, " frames"], crop: Crop, size: int) -> Frames:
        return decode_clip(file.place, times, decoded_side(file.info, crop, size), self.backend)


def decoded_side(info: FileInfo, crop: Crop, size: int) -> int:
    """Pixels of the short side that a file's frames are scaled down to while they are decoded, so that the crop has ``size``."""
    return math.ceil(min(info.height, info.width) * size / min(crop.height, crop.width))


def cut(frames: Frames, info: FileInfo, crop: Crop, size: int) -> UInt8[np.ndarray, "frames size size 3"]:
    """``crop``, a window of the file's own pictures, of its decoded frames, resized."""
    return resized_crop(frames, crop.scaled((info.height, info.width), (frames.shape[1], frames.shape[2])), size)


def clip_times(at: float, begin: float, end: float, fps: float, spec: ClipSpec) -> Float[np.ndarray, " frames"]:
    """The times in seconds of a clip between ``begin`` and ``end`` of a video of ``fps`` frames a second.

    They are ``1 / spec.fps`` apart and start ``at`` (0 to 1) of the way to the last start that fits; where none does
    they start at ``begin`` and turn back at the last frame.
    """
    times = np.arange(spec.frames) / spec.fps
    length = end - begin
    if begin + times[-1] < end:
        return begin + at * (length - times[-1]) + times
    last = max(0.0, length - 1 / fps)
    return begin + (last - np.abs(last - times % (2 * last)) if last > 0 else np.zeros(spec.frames))
