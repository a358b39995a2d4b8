"""How far apart the perceptual hashes of copies and of different pictures are, measured on the built-in film.

    python benchmarks/hashes.py

Frames: every frame of the film against itself re-encoded and changed in other ways, and 0.25 s later, and against the
frames of other shots. Files: windows of 10 s, hashed as test clips are, against the film cut elsewhere at half its size,
hashed as a scan does, and against footage of other scenes. Then what a search costs, on random hashes. Writes
``benchmarks/results/hashes.json``; docs/contamination.md quotes it.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Bool, Int64

from nextvid.data.clip import Frames
from nextvid.data.film import load_film, resize
from nextvid.files import replace_json
from nextvid.footage.contamination import ALONE_BITS, FPS, FRAMES_NEEDED, THRESHOLD_BITS
from nextvid.footage.hash_index import HashIndex
from nextvid.footage.hashing import SIDE, distances, perceptual_hash
from nextvid.footage.inspect import PLACE_SECONDS, places
from nextvid.training.device import describe

RESULTS = Path(__file__).parent / "results" / "hashes.json"
THRESHOLDS = range(2, 13)
APART = 60.0
"""Shots further apart in the film than so many seconds show other scenes; nearer ones may be the same camera's."""
TEST_SECONDS = 10.0
FOOTAGE_SECONDS = (10, 20, 30, 60, 120, 240)
DRAWS = 2000
SEARCHED = 100_000
TEST_HASHES = (10_000, 100_000, 800_000)

Hashes = Int64[np.ndarray, " frames"]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    film = np.array(load_film().frames)
    true, known = hash_frames(film)
    changed = {name: _changed(film, *change) for name, change in CHANGES.items()}
    found = {
        "command": "python benchmarks/hashes.py",
        "machine": {**describe(torch.device("cpu")), "numpy": np.__version__, "av": av.__version__},
        "film": {
            "frames": len(film),
            "fps": load_film().fps,
            "size": list(film.shape[1:3]),
            "hashed": int(known.sum()),
        },
        "recall": {name: _shares(true, *hashes, known) for name, hashes in changed.items()} | _later(true, known),
        "different": _different(true, known),
        "files": _files(true, known, changed["half the size"][0]),
        "search": [_search(count) for count in TEST_HASHES],
    }
    replace_json(arguments.out, found)
    print(json.dumps({name: found[name] for name in ("recall", "different", "files", "search")}, indent=1))


def _lit(curve: Callable[[np.ndarray], np.ndarray]) -> Callable[[Frames], Frames]:
    levels = np.clip(curve(np.arange(256.0)), 0, 255).astype(np.uint8)
    return lambda frames: levels[frames]


def _cropped(share: float) -> Callable[[Frames], Frames]:
    def crop(frames: Frames) -> Frames:
        top, left = (round(share * side) for side in frames.shape[1:3])
        return frames[:, top : frames.shape[1] - top, left : frames.shape[2] - left]

    return crop


def _with_logo(frames: Frames) -> Frames:
    """A white box in a corner, 0.18 of the width and 0.16 of the height."""
    frames = frames.copy()
    frames[:, 6:20, -34:-6] = 255
    return frames


def _with_bars(frames: Frames) -> Frames:
    bar = frames.shape[1] // 8
    return np.pad(frames, ((0, 0), (bar, bar), (0, 0), (0, 0)))


def _same(frames: Frames) -> Frames:
    return frames


CHANGES: dict[str, tuple[Callable[[Frames], Frames], int]] = {
    "crf 28": (_same, 28),
    "crf 35": (_same, 35),
    "half the size": (lambda frames: resize(frames, 46, 80), 28),
    "40 levels brighter": (_lit(lambda level: level + 40), 28),
    "gamma 0.7": (_lit(lambda level: 255 * (level / 255) ** 0.7), 28),
    "gamma 1.4": (_lit(lambda level: 255 * (level / 255) ** 1.4), 28),
    "3 % cropped from each side": (_cropped(0.03), 28),
    "10 % cropped from each side": (_cropped(0.1), 28),
    "logo": (_with_logo, 28),
    "letterboxed": (_with_bars, 28),
    "mirrored": (lambda frames: frames[:, :, ::-1], 28),
}
"""What is done to the film, and the quality with which x264 encodes it then."""


