"""Films as MP4 files."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nextvid.files import replacing
from nextvid.generation.board import PAPER, Picture

CODEC, QUALITY = "libx264", "16"


def write_mp4(path: Path, film: Sequence[Picture], fps: float) -> None:
    """Write pictures of one size as H.264, ``fps`` a second; an odd side gets a white line, since H.264 wants even ones."""
    import av  # noqa: PLC0415

    with replacing(path) as beside, av.open(str(beside), "w", format="mp4") as container:
        stream: Any = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000), options={"crf": QUALITY})
        stream.height, stream.width = _even(film[0]).shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_even(picture), format="rgb24")))
        container.mux(stream.encode())


def _even(picture: Picture) -> UInt8[np.ndarray, "even_height even_width 3"]:
    height, width = picture.shape[:2]
    padded = np.full((height + height % 2, width + width % 2, 3), PAPER, np.uint8)
    padded[:height, :width] = picture
    return padded
