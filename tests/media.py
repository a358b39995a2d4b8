"""Small real files whose frames say which they are."""

import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from nextvid.data.footage import FootageSource
from nextvid.data.manifest import Manifest
from nextvid.footage.scan import scan

BITS = 8
TICKS = 1000


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture of eight upright stripes, black or white: the bits of ``number``, lowest on the left."""
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    row = np.array(bits, np.uint8)[np.arange(width) * BITS // width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_number(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    columns = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(picture[height // 2, column].mean() > 127) << bit for bit, column in enumerate(columns))


def read_numbers(frames: np.ndarray) -> list[int]:
    return [read_number(picture) for picture in frames]


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    *,
    fps: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    key_frames: int = 12,
    seconds: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """``seconds``: the time of each picture, where they are not evenly spaced."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = key_frames
        stream.codec_context.thread_count = 1
        if seconds is not None:
            stream.codec_context.time_base = Fraction(1, TICKS)
        for place, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if seconds is not None:
                frame.pts, frame.time_base = round(seconds[place] * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_numbered(path: Path, count: int = 40, **settings) -> Path:
    return write_video(path, [numbered(number) for number in range(count)], **settings)


def write_picture(path: Path, picture: np.ndarray, codec: str = "png", pixels: str = "rgb24") -> Path:
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = pixels, Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    frame.pts = 0
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode()]))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotate_header(source: Path, path: Path) -> Path:
    """The MP4 ``source`` with a header that says: turn a quarter clockwise to show."""
    data = source.read_bytes()
    matrix = data.index(b"tkhd") + 4 + 40
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:matrix] + turned + data[matrix + 36 :])
    return path


def cut_short(source: Path, path: Path, share: float = 0.6) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def footage_of(path: Path | str, manifest: Path | None = None, **settings) -> FootageSource:
    """A source of what ``path`` holds, scanned into ``manifest``, by default in a folder of its own."""
    out = manifest or Path(tempfile.mkdtemp(prefix="nextvid-test-")) / "manifest.parquet"
    scan([str(path)], out, workers=1)
    return FootageSource(Manifest(out), **settings)
