"""Any folder, file or glob of videos and pictures as a source of clips."""

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from glob import glob, has_magic
from multiprocessing.pool import ThreadPool

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import adaptive_avg_pool2d

from nextvid.data.backends import BackendChoice, choose_backend
from nextvid.data.clip import BrokenFile, ClipSpec, Frames
from nextvid.data.decode import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    FileInfo,
    decode_clip,
    probe_file,
)
from nextvid.data.transforms import Augmentation, Crop, draw_crop, resized_crop
from nextvid.errors import UserError

FORMAT_VERSION = 1
REDRAWS = 4
"""How often a start is drawn anew because the clip crossed a cut."""
CUT_LEVEL, CUT_RATIO = 0.1, 3.0
DEFAULT_AUGMENTATION = Augmentation()

_PROGRESS_AFTER_FILES = 200
_SCAN_THREADS = 4


@dataclass(frozen=True)
class ScanReport:
    """What a scan found: ``found = usable + broken + too_short`` files, and ``hours`` of usable video.

    ``broken`` counts by reason, ``broken_files`` names each as (path, reason); ``too_short`` have too few frames.
    """

    found: int = 0
    usable: int = 0
    broken: dict[str, int] = field(default_factory=dict)
    broken_files: list[tuple[str, str]] = field(default_factory=list)
    too_short: int = 0
    hours: float = 0.0


@dataclass(frozen=True)
class UsableFile:
    """A file that clips can be drawn from."""

    path: str
    info: FileInfo


