"""Frames out of one file: what is in it, and the frames shown at given times, by PyAV or TorchCodec."""

import functools
import importlib
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import av
import av.logging
import numpy as np
from av.stream import Disposition
from jaxtyping import Float, UInt8

from nextvid.data.clip import BrokenFile, Frames
from nextvid.errors import UserError

Backend = Literal["pyav", "torchcodec"]
BackendChoice = Literal["auto", "pyav", "torchcodec"]
Kind = Literal["video", "picture"]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".3gp", ".ogv", ".gif", ".mxf", ".y4m"}
)
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

MAX_PIXELS = 2**27
"""The largest picture that is opened (134 million pixels); above it a file counts as ``too_large``."""

TIME_TOLERANCE = 6e-4
"""Seconds by which a frame may come late and still be shown: Matroska rounds times to milliseconds."""

_TORCHCODEC_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
_SEEK_BACK = (0.0, 2.0, 10.0, float("inf"))
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")
_EBML = b"\x1a\x45\xdf\xa3"
_END_MARKS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
_ASF, _MPEG, _TRANSPORT = b"\x30\x26\xb2\x75", b"\x00\x00\x01", b"G@"
_MAGIC = (_EBML, *_END_MARKS, _ASF, _MPEG, _TRANSPORT, b"RIFF", b"BM", b"GIF8", b"FLV", b"OggS", b"YUV4")

_DECODER_ERRORS = (av.FFmpegError, OSError, RuntimeError, ValueError, IndexError, MemoryError)

av.logging.set_libav_level(av.logging.FATAL)


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


def probe_file(path: str) -> FileInfo:
    """What is in the file; its first frame is decoded, so that a header alone does not pass.

    Raises ``BrokenFile`` because it is empty, not_media, unreadable, truncated, no_video, denied or too_large.
    """
    with _explained(path):
        with _opened(path) as container:
            info = _describe(path, container, _video_stream(path, container))
        if _is_cut_short(path):
            raise BrokenFile(path, "truncated")
        return info


def decode_clip(
    path: str, times: Float[np.ndarray, " frames"], short_side: int | None = None, backend: Backend = "pyav"
) -> Frames:
    """The frames shown at ``times``: RGB uint8 ``(frames, height, width, 3)``.

    Times are seconds from the file's first frame, in any order. The frame shown at *t* is the last one that does not
    come after *t*; past the end it is the last frame. Rotation in the metadata is applied. Frames whose short side is
    above ``short_side`` come out scaled down to it. A picture gives the same frame at every time. What TorchCodec
    cannot read, or reads wrongly (MPEG streams), is left to PyAV. Raises ``BrokenFile``.
    """
    distinct, places = np.unique(np.maximum(times, 0.0), return_inverse=True)
    with _explained(path):
        if backend == "torchcodec" and _suffix(path) in _TORCHCODEC_SUFFIXES:
            with suppress(*_DECODER_ERRORS):
                return decode_torchcodec(path, distinct, short_side)[places]
        return _decode_pyav(path, distinct, short_side)[places]


@functools.cache
def choose_backend(choice: BackendChoice) -> Backend:
    """The back end that ``choice`` comes to on this machine: TorchCodec must decode a small file that is made for it.

    Raises ``UserError`` where TorchCodec is asked for by name and does not work.
    """
    if choice == "pyav":
        return "pyav"
    problem = _torchcodec_problem()
    if problem is None:
        return "torchcodec"
    if choice == "auto":
        return "pyav"
    raise UserError(
        f"data.decoder=torchcodec, but TorchCodec does not decode on this machine: {problem}. Install FFmpeg "
        "(apt-get install ffmpeg) and `pip install nextvid[torchcodec]`, or use data.decoder=auto or pyav."
    )


def _torchcodec_problem() -> str | None:
    """Why TorchCodec cannot decode a generated file of eight frames; None where it can."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trial.mp4")
        _write_trial(path)
        try:
            shown = decode_torchcodec(path, np.array([0.0, 0.55]), 32)
        except Exception as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
    brightness = shown.mean(axis=(1, 2, 3))
    if shown.shape != (2, 32, 32, 3) or abs(brightness[0] - 0) > 12 or abs(brightness[1] - 100) > 12:
        return "its frames of a trial file are wrong"
    return None


def _write_trial(path: str) -> None:
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(8):
            picture = np.full((64, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def decode_torchcodec(path: str, times: Float[np.ndarray, " frames"], short_side: int | None) -> Frames:
    """As :func:`decode_clip`, by TorchCodec alone; raises whatever it raises."""
    decoders: Any = importlib.import_module("torchcodec.decoders")
    transforms: Any = importlib.import_module("torchcodec.transforms")
    header = decoders.VideoDecoder(path, seek_mode="approximate").metadata
    if not header.height or not header.width:
        raise BrokenFile(path, "unreadable")
    size = scaled_size(header.height, header.width, short_side)
    resize = [] if size == (header.height, header.width) else [transforms.Resize(size)]
    decoder = decoders.VideoDecoder(path, dimension_order="NHWC", seek_mode="exact", transforms=resize)
    begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    shown = np.clip(begin + times + TIME_TOLERANCE, begin, np.nextafter(end, begin))
    return decoder.get_frames_played_at(shown.tolist()).data.numpy()


def _decode_pyav(path: str, times: Float[np.ndarray, " frames"], short_side: int | None) -> Frames:
    for seconds_back in _SEEK_BACK:
        seek_to = float(times[0]) - seconds_back
        with _opened(path) as container:
            stream = _video_stream(path, container)
            if seek_to > 0 and not _is_picture(path):
                _seek(container, stream, seek_to)
            frames = _shown_at(container.decode(stream), _ticks(stream, times), short_side, seek_to <= 0)
            if frames:
                return np.stack(frames)
    raise BrokenFile(path, "truncated")


def _seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to a key frame at or before ``seconds`` after the first frame; some formats only come near it."""
    target = (stream.start_time or 0) + int(seconds / stream.time_base)
    container.seek(target, stream=stream, backward=True)


