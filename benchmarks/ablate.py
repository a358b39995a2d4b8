"""Small ablations of a recipe at equal steps: pretrain with overrides, probe, and append a row to a results file.

    python benchmarks/ablate.py --steps 400 --out runs/ablations "base" "fast reference: stages.0.ema=0.99 stages.1.ema=0.99"

``--steps`` counts all stages; the second one takes what the others leave. Each argument is a row's name, then perhaps a
colon and overrides separated by blanks. Rows that are in the results file already are skipped, so that a study that was
stopped goes on. Every row is read on a held-out part of train as well as on test: choose by the held-out figure.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nextvid.config import Recipe, load_recipe
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import Measurement, prepare, random_encoder
from nextvid.evaluation.features import Encode
from nextvid.inference.load import load
from nextvid.training.loop import pretrain


def main() -> None:
    """Run the rows that are named on the command line."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    results: Path = arguments.out / "ablations.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["row"] for line in results.read_text().splitlines()} if results.is_file() else set()
    for text in arguments.rows:
        name, _, overrides = text.partition(":")
        if name in done:
            continue
        row = {"row": name, "overrides": overrides.split(), **run_row(name, overrides.split(), arguments, console)}
        with results.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        console.print(row, highlight=False)


def run_row(name: str, overrides: list[str], arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Pretrain one row in a folder of its own, probe it, and give its figures."""
    first = load_recipe(arguments.recipe, overrides)
    main_steps = arguments.steps - (first.steps - first.stages[1].steps)
    if main_steps < 1:
        raise SystemExit(f"--steps {arguments.steps} leaves none for the second stage of recipe '{first.name}'")
    fixed = ["data.workers=0", f"training.threads={arguments.threads}", f"stages.1.steps={main_steps}"]
    recipe = load_recipe(arguments.recipe, [*overrides, *fixed])
    folder = arguments.out / name.replace(" ", "_").replace("/", "-")
    figures: dict[str, Any] = {}
    if name.startswith("random"):
        encode: Encode = random_encoder(recipe.encoder, recipe.seed)
    else:
        figures = pretrain(recipe, folder, console=console)["pretrain"]
        encode = load(folder)
        figures["last"] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    figures["probe"] = {m.benchmark: _scores(m, encode) for m in measurements(recipe, arguments)}
    if not arguments.keep:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return figures


def measurements(recipe: Recipe, arguments: argparse.Namespace) -> list[Measurement]:
    """The benchmarks that every row is read on."""
    last = recipe.stages[-1]
    spec = ClipSpec(last.frames, last.fps, last.size)
    named = [text.partition("/") for text in arguments.benchmarks]
    return [
        prepare(b, level, spec, arguments.train_clips, arguments.test_clips, progress=False) for b, _, level in named
    ]


def _scores(measurement: Measurement, encode: Encode) -> dict[str, Any]:
    found = measurement.probe_all(encode, list(measurement.train.tasks), progress=False)
    return {
        t: {"top1": r.top1, "ci95": r.ci95, "held_out_top1": r.held_out_top1, "lr": r.best_lr} for t, r in found.items()
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-clips", type=int, default=2000)
    parser.add_argument("--test-clips", type=int, default=1500)
    parser.add_argument("--benchmarks", nargs="+", default=["moving-sprites/plain", "camera-moves/still"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="Keep the checkpoints.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