class FolderSource:
    """Clips of the videos and pictures under a path; every usable file is equally likely.

    A clip starts at a time drawn evenly, is sampled by true time, and lies inside one shot: where it crosses a hard cut
    the start is drawn anew up to ``REDRAWS`` times, then the longest side of the cut is played back and forth. So is a
    video shorter than the clip. A picture is a still clip.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
        backend: BackendChoice = "pyav",
        min_frames: int = 2,
        console: Console | None = None,
    ) -> None:
        """List the files under ``path`` (a folder, a file or a glob) and open each.

        Videos of fewer than ``min_frames`` frames are left out. Raises ``UserError`` where nothing can be used.
        """
        self.name = os.fspath(path)
        self.augmentation = augmentation
        self.backend = choose_backend(backend)
        paths = list_files(self.name)
        self.files, self.report = _scan(paths, min_frames, console or Console(stderr=True))
        if not self.files:
            raise UserError(_nothing_usable(self.name, self.report, min_frames))

    def clip(self, draw: np.random.Generator, spec: ClipSpec) -> Frames:
        """A random clip, RGB uint8 ``(frames, size, size, 3)``, a pure function of ``draw`` and the list of files.

        Raises ``BrokenFile`` where the drawn file cannot be decoded.
        """
        file = self.files[int(draw.integers(len(self.files)))]
        crop = draw_crop(draw, file.info.height, file.info.width, self.augmentation)
        if file.info.kind == "picture":
            still = self._decode(file, np.zeros(1), crop, spec.size)
            return np.repeat(self._crop(still, file, crop, spec.size), spec.frames, axis=0)
        for _ in range(1 + REDRAWS):
            frames = self._decode(file, clip_times(draw, file.info, spec), crop, spec.size)
            shot = longest_shot(frames)
            if len(shot) == len(frames):
                break
        return self._crop(frames[back_and_forth(shot, spec.frames)], file, crop, spec.size)

    def _decode(self, file: UsableFile, times: Float[np.ndarray, " frames"], crop: Crop, size: int) -> Frames:
        short_side = min(file.info.height, file.info.width) * size / min(crop.height, crop.width)
        return decode_clip(file.path, times, math.ceil(short_side), self.backend)

    def _crop(self, frames: Frames, file: UsableFile, crop: Crop, size: int) -> UInt8[np.ndarray, "frames size size 3"]:
        picture = (file.info.height, file.info.width)
        return resized_crop(frames, crop.scaled(picture, (frames.shape[1], frames.shape[2])), size)

    def to_json(self) -> str:
        """The list of usable files and the report, so that a resumed run draws from the same list."""
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "path": self.name,
                "files": [[file.path, *asdict(file.info).values()] for file in self.files],
                "report": asdict(self.report),
            }
        )

    @classmethod
    def from_json(
        cls, text: str, augmentation: Augmentation = DEFAULT_AUGMENTATION, backend: BackendChoice = "pyav"
    ) -> "FolderSource":
        """The source that ``to_json`` wrote, without opening a file. Raises ``UserError`` where the text is not one."""
        source = cls.__new__(cls)
        try:
            stored = json.loads(text)
            if stored["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {stored['format_version']}, not {FORMAT_VERSION}")
            source.name = stored["path"]
            source.files = [UsableFile(path, FileInfo(*info)) for path, *info in stored["files"]]
            source.report = ScanReport(
                **{**stored["report"], "broken_files": [(path, why) for path, why in stored["report"]["broken_files"]]}
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"The stored list of footage cannot be read ({error!r}); scan the footage anew.") from error
        source.augmentation = augmentation
        source.backend = choose_backend(backend)
        return source


def clip_times(draw: np.random.Generator, info: FileInfo, spec: ClipSpec) -> Float[np.ndarray, " frames"]:
    """The times of a random clip in seconds, ``1 / spec.fps`` apart; they turn back at the end of a shorter video."""
    times = np.arange(spec.frames) / spec.fps
    last = max(0.0, info.seconds - 1 / info.fps)
    room = info.seconds - times[-1]
    start = draw.random() * max(0.0, room)
    if times[-1] < info.seconds:
        return start + times
    return last - np.abs(last - times % (2 * last)) if last > 0 else np.zeros(spec.frames)


def back_and_forth(shot: range, frames: int) -> Int[np.ndarray, " frames"]:
    """The indices of ``shot``, forth and back again until there are ``frames``."""
    last = len(shot) - 1
    steps = np.arange(frames)
    return shot.start + (last - np.abs(last - steps % (2 * last)) if last else 0 * steps)


def longest_shot(frames: Frames) -> range:
    """The longest run of frames without a hard cut inside.

    A cut is where the 8 x 8 pixel pictures of two neighbours differ by more than ``CUT_LEVEL`` of the full range, and
    by more than ``CUT_RATIO`` times the median of the clip's other neighbours. On the built-in film that finds about
    0.9 of the cuts, and about 0.9 of what it finds are cuts.
    """
    pictures = adaptive_avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255, (8, 8))
    changes = pictures.diff(dim=0).abs().mean(dim=(1, 2, 3)).numpy()
    usual = [float(np.median(np.delete(changes, place))) if len(changes) > 1 else 0.0 for place in range(len(changes))]
    cuts = [place + 1 for place, change in enumerate(changes) if change > max(CUT_LEVEL, CUT_RATIO * usual[place])]
    edges = [0, *cuts, len(frames)]
    return max((range(start, end) for start, end in itertools.pairwise(edges)), key=len)


def list_files(path: str) -> list[str]:
    """The videos and pictures (by suffix, hidden ones left out, sorted) of a folder or glob, or the one file.

    Raises ``UserError`` where there is none.
    """
    if os.path.isdir(path):
        found = sorted(_with_known_suffix(_walk(path)))
    elif os.path.exists(path):
        found = [path]
    elif has_magic(path):
        matches = glob(path, recursive=True)
        inside = itertools.chain.from_iterable(_walk(match) if os.path.isdir(match) else [match] for match in matches)
        found = sorted(set(_with_known_suffix(inside)))
    else:
        raise UserError(f"There is no footage at {path}: no such file or folder. Check data.sources.")
    if not found:
        raise UserError(
            f"{path} holds no video or picture. Files count by their suffix: "
            f"{' '.join(sorted(VIDEO_SUFFIXES | PICTURE_SUFFIXES))}. Check data.sources."
        )
    return found


def _walk(folder: str) -> Iterator[str]:
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [name for name in folders if not name.startswith(".")] if real not in seen else []
        if real not in seen:
            yield from (os.path.join(parent, name) for name in names if not name.startswith("."))
        seen.add(real)


def _with_known_suffix(paths: Iterable[str]) -> Iterator[str]:
    known = VIDEO_SUFFIXES | PICTURE_SUFFIXES
    return (path for path in paths if os.path.splitext(path)[1].lower() in known)


def _probe(path: str) -> FileInfo | BrokenFile:
    try:
        return probe_file(path)
    except BrokenFile as broken:
        return broken


def _scan(paths: list[str], min_frames: int, console: Console) -> tuple[list[UsableFile], ScanReport]:
    usable: list[UsableFile] = []
    broken: list[tuple[str, str]] = []
    with (
        ThreadPool(_SCAN_THREADS) as pool,
        Progress(console=console, transient=True, disable=len(paths) < _PROGRESS_AFTER_FILES) as progress,
    ):
        probed = zip(paths, pool.imap(_probe, paths), strict=True)
        for path, found in progress.track(probed, len(paths), description="opening footage"):
            if isinstance(found, BrokenFile):
                broken.append((path, found.reason))
            elif found.kind == "picture" or found.frames >= min_frames:
                usable.append(UsableFile(path, found))
    report = ScanReport(
        found=len(paths),
        usable=len(usable),
        broken=dict(sorted(Counter(reason for _, reason in broken).items())),
        broken_files=broken,
        too_short=len(paths) - len(usable) - len(broken),
        hours=sum(file.info.seconds for file in usable) / 3600,
    )
    return usable, report


def _nothing_usable(path: str, report: ScanReport, min_frames: int) -> str:
    reasons = [f"{count} {reason}" for reason, count in report.broken.items()]
    if report.too_short:
        reasons.append(f"{report.too_short} with fewer than {min_frames} frames")
    example = f"; the first is {report.broken_files[0][0]}" if report.broken_files else ""
    return (
        f"None of the {report.found} videos and pictures under {path} can be used ({', '.join(reasons)}{example}). "
        "Point data.sources at footage that a player can play."
    )