def _changed(
    film: Frames, change: Callable[[Frames], Frames], quality: int
) -> tuple[Hashes, Bool[np.ndarray, " frames"]]:
    """The film's hashes after a change; of a mirrored film, those that a mirrored test clip has."""
    parts = np.concatenate([change(film[start : start + 256]) for start in range(0, len(film), 256)])
    decoded = _encoded(parts[:, : parts.shape[1] // 2 * 2, : parts.shape[2] // 2 * 2], quality)
    return hash_frames(decoded[:, :, ::-1] if change is CHANGES["mirrored"][0] else decoded)


def _encoded(frames: Frames, quality: int) -> Frames:
    """The frames after x264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": str(quality)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as encoded:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in encoded.decode(video=0)])


def hash_frames(frames: Frames) -> tuple[Hashes, Bool[np.ndarray, " frames"]]:
    """The hash of every frame, scaled as a scan scales it, and whether it has one (else 0)."""
    hashes = []
    for picture in frames:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        small = frame.to_ndarray(format="rgb24", width=SIDE, height=SIDE, interpolation="AREA", threads=1)
        hashes.append(perceptual_hash(small.mean(axis=-1)))
    known = np.array([value is not None for value in hashes])
    return np.array([value or 0 for value in hashes], np.int64), known


def _bits(one: Hashes, other: Hashes) -> np.ndarray:
    return np.bitwise_count(one.view(np.uint64) ^ other.view(np.uint64))


def _shares(one: Hashes, other: Hashes, known: np.ndarray, also: np.ndarray) -> dict[str, float]:
    """The share of pairs that lie within each threshold."""
    bits = _bits(one, other)[known & also]
    return {str(limit): float((bits <= limit).mean()) for limit in THRESHOLDS}


def _shot_numbers() -> np.ndarray:
    """The shot of every frame of the film; -1 for none."""
    film = load_film()
    numbers = np.full(len(film.frames), -1)
    for number, shot in enumerate((*film.train, *film.test)):
        numbers[shot.start : shot.end] = number
    return numbers


def _later(true: Hashes, known: np.ndarray) -> dict[str, dict[str, float]]:
    """A frame against one of the same shot somewhat later."""
    shots, fps = _shot_numbers(), load_film().fps
    found = {}
    for seconds in (0.25, 0.5, 1.0):
        step = round(seconds * fps)
        same = (shots[step:] == shots[:-step]) & (shots[step:] >= 0)
        found[f"{seconds:g} s later"] = _shares(true[step:], true[:-step], known[step:] & same, known[:-step])
    return found


def _different(true: Hashes, known: np.ndarray) -> dict[str, Any]:
    """All pairs of frames of different shots: how many lie within each threshold."""
    shots, fps = _shot_numbers(), load_film().fps
    used = np.flatnonzero(known & (shots >= 0))
    counts = {"nearer": np.zeros(65, np.int64), "apart": np.zeros(65, np.int64)}
    for place, frame in enumerate(used):
        others = used[place + 1 :]
        others = others[shots[others] != shots[frame]]
        bits = distances(true[[frame]], true[others])[0]
        far = (others - frame) / fps >= APART
        counts["apart"] += np.bincount(bits[far], minlength=65)
        counts["nearer"] += np.bincount(bits[~far], minlength=65)
    return {"seconds_apart": APART} | {
        name: {
            "pairs": int(count.sum()),
            "within": {str(limit): int(count[: limit + 1].sum()) for limit in (*THRESHOLDS, 14, 16)},
        }
        for name, count in counts.items()
    }


Rule = Callable[[np.ndarray], bool]


def _rule(frames: int, bits: int) -> Rule:
    """At least ``frames`` frames on both sides within ``bits``, given all distances (footage, test)."""

    def holds(table: np.ndarray) -> bool:
        near = table <= bits
        return min(near.any(axis=1).sum(), near.any(axis=0).sum()) >= frames

    return holds


def _chosen(table: np.ndarray) -> bool:
    return _rule(FRAMES_NEEDED, THRESHOLD_BITS)(table) or _rule(1, ALONE_BITS)(table)


RULES: dict[str, Rule] = {
    **{f"1 within {bits}": _rule(1, bits) for bits in (4, 8)},
    **{f"2 within {bits}": _rule(2, bits) for bits in (6, 8, 10)},
    "chosen": _chosen,
}


def _files(true: Hashes, known: np.ndarray, other: Hashes) -> dict[str, Any]:
    """How often each rule names a pair of a test clip and footage that holds it, and one that shows other scenes."""
    draw = np.random.default_rng(0)
    fps = load_film().fps
    tables: dict[str, dict[str, float]] = {}
    for seconds in FOOTAGE_SECONDS:
        named = dict.fromkeys(RULES, 0)
        for _ in range(DRAWS):
            test, footage = _windows(draw, round(seconds * fps), round(TEST_SECONDS * fps))
            table = _table(true, known, other, test, footage, fps)
            for name, rule in RULES.items():
                named[name] += rule(table)
        tables[f"{seconds} s of footage"] = {name: count / DRAWS for name, count in named.items()}
    false = dict.fromkeys(RULES, 0)
    for _ in range(DRAWS):
        test, footage = _windows_apart(draw, round(APART * fps), round(TEST_SECONDS * fps))
        table = _table(true, known, other, test, footage, fps)
        for name, rule in RULES.items():
            false[name] += rule(table)
    return {"draws": DRAWS, "recall": tables, "false": {name: count / DRAWS for name, count in false.items()}}


def _windows(draw: np.random.Generator, footage: int, test: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The frames of a test clip and of footage that holds it; of footage as short as it, three quarters of it."""
    frames = len(load_film().frames)
    margin = test // 4 if footage == test else 0
    begin = int(draw.integers(margin, frames - max(footage, test) - margin))
    shift = int(draw.integers(-margin, margin + 1)) if margin else int(draw.integers(0, footage - test))
    return (begin + shift, begin + shift + test), (begin, begin + footage)


def _windows_apart(draw: np.random.Generator, footage: int, test: int) -> tuple[tuple[int, int], tuple[int, int]]:
    frames, gap = len(load_film().frames), int(APART * load_film().fps)
    while True:
        one, two = int(draw.integers(0, frames - test)), int(draw.integers(0, frames - footage))
        if two - (one + test) >= gap or one - (two + footage) >= gap:
            return (one, one + test), (two, two + footage)


def _table(
    true: Hashes, known: np.ndarray, other: Hashes, test: tuple[int, int], footage: tuple[int, int], fps: float
) -> np.ndarray:
    """The distances of the hashes that footage, not decoded whole, and a test clip would have."""
    dense = np.arange(*test, round(fps / FPS))
    count = places((footage[1] - footage[0]) / fps, PLACE_SECONDS)
    sparse = footage[0] + (footage[1] - footage[0]) * np.arange(count) // count
    return distances(np.unique(other[sparse[known[sparse]]]), np.unique(true[dense[known[dense]]]))


def _search(count: int) -> dict[str, Any]:
    """What a million hashes of footage cost against ``count`` hashes of test frames, and comparing all with all."""
    draw, limits = np.random.default_rng(0), np.iinfo(np.int64)
    tests, footage = (draw.integers(limits.min, limits.max, size, np.int64) for size in (count, SEARCHED))
    start = time.process_time()
    index = HashIndex(tests, THRESHOLD_BITS)
    built = time.process_time()
    index.near(footage)
    searched = time.process_time()
    some = footage[:100]
    for value in some:
        np.flatnonzero(_bits(tests, value[None]) <= THRESHOLD_BITS)
    compared = time.process_time()
    return {
        "test_hashes": count,
        "bits": THRESHOLD_BITS,
        "index_seconds": built - start,
        "seconds_per_million": 1e6 * (searched - built) / SEARCHED,
        "seconds_per_million_all_with_all": 1e6 * (compared - searched) / len(some),
    }


if __name__ == "__main__":
    main()
