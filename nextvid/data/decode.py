"""Frames out of one file: what is in it, and the frames shown at given times, by PyAV or TorchCodec."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import av
import av.logging
import numpy as np
from av.stream import Disposition
from jaxtyping import Float, Int, UInt8

from nextvid.data.backends import TIME_TOLERANCE, Backend, decode_torchcodec, scaled_size
from nextvid.data.clip import BrokenFile, Frames
from nextvid.data.damage import is_cut_short, reason_of
from nextvid.data.locations import Place, open_place, place_of

Kind = Literal["video", "picture"]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".3gp", ".ogv", ".gif", ".mxf", ".y4m"}
)
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

MAX_PIXELS = 2**27
"""The largest picture that is opened (134 million pixels); above it a file counts as ``too_large``."""

_TORCHCODEC_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
_SEEK_BACK = (0.0, 2.0, 10.0, float("inf"))

_DECODER_ERRORS = (av.FFmpegError, OSError, RuntimeError, ValueError, IndexError, MemoryError)

av.logging.set_libav_level(av.logging.FATAL)


class Clock(NamedTuple):
    """A stream's own time: ``start`` is the tick of its first frame, ``tick`` the seconds of one."""

    start: int
    tick: float

    @classmethod
    def of(cls, stream: Any) -> "Clock":
        """The clock of an open stream."""
        return cls(stream.start_time or 0, float(stream.time_base))

    def ticks(self, times: Float[np.ndarray, " frames"]) -> list[float]:
        """Seconds from the first frame on as ticks; a frame that comes at such a tick, or before, has come."""
        return [self.start + (seconds + TIME_TOLERANCE) / self.tick for seconds in times]

    def shown(
        self, stamps: Int[np.ndarray, " all_frames"], times: Float[np.ndarray, " frames"]
    ) -> Int[np.ndarray, " frames"]:
        """Which of the frames with the rising ``stamps`` :func:`decode_clip` shows at ``times``."""
        ticks = self.ticks(np.maximum(times, 0.0))
        return np.maximum(np.searchsorted(stamps, ticks, side="right") - 1, 0)


class Stamped(NamedTuple):
    """A frame of a video, its tick, and the clock that counts them."""

    picture: UInt8[np.ndarray, "height width 3"]
    stamp: int
    clock: Clock


@dataclass(frozen=True)
class FileInfo:
    """What a file's header says. Height and width are those of the upright picture, after rotation.

    ``frames`` is an estimate where the header does not count them; a picture has one frame and lasts 0 seconds.
    """

    kind: Kind
    width: int
    height: int
    fps: float
    frames: int
    seconds: float


def probe_file(where: str | Place) -> FileInfo:
    """What is in the file; its first frame is decoded, so that a header alone does not pass.

    Raises ``BrokenFile`` because it is empty, not_media, unreadable, truncated, no_video, denied or too_large.
    """
    place = place_of(where)
    with explained(place):
        with opened(place) as container:
            stream = video_stream(place, container)
            info = describe(place, container, stream, first_frame(place, container, stream))
        if is_cut_short(place):
            raise BrokenFile(str(place), "truncated")
        return info


def decode_clip(
    where: str | Place, times: Float[np.ndarray, " frames"], short_side: int | None = None, backend: Backend = "pyav"
) -> Frames:
    """The frames shown at ``times``: RGB uint8 ``(frames, height, width, 3)``.

    Times are seconds from the file's first frame, in any order. The frame shown at *t* is the last one that does not
    come after *t*; past the end it is the last frame. Rotation in the metadata is applied. Frames whose short side is
    above ``short_side`` come out scaled down to it. A picture gives the same frame at every time. What TorchCodec
    cannot read, or reads wrongly (MPEG streams), is left to PyAV. Raises ``BrokenFile``.
    """
    distinct, places = np.unique(np.maximum(times, 0.0), return_inverse=True)
    place = place_of(where)
    with explained(place):
        if backend == "torchcodec" and place.suffix in _TORCHCODEC_SUFFIXES:
            with suppress(*_DECODER_ERRORS):
                return decode_torchcodec(place, distinct, short_side)[places]
        return _decode_pyav(place, distinct, short_side)[places]


def decode_all(where: str | Place, short_side: int | None = None) -> Iterator[Stamped]:
    """Every frame of a video, as :func:`decode_clip` gives it with PyAV, and when it is shown. Raises ``BrokenFile``."""
    place = place_of(where)
    with explained(place), opened(place) as container:
        stream = video_stream(place, container)
        clock, size = Clock.of(stream), None
        for frame in container.decode(stream):
            size = size or scaled_size(frame.height, frame.width, short_side)
            yield Stamped(_to_rgb(frame, size), _stamp(frame), clock)


