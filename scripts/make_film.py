"""Make the committed film corpus from the source distribution of moviepy 2.2.1, which carries Big Buck Bunny whole.

    pip download --no-deps --no-binary :all: moviepy==2.2.1
    python scripts/make_film.py moviepy-2.2.1.tar.gz

Writes ``film.mp4`` (seconds 12 to 489, before the credits, every second frame of 24 a second, 160x90, H.264) and
``film.json`` (its shots) to ``nextvid/data/assets``. The version of the encoder decides the bytes of the
film, so ``film.json`` states their SHA-256.

**The cut detector.** Every frame of the original (1280x720, 24 fps) is averaged down to 64x36 pixels; its change is the
mean absolute difference from the frame before, in grey levels. A cut is a change above 10 that is also more than 4
times the median change (plus one) of the 8 frames before and the 8 after, or any change above 45. Nearly black frames
(mean below 12) belong to no shot, nor does anything shorter than 2 kept frames.
A slow dissolve is not a cut: the film has two, and they stay inside their shots.
"""

import argparse
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Bool, Float, UInt8

SDIST_SHA256 = "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1"
FILM_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"
ARCHIVE = "docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
MEMBER = "moviepy_10_minutes/resources/bbb.mp4"
ATTRIBUTION = "Big Buck Bunny, (c) Blender Foundation, peach.blender.org, CC-BY 3.0; shortened, reduced in size"

ORIGINAL_FPS = 24
FPS = 12
SECONDS = (12, 489)
WIDTH, HEIGHT = 160, 90
ENCODER = {"crf": "27", "preset": "veryslow", "g": "24", "threads": "1"}

THUMBNAIL = (64, 36)
CHANGE = 10.0
RATIO = 4.0
SURE_CHANGE = 45.0
NEIGHBOURS = 8
BLACK = 12.0


@dataclass(frozen=True)
class Shrunk:
    """The film as it is kept, and a thumbnail of every frame of the original between the same seconds."""

    frames: UInt8[np.ndarray, "kept height width 3"]
    thumbnails: UInt8[np.ndarray, "original h w 3"]


def checked(content: bytes, sha256: str, name: str) -> bytes:
    """``content`` if its SHA-256 is ``sha256``; ends the script otherwise."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SystemExit(f"{name}: SHA-256 is {found}, not {sha256}; download it again")
    return content


def read_film(sdist: Path) -> bytes:
    """The mp4 inside ``sdist``; both are checked against their known SHA-256."""
    packed = checked(sdist.read_bytes(), SDIST_SHA256, str(sdist))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        member = tar.extractfile(f"moviepy-2.2.1/{ARCHIVE}")
        assert member is not None
        with zipfile.ZipFile(io.BytesIO(member.read())) as archive:
            return checked(archive.read(MEMBER), FILM_SHA256, MEMBER)


def decode(film: bytes) -> Iterator[av.VideoFrame]:
    """The frames of ``film`` between ``SECONDS``."""
    first, last = (second * ORIGINAL_FPS for second in SECONDS)
    with av.open(io.BytesIO(film), "r") as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number >= last:
                return
            if number >= first:
                yield frame


def shrink(film: bytes) -> Shrunk:
    """Decode once; average each frame down to a thumbnail and each kept frame down to its final size."""
    frames, thumbnails = [], []
    for number, frame in enumerate(decode(film)):
        thumbnails.append(reduced(frame, *THUMBNAIL))
        if number % (ORIGINAL_FPS // FPS) == 0:
            frames.append(reduced(frame, WIDTH, HEIGHT))
    return Shrunk(np.stack(frames), np.stack(thumbnails))


def reduced(frame: av.VideoFrame, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """``frame`` averaged over areas to ``width`` x ``height`` RGB."""
    return frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()


def find_cuts(thumbnails: UInt8[np.ndarray, "frames h w 3"]) -> Bool[np.ndarray, " frames"]:
    """Whether a new shot begins at each frame: the detector of this module's docstring."""
    signed = thumbnails.astype(np.float32)
    change = np.zeros(len(signed))
    change[1:] = np.abs(signed[1:] - signed[:-1]).mean((1, 2, 3))
    usual = median_around(change)
    return ((change > CHANGE) & (change > RATIO * (usual + 1))) | (change > SURE_CHANGE)


def median_around(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The median of the ``NEIGHBOURS`` values before and after each value, itself left out."""
    padded = np.pad(values, NEIGHBOURS, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1)
    return np.median(np.delete(windows, NEIGHBOURS, axis=1), axis=1)


def find_shots(thumbnails: UInt8[np.ndarray, "frames h w 3"]) -> list[tuple[int, int]]:
    """The shots as ``[start, end)`` ranges of kept frames."""
    step = ORIGINAL_FPS // FPS
    begins = find_cuts(thumbnails).reshape(-1, step)
    starts_shot = begins[:, 0].copy()
    starts_shot[1:] |= begins[:-1, 1:].any(axis=1)
    black = thumbnails[::step].mean((1, 2, 3)) < BLACK
    shots, start = [], 0
    for frame in range(1, len(black) + 1):
        if frame == len(black) or starts_shot[frame] or black[frame] != black[frame - 1]:
            if not black[start] and frame - start >= 2:
                shots.append((start, frame))
            start = frame
    return shots


def encode(frames: UInt8[np.ndarray, "frames height width 3"], path: Path) -> None:
    """Write ``frames`` to ``path`` as H.264 in ``FPS`` frames a second.

    The planes pass through an array: left to the encoder, the conversion from RGB may give other bytes at every run.
    """
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = ATTRIBUTION
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in frames:
            planes = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p").to_ndarray()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))


def describe(mp4: bytes, frames: int, shots: list[tuple[int, int]]) -> str:
    """``film.json``: what the film is and where its shots lie, one shot a line."""
    facts = {
        "format": 1,
        "attribution": ATTRIBUTION,
        "source": {"sdist": "moviepy-2.2.1", "sha256": FILM_SHA256, "seconds": SECONDS, "fps": ORIGINAL_FPS},
        "sha256": hashlib.sha256(mp4).hexdigest(),
        "fps": FPS,
        "frames": frames,
        "height": HEIGHT,
        "width": WIDTH,
    }
    listed = ",\n    ".join(json.dumps(shot) for shot in shots)
    return json.dumps(facts, indent=2)[:-2] + f',\n  "shots": [\n    {listed}\n  ]\n}}\n'


def main() -> None:
    """Parse, make, say what was made."""
    parser = argparse.ArgumentParser(description="Make the film corpus from the moviepy 2.2.1 source distribution.")
    parser.add_argument("sdist", type=Path, help="moviepy-2.2.1.tar.gz")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "nextvid" / "data" / "assets")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shrunk = shrink(read_film(args.sdist))
    shots = find_shots(shrunk.thumbnails)
    path = args.out / "film.mp4"
    encode(shrunk.frames, path)
    (args.out / "film.json").write_text(describe(path.read_bytes(), len(shrunk.frames), shots))
    print(f"{path}: {len(shrunk.frames)} frames, {len(shots)} shots, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
