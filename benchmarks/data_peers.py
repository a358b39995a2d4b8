"""Loaders written as V-JEPA 2's and VideoMAE's are: the whole frames of a clip, then crop and resize, in a ``DataLoader``."""

import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from nextvid.data.manifest import Manifest

FRAMES, RATE, SIZE, BATCH = 16, 4.0, 224, 8
SCALE, ASPECT = (0.3, 1.0), (0.75, 1.35)

Read = Callable[[str, np.random.Generator], np.ndarray]


class Clips(Dataset):
    """Random clips of files drawn at random, augmented as V-JEPA 2's are: crop and mirror, the same for all frames."""

    def __init__(self, paths: list[str], read: Read, count: int) -> None:
        self.paths, self.read, self.count = paths, read, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        draw = np.random.default_rng(number)
        frames = torch.from_numpy(self.read(self.paths[int(draw.integers(len(self.paths)))], draw))
        return _augmented(frames.permute(0, 3, 1, 2), draw)


def _augmented(frames: Tensor, draw: np.random.Generator) -> Tensor:
    height, width = frames.shape[-2:]
    area, aspect = height * width * draw.uniform(*SCALE), np.exp(draw.uniform(*np.log(ASPECT)))
    tall, wide = min(height, round((area / aspect) ** 0.5)), min(width, round((area * aspect) ** 0.5))
    top, left = int(draw.integers(height - tall + 1)), int(draw.integers(width - wide + 1))
    window = frames[..., top : top + tall, left : left + wide].float()
    resized = interpolate(window, (SIZE, SIZE), mode="bilinear")
    return (resized.flip(-1) if draw.random() < 0.5 else resized).to(torch.uint8)


def decord_reader(threads: int) -> Read:
    """V-JEPA 2 opens a file with as many threads as there are cores (-1), VideoMAE with one."""
    decord: Any = importlib.import_module("decord")

    def read(path: str, draw: np.random.Generator) -> np.ndarray:
        video = decord.VideoReader(path, num_threads=threads, ctx=decord.cpu(0))
        step = max(1, round(video.get_avg_fps() / RATE))
        start = int(draw.integers(max(1, len(video) - FRAMES * step)))
        video.seek(0)
        return video.get_batch(np.minimum(start + step * np.arange(FRAMES), len(video) - 1)).asnumpy()

    return read


def read_by_pyav(path: str, draw: np.random.Generator) -> np.ndarray:
    """Seek to the key frame before, decode up to the last frame, keep those wanted at full size."""
    with av.open(path) as container:
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = 1
        fps, base = float(stream.average_rate), float(stream.time_base)
        seconds = float(stream.duration * stream.time_base)
        times = draw.random() * max(0.0, seconds - FRAMES / RATE) + np.arange(FRAMES) / RATE
        container.seek(int(times[0] / base), stream=stream)
        frames: list[np.ndarray] = []
        for frame in container.decode(stream):
            while len(frames) < FRAMES and frame.pts * base + 0.5 / fps >= times[len(frames)]:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == FRAMES:
                break
        return np.stack(frames + frames[-1:] * (FRAMES - len(frames)))


def peer_rate(paths: list[str], read: Read, workers: int, clips: int) -> float:
    """Clips a second, once the loader runs."""
    data = Clips(paths, read, clips + 4 * BATCH)
    stream = iter(DataLoader(data, BATCH, num_workers=workers, worker_init_fn=_one_thread))
    for _ in range(4):
        next(stream)
    start = time.perf_counter()
    count = sum(len(batch) for batch in stream)
    return count / (time.perf_counter() - start)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def readers() -> dict[str, Read]:
    """By name; decord's where it is installed."""
    found: dict[str, Read] = {"PyAV": read_by_pyav}
    if importlib.util.find_spec("decord") is not None:
        found |= {
            "decord, all threads (V-JEPA 2)": decord_reader(-1),
            "decord, one thread (VideoMAE)": decord_reader(1),
        }
    return found


def peers(originals: Path, workers: int, repeats: int, ours: Callable[[Path, int, int], float]) -> dict[str, Any]:
    """Our clips a second over those of each peer, on the same files, in turn."""
    rows = Manifest(originals)
    paths = [str(rows[number].place) for number in range(len(rows))]
    rates: dict[str, list[float]] = {"nextvid": []}
    for _ in range(repeats):
        rates["nextvid"].append(ours(originals, workers, 48))
        for name, read in readers().items():
            rates.setdefault(name, []).append(peer_rate(paths, read, workers, 48))
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(rates["nextvid"], rates[name], strict=True)), 3)
        for name in rates
        if name != "nextvid"
    }
    return {
        "clips_per_second": {name: [round(r, 2) for r in values] for name, values in rates.items()},
        "ratio": ratios,
    }
