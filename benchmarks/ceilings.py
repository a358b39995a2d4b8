"""Supervised ceilings of the built-in benchmarks: an encoder of the recipe's size trained end to end on the labels.

    python benchmarks/ceilings.py camera-moves/still --steps 3000
    python benchmarks/ceilings.py moving-sprites/film --init nextvid-tiny --batch 16

``--init`` starts from a pretrained encoder: over moving film, labels alone leave an encoder at chance for longer than
anyone here has waited. Writes ``nextvid/evaluation/ceilings.json``, which the probe's tables quote.
"""

import argparse
import json
from typing import Any

import torch

from nextvid.config import load_recipe
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import CEILINGS
from nextvid.evaluation.features import render
from nextvid.evaluation.supervised import SupervisedConfig, fresh_clips, train_supervised
from nextvid.files import replace_json
from nextvid.inference.load import load
from nextvid.models.encoder import Encoder, EncoderConfig
from nextvid.randomness import key_of

ENDLESS = 10_000_000
"""The length of the train split that clips are drawn from: no clip comes twice."""


def main() -> None:
    """Train a ceiling for each benchmark/level that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--init", help="A released encoder or a run's folder, of the recipe's shape.")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--probe-lr", type=float, default=3e-3)
    parser.add_argument("--test-clips", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for text in arguments.benchmarks:
        benchmark, _, level = text.partition("/")
        _add(_ceiling(benchmark, level, arguments))


def _ceiling(benchmark: str, level: str, arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = load_recipe(arguments.recipe)
    last = recipe.stages[-1]
    spec = ClipSpec(last.frames, last.fps, last.size)
    test = render(benchmarks.load(benchmark, level, "test", arguments.test_clips), spec)
    clips = fresh_clips(benchmarks.load(benchmark, level, "train", ENDLESS), spec, arguments.batch)
    torch.manual_seed(key_of("supervised", recipe.seed))
    encoder = load(arguments.init).encoder.requires_grad_(True) if arguments.init else Encoder(recipe.encoder)
    config = SupervisedConfig(steps=arguments.steps, lr=arguments.lr, probe_lr=arguments.probe_lr)
    result = train_supervised(encoder, encoder.config.width, clips, test, config)
    how = (
        f"{arguments.steps} steps of {arguments.batch} fresh clips, AdamW, lr {arguments.lr:g} "
        f"(probes {config.probe_lr:g}), {_origin(arguments.init, encoder.config)}, benchmarks/ceilings.py"
    )
    return {
        f"{benchmark}/{level}/{task}/{spec.frames}x{spec.size}@{spec.fps:g}": {
            "top1": score.top1,
            "ci95": list(score.ci95),
            "how": how,
        }
        for task, score in result.tasks.items()
    }


def _origin(init: str | None, config: EncoderConfig) -> str:
    """Which encoder it is and where it started."""
    start = f"from the weights of {init}" if init else "from nothing"
    return f"width {config.width}, depth {config.depth}, patches of {config.patch}, reads {config.input}, {start}"


def _add(entries: dict[str, Any]) -> None:
    known = json.loads(CEILINGS.read_text()) if CEILINGS.is_file() else {}
    replace_json(CEILINGS, {**known, **entries})
    for name, entry in entries.items():
        print(f"{name}: {100 * entry['top1']:.1f}")


if __name__ == "__main__":
    main()
