"""The tiny recipe in every target space for equal steps, and the probe table of ``nextvid compare``.

    python benchmarks/targets.py --out runs/targets
    python benchmarks/targets.py --out runs/targets "not aligned: objective.target.weights=runs/vae-not-aligned"

Trains the recipe once a space with the same seed, clips, masks and steps, or goes on where it was stopped, probes every run on
two benchmarks, and writes the page, the table and a results file. ``--scale`` shortens every stage alike. An argument is one more
row: a name, a colon, and overrides on top of the ``vae`` row's.

``autoencoder_kl`` is a small one of diffusers' class with random weights, since no trained ones come with a package: a floor for
what a space must offer. ``features`` are those of a layer in the middle of EfficientNet-Lite0 (one cell every 8 pixels), which
wants frames of twice the size; its deeper layers want four times.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nextvid.comparison import compare_runs, table_of
from nextvid.config import Recipe, load_recipe
from nextvid.files import replace_json
from nextvid.training.device import processor_name
from nextvid.training.loop import pretrain

FORMAT_VERSION = 1
READ = (("moving-sprites", "film"), ("camera-moves", "still"))
VAE = ["objective.target={name: vae, weights: vae-film}"]


def main() -> None:
    """Train, probe, print."""
    arguments = _arguments()
    console = Console()
    rows = _rows(arguments)
    folders = []
    for name, overrides in rows.items():
        console.rule(name)
        given = [f"name={name}", f"seed={arguments.seed}", f"training.threads={arguments.threads}", *overrides]
        folders.append(arguments.out / name.replace(" ", "-"))
        pretrain(_scaled(load_recipe(arguments.recipe, given), arguments.scale), folders[-1], console=console)
    origins = [str(folder) for folder in folders]
    found: dict[str, Any] = {}
    for benchmark, level in READ:
        page = arguments.out / "compare.html"
        found = compare_runs(origins, benchmark, level, arguments.train_clips, arguments.test_clips, page, console)
    console.print(table_of(found))
    replace_json(
        arguments.results,
        {
            "format_version": FORMAT_VERSION,
            "command": shlex.join(["python", *sys.argv]),
            "processor": processor_name(),
            "torch": torch.__version__,
            "seed": arguments.seed,
            "rows": {name: _row(run, folder) for name, run, folder in zip(rows, found["runs"], folders, strict=True)},
        },
    )


def _scaled(recipe: Recipe, scale: float) -> Recipe:
    stages = [stage.model_copy(update={"steps": max(1, round(scale * stage.steps))}) for stage in recipe.stages]
    return recipe.model_copy(update={"stages": stages})


def _rows(arguments: argparse.Namespace) -> dict[str, list[str]]:
    rows = {
        "pixels": ["objective.target={name: pixels, basis: dct, whiten: 0.25}"],
        "vae": VAE,
        "autoencoder_kl": [f"objective.target={{name: autoencoder_kl, weights: {_random_autoencoder(arguments.out)}}}"],
        "features": ["objective.target={name: features, layer: 4}"],
    }
    for text in arguments.rows:
        name, _, overrides = text.partition(":")
        rows[name] = [*VAE, *shlex.split(overrides)]
    return rows


def _random_autoencoder(out: Path) -> Path:
    """A folder of diffusers' ``AutoencoderKL`` at the size of the packaged autoencoder, with the weights that it starts with."""
    folder = out / "random-autoencoder"
    if not (folder / "config.json").is_file():
        from diffusers import AutoencoderKL  # noqa: PLC0415 (seconds to import)

        torch.manual_seed(0)
        network: Any = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        )
        network.save_pretrained(folder)
    return folder


def _row(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    probes = {
        name: {key: probe[key] for key in ("top1", "ci95", "train_clips", "test_clips", "baselines")}
        for name, probe in run["probes"].items()
    }
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    kept = ("flow", "alignment", "alignment_skill", "feature_spread", "effective_rank")
    return {
        "steps": run["steps"],
        "seconds": run["seconds"],
        "flops": run["flops"],
        "last": {key: last[key] for key in kept if key in last},
        "probes": probes,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="further rows: 'name: overrides'")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/targets"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/targets-tiny.json"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the recipe's steps, stage by stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-clips", type=int, default=None)
    parser.add_argument("--test-clips", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
