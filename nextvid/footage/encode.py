"""One file of footage re-encoded: small clips with many key frames, cut where shots begin; a picture as a small JPEG."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8
from PIL import Image

from nextvid.data.backends import scaled_size
from nextvid.data.clip import BrokenFile
from nextvid.data.cuts import thumbnails
from nextvid.data.damage import is_cut_short
from nextvid.data.decode import MAX_PIXELS, Kind, decode_clip, explained, opened, video_stream
from nextvid.data.locations import Place
from nextvid.errors import UserError
from nextvid.footage.plan import PrepareSettings
from nextvid.footage.shots import Moment, Piece, Pieces, with_cuts

TICKS = 90000
"""Ticks of a clip's clock in a second: frames keep their times to 6 microseconds."""
LEAST_FRAMES = 2
"""A clip of fewer frames than a tubelet gives nothing to learn from, and is not made."""
LONGEST_GAP = 3600.0
"""Seconds from one frame of a video to the next above which its times are taken for damage."""
_OUT_OF_ORDER = 3.5
"""Frames that time may step back by where a decoder puts one out of order; by more, another recording begins."""
_THUMBNAIL = 32
_ENCODER = {"preset": "veryfast", "tune": "fastdecode", "bf": "0", "sc_threshold": "0", "mbtree": "0"}
"""Fast to make and faster to read. x264's macroblock tree is off: with it one encoding in a hundred came out otherwise."""
_UNKNOWN_FPS = 25.0


@dataclass(frozen=True)
class Clip:
    """A clip of a file: what is to be stored, and what it is.

    ``start`` and ``end``: seconds from the file's first frame, going on where recordings are joined; ``shot``: the number
    of its shot in the file.
    """

    data: bytes
    kind: Kind
    codec: str
    width: int
    height: int
    frames: int
    start: float = 0.0
    end: float = 0.0
    shot: int = 0

    @property
    def seconds(self) -> float:
        """How long it lasts; 0 for a picture."""
        return self.end - self.start

    @property
    def fps(self) -> float:
        """Its mean frame rate; 0 for a picture."""
        return self.frames / self.seconds if self.seconds else 0.0


class FileEncoder:
    """The clips of one file, in order; memory holds two of them, however long the file is.

    ``left_out``: how many shots were too short, or had too few frames for a clip; known once all clips are drawn.
    """

    def __init__(self, place: Place, kind: Kind, settings: PrepareSettings) -> None:
        self.place = place
        self.kind = kind
        self.settings = settings
        self.left_out = 0

    def clips(self) -> Iterator[Clip]:
        """None where no shot has ``LEAST_FRAMES``.

        Raises ``BrokenFile`` where the file cannot be decoded to its end: the clips before are then to be thrown away.
        """
        if self.kind == "picture":
            yield self._picture()
            return
        spare: Piece | None = None
        found = False
        for piece in Pieces(with_cuts(self._moments()), self.settings.seconds):
            enough = len(piece.moments) >= LEAST_FRAMES
            if enough and piece.seconds >= self.settings.min_seconds:
                found = True
                yield self._encoded(piece)
                continue
            self.left_out += 1
            if enough and not found and (spare is None or piece.seconds > spare.seconds):
                spare = piece
        if not found and not self.left_out:
            raise BrokenFile(str(self.place), "unreadable")
        if not found and spare is not None:
            self.left_out -= 1
            yield self._encoded(spare)

    def _encoded(self, piece: Piece) -> Clip:
        with explained(self.place):
            return encode_piece(piece, self.settings)

    def _picture(self) -> Clip:
        picture = decode_clip(self.place, np.zeros(1), self.settings.short_side)[0]
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=self.settings.quality)
        height, width = picture.shape[:2]
        return Clip(buffer.getvalue(), "picture", "mjpeg", width, height, frames=1)

    def _moments(self) -> Iterator[Moment]:
        """The frames that are kept, upright, scaled and ready to be encoded."""
        with explained(self.place):
            if is_cut_short(self.place):
                raise BrokenFile(str(self.place), "truncated")
            with opened(self.place) as container:
                stream = video_stream(self.place, container)
                if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                    raise BrokenFile(str(self.place), "too_large")
                yield from self._decoded(container, stream)

    def _decoded(self, container: Any, stream: Any) -> Iterator[Moment]:
        usual = 1 / float(stream.average_rate or stream.guessed_rate or _UNKNOWN_FPS)
        origin, last, slot = stream.start_time or 0, -usual, -1
        clock, joined = _Clock(usual), False
        size: tuple[int, int] | None = None
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise BrokenFile(str(self.place), "unreadable")
            time, begins = clock.at(None if frame.pts is None else float((frame.pts - origin) * stream.time_base))
            if time is None:
                raise BrokenFile(str(self.place), "unreadable")
            joined |= begins
            due = int(time * self.settings.fps + 1e-3) if self.settings.fps else slot + 1
            if round(time * TICKS) <= round(last * TICKS) or due <= slot:
                continue
            size = size or _even(scaled_size(frame.height, frame.width, self.settings.short_side))
            seconds = float(frame.duration * stream.time_base) if frame.duration else usual
            small = frame.to_ndarray(
                format="rgb24", height=_THUMBNAIL, width=_THUMBNAIL, interpolation="AREA", threads=1
            )
            yield Moment(_upright(frame, size), time, seconds, thumbnails(small[None])[0], joined)
            last, slot, joined = time, due, False


