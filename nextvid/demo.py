"""The demo: pretrain the tiny recipe on the built-in footage, then show what a probe reads from the encoder."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nextvid.config import load_recipe
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import measure, prepare
from nextvid.evaluation.command import table_of
from nextvid.evaluation.probe import ProbeConfig
from nextvid.inference.load import load
from nextvid.training.loop import pretrain
from nextvid.training.run import Run


@dataclass(frozen=True)
class Proof:
    """A benchmark at the level that the demo measures, and its tasks by the names that ``metrics.json`` gives them."""

    benchmark: str
    level: str
    tasks: dict[str, str]


PROOFS = (
    Proof("moving-sprites", "plain", {"motion": "motion", "digit": "digit"}),
    Proof("camera-moves", "still", {"camera": "move"}),
)
TRAIN_CLIPS, TEST_CLIPS, EPOCHS = 2500, 2000, 15


def run_demo(out: Path, seed: int, console: Console) -> dict[str, Any]:
    """Pretrain in ``out``, or go on there, and probe; returns what ``metrics.json`` holds."""
    recipe = load_recipe("tiny", ["name=demo", f"seed={seed}"])
    pretrain(recipe, out, console=console)
    started = time.monotonic()
    encoder = load(out)
    clip = encoder.settings["clip"]
    spec = ClipSpec(clip["frames"], clip["fps"], clip["size"])
    probes: dict[str, Any] = {}
    for proof in PROOFS:
        console.print(f"reading {', '.join(proof.tasks)} from the frozen encoder ({proof.benchmark}, {proof.level}) …")
        measurement = prepare(proof.benchmark, proof.level, spec, TRAIN_CLIPS, TEST_CLIPS, ProbeConfig(epochs=EPOCHS))
        found = measure(encoder, encoder.encoder.config, measurement, list(proof.tasks.values()))
        probes |= {name: found[task] for name, task in proof.tasks.items()}
    console.print(table_of(probes))
    figures = {"probe": probes, "evaluation": {"seconds": time.monotonic() - started}}
    return Run(out).update_metrics(figures)
