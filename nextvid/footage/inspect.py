"""One file opened and decoded in part: what is in it, or why it cannot be used."""

import collections
import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nextvid.data.clip import BrokenFile
from nextvid.data.cuts import cuts, thumbnails
from nextvid.data.damage import is_cut_short, reason_of
from nextvid.data.decode import FileInfo, describe, explained, first_frame, opened, video_stream
from nextvid.data.locations import Place, open_place
from nextvid.footage.hashing import perceptual_hash, thumbnail

WHOLE_PIXELS = 2**27
"""A file of at most so many pixels (frames x height x width; 9 s of 340 x 256) is decoded whole, a larger one in places."""
PLACES, MOST_PLACES = 12, 64
"""In how many places at least and at most, one every ``PLACE_SECONDS``; where all is decoded hashes are twice as dense."""
PLACE_SECONDS = 5.0
SAMPLED_BYTES = 1 << 16
"""A file of more than three times so many bytes is told by its size and by so many at its start, middle and end."""
HIGHEST_FPS = 1000.0
CLOCK_SLIP = 0.5
"""A step back of the clock by more seconds than this begins another film, of which nothing is said."""
LONGEST = 1e6
"""A file that claims to last longer, some eleven days, is damaged."""


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    ``keyframe_seconds``: the mean time between two frames that decoding can begin at; ``decoded``: ``all`` of its
    frames, or only a ``part``; ``shots``: when each begins, in seconds, known where all was decoded; ``hashes``:
    perceptual hashes of frames all over the file.
    """

    info: FileInfo
    codec: str
    rotation: int = 0
    keyframe_seconds: float | None = None
    decoded: str = "all"
    shots: list[float] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)


def inspect_file(place: Place, everything: bool = False) -> Inspection:
    """Open a file and decode it: whole where it is small or ``everything`` is asked for, else in places.

    Raises ``BrokenFile`` (empty, not_media, unreadable, truncated, no_video, denied, too_large).
    """
    with explained(place):
        with opened(place) as container:
            stream = video_stream(place, container)
            frame = first_frame(place, container, stream)
            info = describe(place, container, stream, frame)
            codec, rotation = stream.codec_context.name, round(frame.rotation) % 360
            hashes = _hashes([thumbnail(frame)])
        if is_cut_short(place):
            raise BrokenFile(str(place), "truncated")
        if info.kind == "picture":
            return Inspection(info, codec, rotation, hashes=hashes)
        whole = everything or info.frames * info.width * info.height <= WHOLE_PIXELS
        seen = _look_at_all(place, info) if whole else _look_at_places(place, info)
        if not 0 < seen.info.seconds < LONGEST:
            raise BrokenFile(str(place), "unreadable")
        return Inspection(
            seen.info, codec, rotation, seen.keyframe_seconds, "all" if whole else "part", seen.shots, seen.hashes
        )


def places(seconds: float, apart: float) -> int:
    """In how many places a video is looked at: about one every ``apart`` seconds."""
    return min(max(PLACES, round(seconds / apart)), MOST_PLACES)


def content_of(place: Place, sampled: bool = True) -> tuple[str, int]:
    """A digest of a file's content and its size in bytes; of a large file, if ``sampled``, only of three parts of it."""
    digest = hashlib.blake2b(digest_size=16)
    with open_place(place) as file:
        size = file.seek(0, os.SEEK_END)
        starts = (0, size // 2, size - SAMPLED_BYTES) if sampled and size > 3 * SAMPLED_BYTES else ()
        for start in starts:
            file.seek(start)
            digest.update(file.read(SAMPLED_BYTES))
        if not starts:
            file.seek(0)
            while content := file.read(1 << 20):
                digest.update(content)
    digest.update(str(size).encode())
    return digest.hexdigest(), size


@dataclass(frozen=True)
class _Seen:
    info: FileInfo
    keyframe_seconds: float | None
    shots: list[float]
    hashes: list[int]


def _look_at_all(place: Place, header: FileInfo) -> _Seen:
    """Every frame: their true number and times, the shots, and no frame that the decoder had to make up."""
    times: list[float] = []
    pictures: list[np.ndarray] = []
    kept: list[UInt8[np.ndarray, "32 32 3"]] = []
    keyframes, hashed = 0, places(header.seconds, PLACE_SECONDS / 2)
    with opened(place) as container:
        stream = video_stream(place, container)
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise BrokenFile(str(place), reason_of(place))
            time = _time(stream, frame, times)
            if times and time < times[-1] - CLOCK_SLIP:
                break
            times.append(max(time, times[-1]) if times else time)
            keyframes += frame.key_frame
            picture = thumbnail(frame)
            pictures.append(thumbnails(picture[None])[0])
            if times[-1] >= len(kept) * header.seconds / hashed:
                kept.append(picture)
    if not times:
        raise BrokenFile(str(place), reason_of(place))
    fps = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else header.fps
    fps = fps if 0 < fps <= HIGHEST_FPS else 25.0
    seconds = times[-1] - times[0] + 1 / fps
    info = FileInfo("video", header.width, header.height, fps, len(times), seconds)
    shots = [0.0, *(times[number] - times[0] for number in cuts(np.stack(pictures)))]
    return _Seen(info, seconds / max(1, keyframes), shots, _hashes(kept[:hashed]))


def _look_at_places(place: Place, header: FileInfo) -> _Seen:
    """A frame at each of some places, and the last stretch to its end, which says how long the file really is."""
    kept: list[UInt8[np.ndarray, "32 32 3"]] = []
    with opened(place) as container:
        stream = video_stream(place, container)
        origin, base = stream.start_time or 0, float(stream.time_base)
        last, count = None, places(header.seconds, PLACE_SECONDS)
        for number in range(count):
            seconds = header.seconds * number / count
            container.seek(origin + int(seconds / base), stream=stream, backward=True)
            last = next(container.decode(stream), last)
            if last is None:
                raise BrokenFile(str(place), reason_of(place))
            kept.append(thumbnail(last))
        container.seek(origin + int(header.seconds / base), stream=stream, backward=True)
        last = next(iter(collections.deque(container.decode(stream), maxlen=1)), last)
        fps = header.fps if 0 < header.fps <= HIGHEST_FPS else 25.0
        seconds = _time(stream, last, []) + 1 / fps
        keyframes = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe]
        spacing = float(np.mean(np.diff(keyframes))) * base if len(keyframes) > 1 else None
    info = FileInfo("video", header.width, header.height, fps, max(1, round(seconds * fps)), seconds)
    return _Seen(info, spacing, [], _hashes(kept))


def _time(stream: Any, frame: Any, before: list[float]) -> float:
    """Seconds from the file's first frame; a frame without a time comes just after the one before."""
    if frame.pts is None:
        return before[-1] + 1 / 25 if before else 0.0
    return float((frame.pts - (stream.start_time or 0)) * stream.time_base)


def _hashes(pictures: list[UInt8[np.ndarray, "32 32 3"]]) -> list[int]:
    found = [perceptual_hash(picture.mean(axis=-1)) for picture in pictures]
    return list(dict.fromkeys(value for value in found if value is not None))