class _Clock:
    """The times of a file's frames, which go on where recordings are joined and their own times begin anew."""

    def __init__(self, usual: float) -> None:
        self.usual = usual
        self.newest: float | None = None
        self.offset = 0.0

    def at(self, stamp: float | None) -> tuple[float | None, bool]:
        """When a frame is shown, None where that cannot be, and whether another recording begins with it."""
        following = 0.0 if self.newest is None else self.newest + self.usual
        time = following if stamp is None else stamp + self.offset
        if self.newest is None:
            self.newest = time
            return time, False
        if time - self.newest > LONGEST_GAP:
            return None, False
        begins = time < self.newest - _OUT_OF_ORDER * self.usual
        if begins:
            self.offset += following - time
            time = following
        self.newest = max(self.newest, time)
        return time, begins


def _even(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (max(2, side - side % 2) for side in size)
    return height, width


def _upright(frame: Any, size: tuple[int, int]) -> Any:
    """The frame as :func:`nextvid.data.decode.decode_clip` shows it, scaled to ``size`` (height, width), for the encoder."""
    height, width = size
    shown: UInt8[np.ndarray, "height width 3"] = frame.to_ndarray(
        format="rgb24", height=height, width=width, interpolation="AREA", threads=1
    )
    turned = np.ascontiguousarray(np.rot90(shown, k=round(frame.rotation / 90), axes=(0, 1)))
    return av.VideoFrame.from_ndarray(turned, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU601, threads=1
    )


def encode_piece(piece: Piece, settings: PrepareSettings) -> Clip:
    """The piece as an MP4 without sound, its frames at their times; the same bytes whenever it is made."""
    first = piece.moments[0].frame
    starts = [round((moment.time - piece.start) * TICKS) for moment in piece.moments]
    lengths = dict(zip(starts, np.diff([*starts, round(piece.seconds * TICKS)]).tolist(), strict=True))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(len(starts) / piece.seconds if piece.seconds else _UNKNOWN_FPS).limit_denominator(1001)
        stream: Any = container.add_stream(settings.codec, rate=rate, options={**_ENCODER, "crf": str(settings.crf)})
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        _set_up(stream.codec_context, settings)
        for moment, start in zip(piece.moments, starts, strict=True):
            moment.frame.pts, moment.frame.time_base = start, Fraction(1, TICKS)
            _write(container, stream.encode(moment.frame), lengths)
        _write(container, stream.encode(), lengths)
        codec = stream.codec_context.codec.canonical_name
    return Clip(
        buffer.getvalue(), "video", codec, first.width, first.height, len(starts), piece.start, piece.end, piece.shot
    )


def check_encoder(settings: PrepareSettings) -> None:
    """Encode a few grey frames. Raises ``UserError`` where the encoder of ``settings`` is missing or cannot."""
    grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 127, np.uint8), format="rgb24").reformat(format="yuv420p")
    moments = [Moment(grey, number / 10, 0.1, np.zeros((8, 8, 3), np.float32)) for number in range(3)]
    try:
        encode_piece(Piece(moments, 0.3, 0), settings)
    except (av.FFmpegError, ValueError, KeyError) as error:
        raise UserError(
            f"This machine cannot encode with {settings.codec} ({error}); leave --codec out, which means libx264."
        ) from error


def _set_up(codec: Any, settings: PrepareSettings) -> None:
    codec.gop_size = settings.keyframes
    codec.thread_count = 1
    codec.time_base = Fraction(1, TICKS)
    codec.flags |= Flags.bitexact
    codec.colorspace, codec.color_range = Colorspace.SMPTE170M, ColorRange.MPEG


def _write(container: Any, packets: Any, lengths: dict[int, int]) -> None:
    """Packets with how long each frame is shown, which the encoder does not say of the last."""
    for packet in packets:
        packet.duration = lengths[packet.pts]
        container.mux(packet)
