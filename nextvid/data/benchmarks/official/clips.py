"""Labelled clips out of a benchmark's own files."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.clip import ClipSpec, Frames
from nextvid.data.decode import FileInfo, decode_clip, probe_file
from nextvid.data.locations import Place
from nextvid.data.transforms import centre_crop, resized_crop
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

    def clip(self, index: int, spec: ClipSpec) -> Frames:
        """The middle of file ``index``, its largest centred square, RGB uint8 ``(frames, size, size, 3)``.

        Times are as :func:`centre_times` gives them; a picture stands still. Raises ``BrokenFile``.
        """
        entry = self._entry(index)
        place = _place(entry)
        info = probe_file(place)
        if info.kind == "picture":
            still = decode_clip(place, np.zeros(1), spec.size)
            return np.repeat(_square(still, spec.size), spec.frames, axis=0)
        return _square(decode_clip(place, centre_times(*shown_seconds(entry, info), spec), spec.size), spec.size)

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


def centre_times(first: float, last: float, spec: ClipSpec) -> Float[np.ndarray, " frames"]:
    """``spec.frames`` times ``1 / spec.fps`` seconds apart, in the middle of ``first`` to ``last`` seconds.

    Where that is too short for the clip it begins with the first frame and its last frame is held: played backwards, it
    might show another class.
    """
    length = (spec.frames - 1) / spec.fps
    start = max(first, (first + last - length) / 2)
    return np.minimum(start + np.arange(spec.frames) / spec.fps, last)


def _square(frames: Frames, size: int) -> UInt8[np.ndarray, "frames size size 3"]:
    return resized_crop(frames, centre_crop(*frames.shape[1:3]), size)


def _place(entry: Listed) -> str | Place:
    return entry.path if entry.archive is None else Place(entry.archive, entry.offset, entry.length, entry.path)
