"""What probing costs, and what its choices are worth: the grid, cached features, selection on the test split, standardising.

    python benchmarks/probe.py grid whole cache selection standardise -o benchmarks/results/probe.json

``grid``: a training step of 20 probes of depth 1 side by side, as a ratio to a step of one (the same code) and of one plain
``AttentiveProbe`` with PyTorch's AdamW, on a small encoder's tokens. ``whole``: the same of a whole probe.
``cache``: 20 epochs from cached features, as a ratio to
reading and encoding in every epoch as V-JEPA 2 does, and both accuracies. ``selection``: how much choosing the best head on the
test split adds to the accuracy that is reported. ``standardise``: what standardised features are worth to each encoder.
Timings alternate between the two sides, on this machine as it is.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console

from nextvid.config import load_recipe
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.baseline_encoders import BaselineEncoder, baseline_encoders
from nextvid.evaluation.benchmark import random_encoder
from nextvid.evaluation.encoders import FrozenEncoder, open_encoder
from nextvid.evaluation.features import Features
from nextvid.evaluation.fitting import fit_probe
from nextvid.evaluation.grid import GridAdamW, ProbeGrid
from nextvid.evaluation.probe import FittedProbe, ProbeConfig
from nextvid.evaluation.protocol import EvalRecipe
from nextvid.evaluation.session import Reading, Session, Where
from nextvid.files import read_json, replace_json

LRS, DECAYS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)
WIDTH, TOKENS, BATCH, CLASSES, HEADS = 384, 392, 64, 174, 16
"""Tokens of a small ViT: 16 frames of 112 pixels in patches of 16 and tubelets of 2."""
ROUNDS = 7
TEST_SIZES = (100, 250, 500, 1000)
DRAWS = 400


def main() -> None:
    """Measure what is asked for, and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=list(MEASURES))
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/probe.json"))
    parser.add_argument("--encoder", default="nextvid-tiny", help="as nextvid probe takes it, or untrained:RECIPE")
    parser.add_argument("--size", type=int, help="pixels a side; by default the encoder's own")
    parser.add_argument("--few-heads", action="store_true", help="the built-in recipe's 4 heads in place of 20")
    parser.add_argument("--as", dest="called", help="the name of the figures in the file; by default what is measured")
    parser.add_argument("--train-clips", type=int, default=400)
    parser.add_argument("--test-clips", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = read_json(options.out)
    for what in options.what:
        Console().print(f"{what} …")
        found[options.called or what] = {
            **MEASURES[what](options),
            "threads": options.threads,
            "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
            f"torch {torch.__version__}",
        }
        replace_json(options.out, found)
        Console().print(found[options.called or what])


def grid(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step of 20 probes, of one, and of one plain probe; medians over alternating rounds."""
    tokens = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float16)
    labels = torch.randint(CLASSES, (BATCH,))
    sides = {
        "grid_of_20": _grid_step(tokens, labels, [(lr, decay) for lr in LRS for decay in DECAYS]),
        "grid_of_1": _grid_step(tokens, labels, [(1e-3, 0.1)]),
        "plain_probe": _plain_step(tokens, labels),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(ROUNDS + 1):
        for name, step in sides.items():
            started = time.perf_counter()
            step()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "seconds_a_step": median,
        "ratio_to_one": median["grid_of_20"] / median["grid_of_1"],
        "ratio_to_plain": median["grid_of_20"] / median["plain_probe"],
        "shape": {"batch": BATCH, "tokens": TOKENS, "width": WIDTH, "classes": CLASSES, "heads": HEADS},
    }


def _grid_step(tokens: torch.Tensor, labels: torch.Tensor, members: list[tuple[float, float]]) -> Callable[[], None]:
    probes = ProbeGrid([AttentiveProbe(WIDTH, CLASSES, HEADS)] * len(members))
    rates, decays = torch.tensor(members).unbind(1)
    optimiser = GridAdamW(probes, rates, decays)

    def step() -> None:
        logits = probes(probes.prepare(tokens.float()))
        F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(members)), reduction="sum").div(BATCH).backward()
        optimiser.step(1.0)

    return step


def _plain_step(tokens: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    probe = AttentiveProbe(WIDTH, CLASSES, HEADS)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.1)

    def step() -> None:
        F.cross_entropy(probe(tokens.float()), labels).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def cache(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of 20 epochs, and the test accuracy, from fresh and from cached features, augmented or not.

    All work is done in this process, whose own time is what counts, so that others on the machine matter little.
    """
    found: dict[str, Any] = {}
    augmented: dict[str, Any] = {"augmentation": {"crop_scale": [0.6, 1.0], "erase": 0.25}}
    settings: dict[str, Any]
    for name, settings in {
        "fresh": {"features": "fresh"},
        "cached": {"features": "cached"},
        "fresh_augmented": {"features": "fresh", **augmented},
        "cached_augmented": {"features": "cached", "copies": 4, **augmented},
    }.items():
        recipe = _recipe(options, **settings)
        with tempfile.TemporaryDirectory() as folder:
            session = _session(recipe, options, Path(folder))
            readings: list[Reading] = []
            started = time.process_time()
            session.read([_encoder(options)], readings.append)
            seconds = time.process_time() - started
        scores = readings[0].result.scores
        found[name] = {"seconds": seconds, "top1": scores.top1, "ci95": list(scores.ci95)}
        Console().print(name, found[name])
    return {
        **found,
        "times_faster": found["fresh"]["seconds"] / found["cached"]["seconds"],
        "times_faster_augmented": found["fresh_augmented"]["seconds"] / found["cached_augmented"]["seconds"],
        "encoder": options.encoder,
        "train_clips": options.train_clips,
        "test_clips": options.test_clips,
        "epochs": 20,
        "heads": len(_recipe(options).members()),
    }


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of a whole probe of moving sprites, clips made and encoded, with 20 heads and with one."""
    seconds = {}
    settings: dict[str, Any]
    for name, settings in {
        "heads_20": {},
        "heads_1": {"lrs": (1e-3,), "weight_decays": (0.1,)},
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            session = _session(_recipe(options, features="cached", **settings), options, Path(folder))
            started = time.process_time()
            session.read([_encoder(options)], lambda reading: None)
            seconds[name] = time.process_time() - started
    return {
        "seconds": seconds,
        "ratio": seconds["heads_20"] / seconds["heads_1"],
        "encoder": options.encoder,
        "train_clips": options.train_clips,
        "test_clips": options.test_clips,
        "epochs": 20,
        "heads": len(_recipe(options).members()),
    }


def _encoder(options: argparse.Namespace) -> FrozenEncoder:
    """An encoder as ``nextvid probe`` opens it, or an untrained one of a recipe's shape and clips."""
    kind, _, name = options.encoder.partition(":")
    if kind != "untrained":
        return open_encoder(options.encoder)
    recipe = load_recipe(name)
    main = recipe.main_stage
    spec = ClipSpec(main.frames, main.fps, options.size or main.size)
    return BaselineEncoder(options.encoder, random_encoder(recipe.encoder), spec)


def _recipe(options: argparse.Namespace, **settings: Any) -> EvalRecipe:
    heads = {} if options.few_heads else {"lrs": LRS, "weight_decays": DECAYS}
    return EvalRecipe(
        **{
            **heads,
            "size": options.size,
            "train_clips": options.train_clips,
            "test_clips": options.test_clips,
            "workers": 0,
            **settings,
        }
    )


def _session(recipe: EvalRecipe, options: argparse.Namespace, folder: Path) -> Session:
    """Clips are made once and kept in memory, so that encoding alone is what differs: decoding files would add to it."""
    spec = recipe.spec_for(_encoder(options))
    return Session(Where("moving-sprites"), recipe, spec, folder, Console(quiet=True), progress=False)


def selection(options: argparse.Namespace) -> dict[str, Any]:
    """Of 20 heads: the accuracy of the one that is best on a test split of *n* clips, there and on the other test clips.

    Averages over draws of the split. ``reported``: on the split that chose it. ``true``: on all other clips. ``held_out``: of the
    head that the held-out part of train chose, on the same other clips.
    """
    recipe = _recipe(options, features="memory")
    with tempfile.TemporaryDirectory() as folder:
        session = _session(recipe, options, Path(folder))
        encoder = _encoder(options)
        train, test = session.supply(encoder, "train"), session.supply(encoder, "test")
    assert isinstance(train, Features)
    assert isinstance(test, Features)
    right = []
    held_out = []
    for lr, decay in [(lr, decay) for lr in LRS for decay in DECAYS]:
        config = ProbeConfig(lrs=(lr,), weight_decays=(decay,))
        fitted: FittedProbe = fit_probe(train, "motion", config, progress=False)
        right.append(fitted.answers(test.tokens) == test.labels["motion"])
        held_out.append((fitted.best.held_out_top1, -(fitted.best.held_out_loss or 1e9)))
    answers = torch.stack(right).double()
    chosen = max(range(len(held_out)), key=held_out.__getitem__)
    draw = torch.Generator().manual_seed(0)
    rows = {}
    for size in TEST_SIZES:
        if size >= answers.shape[1]:
            continue
        reported, true, ours = [], [], []
        for _ in range(DRAWS):
            order = torch.randperm(answers.shape[1], generator=draw)
            split, others = order[:size], order[size:]
            best = int(answers[:, split].mean(1).argmax())
            reported.append(float(answers[best, split].mean()))
            true.append(float(answers[best, others].mean()))
            ours.append(float(answers[chosen, others].mean()))
        rows[str(size)] = {
            "reported": statistics.mean(reported),
            "true": statistics.mean(true),
            "optimism": statistics.mean(reported) - statistics.mean(true),
            "held_out": statistics.mean(ours),
        }
    return {
        "by_test_clips": rows,
        "heads": len(right),
        "best_and_worst_head": [float(answers.mean(1).max()), float(answers.mean(1).min())],
        "encoder": options.encoder,
        "train_clips": options.train_clips,
    }


def standardise(options: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy with and without standardised features, for an encoder, its untrained self, and raw pixels."""
    found: dict[str, Any] = {}
    encoder = _encoder(options)
    with tempfile.TemporaryDirectory() as folder:
        for switch in (True, False):
            recipe = _recipe(options, features="memory", standardise=switch)
            session = Session(
                Where("moving-sprites"),
                recipe,
                recipe.spec_for(encoder),
                Path(folder),
                Console(quiet=True),
                progress=False,
            )
            others = baseline_encoders(encoder, session.spec, ["random_init", "pixels", "middle_frame", "optical_flow"])

            def take(reading: Reading, switch: bool = switch) -> None:
                scores = reading.result.scores
                found.setdefault(reading.encoder.name, {})["with" if switch else "without"] = {
                    "top1": scores.top1,
                    "ci95": list(scores.ci95),
                }

            session.read([encoder, *others], take)
    return {"encoders": found, "train_clips": options.train_clips, "test_clips": options.test_clips, "task": "motion"}


MEASURES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "grid": grid,
    "whole": whole,
    "cache": cache,
    "selection": selection,
    "standardise": standardise,
}

if __name__ == "__main__":
    main()
