"""Ablations of a recipe at equal compute: pretrain with overrides, read, draw, and append a row to a results file.

    python benchmarks/ablate.py --steps 1000 --seeds 0 1 2 --out runs/ablations \\
        "base" "no alignment: 'stages.*.weights={flow: 0.5, alignment: 0}'" "large patches: encoder.patch=8"

Each argument is a row's name, then perhaps a colon and overrides separated by blanks. ``--steps`` is what the recipe itself
would take, all stages together; a row whose steps cost more or less takes fewer or more of them (its longest stage is cut
or stretched), so that all rows cost the same floating-point operations. Rows that are in the results file already are
skipped, so that a study that was stopped goes on, and several processes may each do a part of the rows in one folder.
Every figure is of clips of the train part: the probe is scored on clips that it was not trained on, and the test part is
not touched. Its learning rate is the best of four on those same clips, for every row alike.
"""

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nextvid.config import Recipe, load_recipe
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import random_encoder
from nextvid.evaluation.features import Encode, RenderedClips, features, render
from nextvid.evaluation.fitting import fit_probe
from nextvid.evaluation.generation import draw_next_frames, load_drawing
from nextvid.evaluation.likeness import figures
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.scores import wilson
from nextvid.inference.load import load
from nextvid.training.compute import total_flops, with_flops
from nextvid.training.loop import pretrain

TRAIN_CLIPS, HELD_OUT = 4000, 0.375
DRAWN, DRAWN_FROM = 50, 10_000
"""Clips that are drawn, and the number of the first: none that a probe reads."""


def main() -> None:
    """Run the rows that are named on the command line, once a seed."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    results: Path = arguments.out / "ablations.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for text in arguments.rows:
            name, _, overrides = text.partition(":")
            asked = {"row": name, "seed": seed, "overrides": shlex.split(overrides)}
            asked |= {"recipe": arguments.recipe, "steps_of_recipe": arguments.steps}
            if _is_done(results, asked):
                continue
            row = {**asked, **run_row(name, asked["overrides"], seed, arguments)}
            with results.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
            print(_sentence(row), flush=True)


def run_row(name: str, overrides: list[str], seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pretrain one row in a folder of its own (a row called ``untrained`` is not), read it, and give its figures."""
    base = [f"seed={seed}", "data.workers=0", f"training.threads={arguments.threads}"]
    recipe = _with_steps(arguments, [*base, *overrides])
    if name == "untrained":
        return {"probe": _read(random_encoder(recipe.encoder, seed), recipe, arguments.benchmarks)}
    folder = arguments.out / f"{name}-{seed}".replace(" ", "_").replace("/", "-")
    started = time.monotonic()
    pretrain(recipe, folder, console=Console(quiet=True))
    row: dict[str, Any] = {"steps": recipe.steps, "flops": total_flops(recipe)}
    row["seconds"] = time.monotonic() - started
    row["last"] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    row["probe"] = _read(load(folder), recipe, arguments.benchmarks)
    row["drawn"] = _draw(folder, recipe)
    if not arguments.keep:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return row


def _with_steps(arguments: argparse.Namespace, overrides: list[str]) -> Recipe:
    """The row's recipe with as many steps as ``--steps`` of the bare recipe cost."""
    bare, row = load_recipe(arguments.recipe), load_recipe(arguments.recipe, overrides)
    a_step = total_flops(bare) / bare.steps
    return with_flops(row, round(arguments.steps * a_step))


def _read(encode: Encode, recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """Held-out accuracy of every task of every benchmark/level."""
    config = ProbeConfig(held_out=HELD_OUT, epochs=10)
    found: dict[str, Any] = {}
    for name in names:
        clips = _rendered(name, _spec(recipe))
        seen = features(encode, clips, progress=False)
        for task in clips.tasks:
            fitted = fit_probe(seen, task, config, progress=False)
            share, count = fitted.best.held_out_top1, fitted.held_out_clips
            found[f"{name}/{task}"] = {"top1": share, "ci95": wilson(round(share * count), count), "lr": fitted.best.lr}
    return found


def _draw(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Next frames of sprites over still pictures."""
    objective, _ = load_drawing(folder)
    wanted = range(DRAWN_FROM, DRAWN_FROM + DRAWN)
    clips = benchmarks.load("moving-sprites", "still", "train", DRAWN_FROM + DRAWN)
    drawn = draw_next_frames(objective, render(clips, _spec(recipe), wanted, progress=False).frames, progress=False)
    return figures(drawn)


@cache
def _rendered(name: str, spec: ClipSpec) -> RenderedClips:
    benchmark, _, level = name.partition("/")
    return render(benchmarks.load(benchmark, level, "train", TRAIN_CLIPS), spec, progress=False)


def _spec(recipe: Recipe) -> ClipSpec:
    last = recipe.stages[-1]
    return ClipSpec(last.frames, last.fps, last.size)


def _is_done(results: Path, asked: dict[str, Any]) -> bool:
    """Whether the results have this row and seed; a stop where they have it of other settings."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    for row in rows:
        if (row["row"], row["seed"]) == (asked["row"], asked["seed"]):
            if asked.items() <= row.items():
                return True
            raise SystemExit(
                f"{results} has a row '{row['row']}' of other settings; give it another name, or another --out"
            )
    return False


def _sentence(row: dict[str, Any]) -> str:
    parts = [f"{task} {100 * found['top1']:.1f}" for task, found in row["probe"].items()]
    parts += [f"PSNR {row['drawn']['next_frame']['psnr']:.2f} dB"] if "drawn" in row else []
    return f"{row['row']} (seed {row['seed']}, {row.get('steps', 0)} steps): " + ", ".join(parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--benchmarks", nargs="+", default=["moving-sprites/film"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="Keep the checkpoints.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
