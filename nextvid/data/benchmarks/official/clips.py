"""Labelled clips out of a benchmark's own files."""

from collections.abc import Sequence

import numpy as np

from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.clip import ClipSpec, Frames
from nextvid.data.decode import FileInfo, decode_clip, probe_file
from nextvid.data.footage import cut, decoded_side
from nextvid.data.locations import Place
from nextvid.data.transforms import draw_crop, resized_crop
from nextvid.data.views import ViewFrames, Views, erased, segment_times, view_crops
from nextvid.randomness import generator

TASK = "class"


class OfficialClips:
    """One split of an official benchmark: a clip out of the middle of every file, its task ``class``.

    ``split`` is what was found in the folder, with its counts.
    """

    def __init__(self, split: OfficialSplit, length: int | None = None) -> None:
        """All files in the order of the list, or ``length`` of them (at most), shuffled, with classes in balance.

        The shuffle depends on the benchmark and the split alone, and a shorter choice begins a longer one.
        """
        self.name = split.name
        self.split = split
        self.tasks: dict[str, tuple[str, ...]] = {TASK: split.classes}
        self._entries = split.entries
        if length is not None:
            labels = [entry.label for entry in split.entries]
            order = balanced_order(labels, generator("official", split.name, split.split))
            self._entries = [split.entries[place] for place in order[:length]]

    def __len__(self) -> int:
        return len(self._entries)

    def labels(self, index: int) -> dict[str, int]:
        """The class of clip ``index``."""
        return {TASK: self._entry(index).label}

    def path(self, index: int) -> str:
        """The file of clip ``index``."""
        return self._entry(index).path

    def clip(self, index: int, spec: ClipSpec) -> Frames:
        """The middle of file ``index``, its largest centred square, RGB uint8 ``(frames, size, size, 3)``.

        A picture stands still. Raises ``BrokenFile``.
        """
        return self.windows(index, spec, Views(), np.random.default_rng(0))[0, 0]

    def windows(self, index: int, spec: ClipSpec, views: Views, draw: np.random.Generator) -> ViewFrames:
        """All clips of file ``index``, or one random view of it (:class:`nextvid.data.views.Views`). Raises ``BrokenFile``."""
        entry = self._entry(index)
        place = _place(entry)
        info = probe_file(place)
        augmentation = views.augmentation
        if augmentation:
            crop = draw_crop(draw, info.height, info.width, augmentation.crop)
            shifts, side = draw.random(views.segments), decoded_side(info, crop, spec.size)
        else:
            shifts, side = None, round(spec.size / views.crop_share)
        if info.kind == "picture":
            pictures = decode_clip(place, np.zeros(1), side)
        else:
            times = segment_times(*shown_seconds(entry, info), spec, views.segments, shifts)
            pictures = decode_clip(place, times.ravel(), side)
        if augmentation:
            cuts = [erased(cut(pictures, info, crop, spec.size), augmentation.erase, draw)]
        else:
            height, width = pictures.shape[1:3]
            cuts = [resized_crop(pictures, crop, spec.size) for crop in view_crops(height, width, views)]
        clips = np.stack(cuts)
        if info.kind == "picture":
            clips = np.repeat(clips, views.segments * spec.frames, axis=1)
        return clips.reshape(len(cuts), views.segments, spec.frames, spec.size, spec.size, 3)

    def _entry(self, index: int) -> Listed:
        if not 0 <= index < len(self._entries):
            raise IndexError(f"clip {index} of {len(self._entries)}")
        return self._entries[index]


def balanced_order(labels: Sequence[int], draw: np.random.Generator) -> list[int]:
    """A shuffle of ``range(len(labels))`` whose every beginning holds the classes in balance, as far as they go."""
    shuffled = draw.permutation(len(labels))
    seen: dict[int, int] = {}
    rounds = np.empty(len(labels), dtype=np.int64)
    for place, number in enumerate(shuffled):
        rounds[place] = seen[labels[number]] = seen.get(labels[number], -1) + 1
    return shuffled[np.argsort(rounds, kind="stable")].tolist()


def shown_seconds(entry: Listed, info: FileInfo) -> tuple[float, float]:
    """When the first and the last frame of ``entry`` are shown, in seconds from the file's first frame."""
    last = max(0.0, info.seconds - 1 / info.fps)
    if entry.end is None:
        return 0.0, last
    return min((entry.start or 0) / info.fps, last), min((entry.end - 1) / info.fps, last)


def _place(entry: Listed) -> str | Place:
    return entry.path if entry.archive is None else Place(entry.archive, entry.offset, entry.length, entry.path)