def _ticks(stream: Any, times: Float[np.ndarray, " frames"]) -> list[float]:
    """``times`` in the stream's own clock."""
    return [(stream.start_time or 0) + (seconds + TIME_TOLERANCE) / float(stream.time_base) for seconds in times]


def _shown_at(
    decoded: Iterator[Any], ticks: list[float], short_side: int | None, from_the_start: bool
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The frames shown at the rising ``ticks``; an empty list where decoding began after the first of them."""
    shown: list[UInt8[np.ndarray, "height width 3"]] = []
    size: tuple[int, int] | None = None
    current = None
    for frame in decoded:
        time = frame.pts if frame.pts is not None else -1
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


def _to_rgb(frame: Any, size: tuple[int, int] | None) -> UInt8[np.ndarray, "height width 3"]:
    """The frame upright in RGB, scaled to ``size`` (height, width) before it is turned."""
    height, width = size or (frame.height, frame.width)
    picture = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation="AREA", threads=1)
    return np.rot90(picture, k=round(frame.rotation / 90), axes=(0, 1))


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width with the short side brought down to ``short_side``; never up."""
    factor = (short_side or min(height, width)) / min(height, width)
    return (height, width) if factor >= 1 else (max(1, round(height * factor)), max(1, round(width * factor)))


def _describe(path: str, container: Any, stream: Any) -> FileInfo:
    codec = stream.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise BrokenFile(path, "too_large")
    frame = next(container.decode(stream), None)
    if frame is None:
        raise BrokenFile(path, "unreadable")
    turned = round(frame.rotation / 90) % 2 == 1
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    if _is_picture(path) or container.format.name.endswith("_pipe"):
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


def _is_picture(path: str) -> bool:
    return _suffix(path) in PICTURE_SUFFIXES


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The open container. A name is never read as a pattern or a protocol, and no file opens another."""
    with ExitStack() as stack:
        source: Any = f"file:{path}"
        if _is_picture(path):
            source = stack.enter_context(open(path, "rb"))
            _refuse_huge_png(path, source)
        yield stack.enter_context(av.open(source, options={"protocol_whitelist": "file"}))


def _refuse_huge_png(path: str, file: Any) -> None:
    """FFmpeg decodes a PNG to open it, so its size is read first."""
    head = file.read(24)
    file.seek(0)
    if head[:4] == b"\x89PNG" and len(head) == 24:
        width, height = struct.unpack(">II", head[16:])
        if width * height > MAX_PIXELS:
            raise BrokenFile(path, "too_large")


def _video_stream(path: str, container: Any) -> Any:
    """The first moving (not cover art) video stream, set to decode on one thread."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams and _is_cut_short(path):
        raise BrokenFile(path, "truncated")
    if not streams:
        raise BrokenFile(path, "no_video" if container.streams.audio else "not_media")
    stream = streams[0]
    if stream.codec_context is None:
        raise BrokenFile(path, "unreadable")
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "NONE"
    return stream


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn whatever a decoder raises into ``BrokenFile`` with its reason."""
    try:
        yield
    except _DECODER_ERRORS as error:
        raise BrokenFile(path, _reason(path)) from error


def _reason(path: str) -> str:
    """Why a file that a decoder gave up on is broken."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if not head:
            return "empty"
        if _is_cut_short(path):
            return "truncated"
    except PermissionError:
        return "denied"
    except OSError:
        return "unreadable"
    return "unreadable" if head.startswith(_MAGIC) or head[4:8] in _MP4_BOXES else "not_media"


def _is_cut_short(path: str) -> bool:
    """Whether the file ends before its own structure says; False for formats that do not say."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(64)
        if head[4:8] in _MP4_BOXES:
            return _mp4_cut_short(file, size)
        if head[:4] == b"RIFF" and len(head) >= 8:
            length = struct.unpack("<I", head[4:8])[0]
            return length != 0xFFFFFFFF and 8 + length > size
        if head[:4] == _EBML:
            return len(head) < 64 or _matroska_end(head) > size
        for magic, mark in _END_MARKS.items():
            if head.startswith(magic):
                file.seek(max(0, size - 65536))
                return mark not in file.read()
    return False


def _mp4_cut_short(file: Any, size: int) -> bool:
    """Walk the outermost boxes: the last must end inside the file, and one must be the index (``moov``)."""
    position, indexed = 0, False
    while position + 8 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        indexed |= name == b"moov"
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length == 0:
            return not indexed
        if length < 8:
            return False
        position += length
    return position > size or not indexed


def _matroska_end(head: bytes) -> int:
    """Where the segment ends, in bytes; 0 where the file does not say."""
    length, start = _matroska_length(head, 4)
    segment = start + length
    if head[segment : segment + 4] != b"\x18\x53\x80\x67" or len(head) < segment + 12:
        return 0
    length, start = _matroska_length(head, segment + 4)
    return start + length if length else 0


def _matroska_length(head: bytes, position: int) -> tuple[int, int]:
    """An element's length (0 where unknown) and where its content starts."""
    width = 9 - head[position].bit_length()
    value = int.from_bytes(head[position : position + width], "big") & ((1 << 7 * width) - 1)
    return (0 if value == (1 << 7 * width) - 1 else value), position + width
