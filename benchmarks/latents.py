"""What stored latents save: steps of training that read them, beside steps that encode, and the disk that they take.

    python benchmarks/latents.py

Footage: the first seconds of the built-in film, prepared as by ``nextvid prepare``. Two recipes: the tiny one at 32 pixels in the
latents of ``vae-film``, and a VA-VAE-shaped autoencoder (f16d32, 69.8 M parameters, random weights) under an encoder of patches
of 16 at 64 pixels. Steps with and without alternate, on the same clips, on one thread and with no worker, so that decoding and
reading count; other processes may use the same cores, so seconds are those of the processor, and the clock's beside them;
medians. The losses of both are compared, too: they are to be the same.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.console import Console

from nextvid.config import Recipe, load_recipe
from nextvid.data.film import load_film
from nextvid.data.loader import Batch, batches
from nextvid.files import replace_json
from nextvid.footage.latents import LatentSettings, prepare_latents
from nextvid.footage.plan import PrepareSettings
from nextvid.footage.prepare import prepare_footage
from nextvid.footage.scan import scan
from nextvid.models.autoencoder import Autoencoder, AutoencoderConfig
from nextvid.targets.vae_file import write_vae
from nextvid.training.device import processor_name
from nextvid.training.footage import build_mixtures
from nextvid.training.latents import use_latents
from nextvid.training.trainer import Trainer, build_trainer, plan_of, train_step

FORMAT_VERSION = 1
OUT = Path(__file__).parent / "results" / "latents.json"
QUIET = Console(quiet=True)
SECONDS = 20
COMMON = ["data.workers=0", "training.threads=1", "training.device=cpu", "data.augmentation={crop: center}"]
WIDE = [
    "encoder={size: tiny, patch: 16}",
    "stages.*.size=64",
    "stages.*.batch=4",
    "stages.*.frames=8",
]


def write_film(path: Path) -> Path:
    """The first seconds of the film, as a file of its own."""
    film = load_film()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=round(film.fps))
        stream.height, stream.width = film.frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for picture in film.frames[: round(SECONDS * film.fps)]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.array(picture), format="rgb24")))
        container.mux(stream.encode())
    return path


def random_vae(path: Path) -> Path:
    """An autoencoder of VA-VAE's shape that was never trained."""
    torch.manual_seed(0)
    config = AutoencoderConfig()
    channels = config.latent_channels
    write_vae(Autoencoder(config).state_dict(), torch.zeros(channels), torch.ones(channels), config, {}, path)
    return path


def recipe_of(shards: Path, weights: str, latents: bool, overrides: list[str]) -> Recipe:
    """The tiny recipe on the shards, in an autoencoder's latents."""
    sources = f"data.sources=[{{path: {shards}}}]"
    target = f"objective.target={{name: vae, weights: {weights}}}"
    return load_recipe("tiny", [*COMMON, sources, target, f"data.latents={str(latents).lower()}", *overrides])


class Training:
    """A run in memory, a step at a time."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self.trainer: Trainer = build_trainer(recipe)
        mixtures = build_mixtures(recipe, None, QUIET)
        use_latents(self.trainer.objective, recipe, mixtures)
        self.stage = recipe.main_stage
        self.trainer.progress.step = sum(stage.steps for stage in recipe.stages[: recipe.longest_stage])
        plans = [plan_of(self.trainer.schedule, self.trainer.progress.step + n) for n in range(steps)]
        self.stream: Iterator[Batch] = batches(mixtures, plans)
        self.rows: list[dict[str, float]] = []

    def step(self) -> None:
        """Draw a batch and train on it, both timed."""
        begun = time.monotonic()
        data, batch = _timed(lambda: next(self.stream))
        seconds, result = _timed(lambda: train_step(self.trainer, batch))
        self.trainer.progress.step += 1
        row = {"data": data, "step": seconds, "all": data + seconds, "clock": time.monotonic() - begun}
        self.rows.append({**row, "loss": result.figures["loss"]})

    def medians(self) -> dict[str, float]:
        """Processor seconds of a batch, of a step on it, and of both; and the clock's. The first step does not count."""
        return {
            name: statistics.median(row[name] for row in self.rows[1:]) for name in ("data", "step", "all", "clock")
        }


def _timed(work: Any) -> tuple[float, Any]:
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


def measure(shards: Path, weights: str, size: int, overrides: list[str], steps: int) -> dict[str, Any]:
    """Steps with and without stored latents, and what these take."""
    stored = prepare_latents(shards, LatentSettings(f"vae:{weights}", size), console=QUIET)
    trainings = {
        latents: Training(recipe_of(shards, weights, latents, overrides), steps + 1) for latents in (False, True)
    }
    for _ in range(steps + 1):
        for training in trainings.values():
            training.step()
    encoded, read = (trainings[latents].medians() for latents in (False, True))
    apart = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(*(t.rows for t in trainings.values()), strict=True)]
    stage = trainings[True].stage
    return {
        "stage": stage.name,
        "size": size,
        "batch": stage.batch,
        "frames": stage.frames,
        "steps": steps,
        "seconds_encoding": encoded,
        "seconds_reading": read,
        "share_saved": 1 - read["all"] / encoded["all"],
        "times_as_fast": encoded["all"] / read["all"],
        "largest_relative_difference_of_losses": max(apart),
        "map": stored["map"],
        "bytes_a_frame": stored["bytes"] / stored["frames"],
        "gigabytes_an_hour": stored["bytes"] / stored["hours"] / 1e9,
        "gigabytes_an_hour_at_25_fps": stored["bytes"] / stored["frames"] * 25 * 3600 / 1e9,
        "encoded_frames_per_second": stored["time"]["frames_per_second"],
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--wide-steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="latents-") as name:
        folder = Path(name)
        write_film(folder / "film.mp4")
        scan([str(folder / "film.mp4")], folder / "film.parquet", workers=1, console=QUIET)
        settings = PrepareSettings(short_side=64)
        prepared = prepare_footage(folder / "film.parquet", folder / "shards", settings, workers=1, console=QUIET)
        wide = str(random_vae(folder / "vavae.safetensors"))
        found = {
            "tiny, vae-film": measure(folder / "shards", "vae-film", 32, [], options.steps),
            "VA-VAE's shape": measure(folder / "shards", wide, 64, WIDE, options.wide_steps),
        }
    for case, figures in found.items():
        print(
            f"{case}: {figures['seconds_encoding']['all']:.3f} s a step encoding, {figures['seconds_reading']['all']:.3f} s "
            f"reading ({figures['times_as_fast']:.2f} times as fast), losses within "
            f"{figures['largest_relative_difference_of_losses']:.1e}, {figures['gigabytes_an_hour']:.2f} GB an hour"
        )
    replace_json(
        options.out,
        {
            "format_version": FORMAT_VERSION,
            "command": " ".join(["python", "benchmarks/latents.py", *sys.argv[1:]]),
            "machine": {"processor": processor_name(), "torch": torch.__version__, "threads": 1},
            "precision": "float32",
            "footage": {"seconds": SECONDS, "fps": load_film().fps, "clips": prepared["clips"]},
            "shards_gigabytes_an_hour": prepared["bytes_out"] / prepared["hours"] / 1e9,
            "cases": found,
        },
    )


if __name__ == "__main__":
    main()
