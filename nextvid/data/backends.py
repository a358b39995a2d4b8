"""Which decoder reads video on this machine, and TorchCodec's way of reading it."""

import functools
import importlib
import os
import tempfile
from typing import Any, Literal

import av
import numpy as np
from jaxtyping import Float

from nextvid.data.clip import BrokenFile, Frames
from nextvid.data.locations import Place, open_place
from nextvid.errors import UserError

Backend = Literal["pyav", "torchcodec"]
BackendChoice = Literal["auto", "pyav", "torchcodec"]

TIME_TOLERANCE = 6e-4
"""Seconds by which a frame may come late and still be shown: Matroska rounds times to milliseconds."""


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
            shown = decode_torchcodec(Place(path), np.array([0.0, 0.55]), 32)
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


def decode_torchcodec(place: Place, times: Float[np.ndarray, " frames"], short_side: int | None) -> Frames:
    """As :func:`nextvid.data.decode.decode_clip`, by TorchCodec alone; raises whatever it raises."""
    decoders: Any = importlib.import_module("torchcodec.decoders")
    transforms: Any = importlib.import_module("torchcodec.transforms")
    header = decoders.VideoDecoder(_content(place), seek_mode="approximate").metadata
    if not header.height or not header.width:
        raise BrokenFile(str(place), "unreadable")
    size = scaled_size(header.height, header.width, short_side)
    resize = [] if size == (header.height, header.width) else [transforms.Resize(size)]
    decoder = decoders.VideoDecoder(_content(place), dimension_order="NHWC", seek_mode="exact", transforms=resize)
    begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    shown = np.clip(begin + times + TIME_TOLERANCE, begin, np.nextafter(end, begin))
    return decoder.get_frames_played_at(shown.tolist()).data.numpy()


def _content(place: Place) -> Any:
    """What TorchCodec opens: a path, or the bytes of a part of a file."""
    if place.local_file is not None:
        return place.local_file
    with open_place(place) as file:
        return file.read()


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width with the short side brought down to ``short_side``; never up."""
    factor = (short_side or min(height, width)) / min(height, width)
    return (height, width) if factor >= 1 else (max(1, round(height * factor)), max(1, round(width * factor)))
