"""The four official benchmarks in miniature: a few short clips of two classes, red and blue, in the layouts of the releases."""

import csv
import json
from pathlib import Path

import numpy as np
from media import write_video
from PIL import Image

from nextvid.data.benchmarks import official

TRAIN, TEST = 12, 6
COLOURS = ((200, 40, 40), (40, 40, 200))


def clip(path: Path, label: int, number: int, frames: int = 24, size: tuple[int, int] = (48, 64)) -> Path:
    """Noise tinted by its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "libvpx" if path.suffix == ".webm" else "libx264"
    return write_video(path, list(pictures(label, number, frames, size)), codec=codec)


def pictures(label: int, number: int, frames: int, size: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(number).integers(-30, 30, (frames, *size, 3))
    return np.clip(noise + np.array(COLOURS[label]), 0, 255).astype(np.uint8)


def kinetics400(root: Path) -> Path:
    names = ("abseiling", "zumba")
    for word, count, first in (("train", TRAIN, 0), ("val", TEST, 100)):
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{word}.csv").open("w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow(["label", "youtube_id", "time_start", "time_end", "split", "is_cc"])
            for number in range(first, first + count):
                rows.writerow([names[number % 2], f"{number:011d}", 1, 11, word, 0])
                clip(root / word / f"{number:011d}_000001_000011.mp4", number % 2, number)
    return root


def ssv2(root: Path) -> Path:
    names = [official.class_map("ssv2")[label] for label in (3, 90)]
    for word, count, first in (("train", TRAIN, 0), ("validation", TEST, 100)):
        rows = [{"id": str(n), "template": names[n % 2]} for n in range(first, first + count)]
        root.mkdir(parents=True, exist_ok=True)
        (root / f"something-something-v2-{word}.json").write_text(json.dumps(rows))
        for number in range(first, first + count):
            clip(root / "20bn-something-something-v2" / f"{number}.webm", number % 2, number)
    return root


def diving48(root: Path) -> Path:
    for word, count, first in (("train", TRAIN, 0), ("test", TEST, 100)):
        rows = [
            {"vid_name": f"dive{n}", "label": (5, 40)[n % 2], "start_frame": 0, "end_frame": 20}
            for n in range(first, first + count)
        ]
        root.mkdir(parents=True, exist_ok=True)
        (root / f"Diving48_V2_{word}.json").write_text(json.dumps(rows))
        for number in range(first, first + count):
            clip(root / "rgb" / f"dive{number}.mp4", number % 2, number)
    return root


def imagenet1k(root: Path) -> Path:
    for word, count, first in (("train", TRAIN, 0), ("val", TEST, 100)):
        for number in range(first, first + count):
            folder = root / word / ("n01440764", "n15075141")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture = pictures(number % 2, number, 1, (48, 64))[0]
            Image.fromarray(picture).save(folder / f"{folder.name}_{number}.JPEG", quality=95)
    return root


TREES = {"kinetics400": kinetics400, "ssv2": ssv2, "diving48": diving48, "imagenet1k": imagenet1k}