def _decode_pyav(place: Place, times: Float[np.ndarray, " frames"], short_side: int | None) -> Frames:
    for seconds_back in _SEEK_BACK:
        seek_to = float(times[0]) - seconds_back
        with opened(place) as container:
            stream = video_stream(place, container)
            if seek_to > 0 and not is_picture(place):
                _seek(container, stream, seek_to)
            ticks = Clock.of(stream).ticks(times)
            frames = _shown_at(container.decode(stream), ticks, short_side, seek_to <= 0)
            if frames:
                return np.stack(frames)
    raise BrokenFile(str(place), "truncated")


def _seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to a key frame at or before ``seconds`` after the first frame; some formats only come near it."""
    target = (stream.start_time or 0) + int(seconds / stream.time_base)
    container.seek(target, stream=stream, backward=True)


def _shown_at(
    decoded: Iterator[Any], ticks: list[float], short_side: int | None, from_the_start: bool
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The frames shown at the rising ``ticks``; an empty list where decoding began after the first of them."""
    shown: list[UInt8[np.ndarray, "height width 3"]] = []
    size: tuple[int, int] | None = None
    current = None
    for frame in decoded:
        time = _stamp(frame)
        if current is None:
            if time > ticks[0] and not from_the_start:
                return []
            size = scaled_size(frame.height, frame.width, short_side)
        elif time > ticks[len(shown)]:
            picture = _to_rgb(current, size)
            while len(shown) < len(ticks) and time > ticks[len(shown)]:
                shown.append(picture)
            if len(shown) == len(ticks):
                return shown
        current = frame
    if current is not None:
        shown += [_to_rgb(current, size)] * (len(ticks) - len(shown))
    return shown


def _stamp(frame: Any) -> int:
    """A frame's tick; one without is shown at once."""
    return frame.pts if frame.pts is not None else -1


def _to_rgb(frame: Any, size: tuple[int, int] | None) -> UInt8[np.ndarray, "height width 3"]:
    """The frame upright in RGB, scaled to ``size`` (height, width) before it is turned."""
    height, width = size or (frame.height, frame.width)
    picture = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation="AREA", threads=1)
    return np.rot90(picture, k=round(frame.rotation / 90), axes=(0, 1))


def first_frame(place: Place, container: Any, stream: Any) -> Any:
    """The first frame of an opened file, whose size is looked at before it is decoded. Raises ``BrokenFile``."""
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise BrokenFile(str(place), "too_large")
    frame = next(container.decode(stream), None)
    if frame is None:
        raise BrokenFile(str(place), reason_of(place))
    return frame


def describe(place: Place, container: Any, stream: Any, frame: Any) -> FileInfo:
    """What the headers of an opened file say; ``frame`` is its first."""
    turned = round(frame.rotation / 90) % 2 == 1
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    if is_picture(place) or container.format.name.endswith("_pipe"):
        return FileInfo("picture", width, height, 0.0, 1, 0.0)
    fps = float(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)
    seconds = _seconds(container, stream)
    frames, seconds = _counted(container, stream, fps) if seconds is None else (stream.frames, seconds)
    return FileInfo("video", width, height, fps, frames or max(1, round(seconds * fps)), seconds)


def _seconds(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _counted(container: Any, stream: Any, fps: float) -> tuple[int, float]:
    """Frames and seconds of a file whose header tells neither, by reading its packets."""
    container.seek(0)
    times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    return len(times), float((max(times) - min(times)) * stream.time_base) + 1 / fps if times else 0.0


def is_picture(place: Place) -> bool:
    """Whether the suffix is a picture's."""
    return place.suffix in PICTURE_SUFFIXES


@contextmanager
def opened(place: Place) -> Iterator[Any]:
    """The open container. A name is never read as a pattern or a protocol, and no file opens another."""
    with ExitStack() as stack:
        source: Any = f"file:{place.local_file}"
        file = stack.enter_context(open_place(place))
        _refuse_huge_png(place, file)
        if place.local_file is None or is_picture(place):
            source = file
        yield stack.enter_context(av.open(source, options={"protocol_whitelist": "file"}))


def _refuse_huge_png(place: Place, file: Any) -> None:
    """FFmpeg decodes a PNG to open it, so its size is read first."""
    head = file.read(24)
    file.seek(0)
    if head[:4] == b"\x89PNG" and len(head) == 24:
        width, height = struct.unpack(">II", head[16:])
        if width * height > MAX_PIXELS:
            raise BrokenFile(str(place), "too_large")


def video_stream(place: Place, container: Any) -> Any:
    """The first moving (not cover art) video stream, set to decode on one thread."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams and is_cut_short(place):
        raise BrokenFile(str(place), "truncated")
    if not streams:
        raise BrokenFile(str(place), "no_video" if container.streams.audio else "not_media")
    stream = streams[0]
    if stream.codec_context is None:
        raise BrokenFile(str(place), reason_of(place))
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "NONE"
    return stream


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Turn whatever a decoder raises into ``BrokenFile`` with its reason."""
    try:
        yield
    except _DECODER_ERRORS as error:
        raise BrokenFile(str(place), reason_of(place)) from error
