"""The demo: minutes of pretraining from nothing and from the released encoder, what a probe reads from each, and the page."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from rich.console import Console
from torch import Tensor

from nextvid.config import load_recipe
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import measure, prepare
from nextvid.evaluation.command import table_of
from nextvid.evaluation.features import render
from nextvid.evaluation.generation import draw_next_frames, load_drawing
from nextvid.evaluation.likeness import figures
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.show import show
from nextvid.inference.load import LoadedEncoder, load
from nextvid.report import Pictures, write_report
from nextvid.training.loop import pretrain
from nextvid.training.run import Run


@dataclass(frozen=True)
class Proof:
    """A benchmark at the level that the demo measures, and its tasks by the names that ``metrics.json`` gives them."""

    benchmark: str
    level: str
    tasks: dict[str, str]


PROOFS = (
    Proof("moving-sprites", "film", {"motion": "motion", "digit": "digit"}),
    Proof("camera-moves", "still", {"camera": "move"}),
)
RELEASED = "nextvid-tiny"
TRAIN_CLIPS, TEST_CLIPS, EPOCHS, RATES = 1600, 1600, 10, (1e-2, 3e-3, 1e-3)
"""Fewer than a probe takes by itself, so that four encoders are read within minutes."""
DRAWN_BENCHMARK, DRAWN_LEVEL, DRAWN_CLIPS, ROLLED_CLIPS = "moving-sprites", "still", 40, 12


def run_demo(out: Path, seed: int, console: Console) -> dict[str, Any]:
    """Pretrain in ``out`` and ``out/continued``, or go on there, measure, and write ``report.html``.

    Returns what ``metrics.json`` holds.
    """
    pretrain(load_recipe("tiny", ["name=demo", f"seed={seed}"]), out, console=console)
    console.print(f"going on from {RELEASED} …", highlight=False)
    pretrain(load_recipe("adapt", ["name=demo-continued", f"seed={seed}"]), _continued(out), console=console)
    started = time.monotonic()
    encoders = {"this": load(out), "continued": load(_continued(out)), "reference": load(RELEASED)}
    probes = _probe(encoders, console)
    console.print(table_of(probes))
    generation, pictures = _draw(out, console)
    Run(out).update_metrics({"probe": probes, "generation": generation})
    found = Run(out).update_metrics({"evaluation": {"seconds": time.monotonic() - started}})
    console.print(f"page: {write_report(out, pictures)}", highlight=False)
    return found


def _continued(out: Path) -> Path:
    return out / "continued"


def _spec(encoder: LoadedEncoder) -> ClipSpec:
    clip = encoder.settings["clip"]
    return ClipSpec(clip["frames"], clip["fps"], clip["size"])


def _probe(encoders: dict[str, LoadedEncoder], console: Console) -> dict[str, Any]:
    this = encoders["this"]
    others = {name: encoder for name, encoder in encoders.items() if encoder is not this}
    probes: dict[str, Any] = {}
    for proof in PROOFS:
        console.print(f"reading {', '.join(proof.tasks)} from frozen encoders ({proof.benchmark}, {proof.level}) …")
        config = ProbeConfig(epochs=EPOCHS, lrs=RATES)
        measurement = prepare(proof.benchmark, proof.level, _spec(this), TRAIN_CLIPS, TEST_CLIPS, config)
        found = measure(this, this.encoder.config, measurement, list(proof.tasks.values()), others=others)
        probes |= {name: found[task] for name, task in proof.tasks.items()}
    return probes


def _draw(out: Path, console: Console) -> tuple[dict[str, Any], Pictures]:
    """What the released model draws over still pictures, beside the other two."""
    console.print(f"drawing next frames ({DRAWN_BENCHMARK}, {DRAWN_LEVEL}) …")
    found, pictures = draw_over_stills(RELEASED)
    clips = _stills(DRAWN_CLIPS)
    beside = {
        name: figures(draw_next_frames(load_drawing(folder)[0], clips))["next_frame"]
        for name, folder in (("this", out), ("continued", _continued(out)))
    }
    return {**found, "others": beside}, pictures


def draw_over_stills(origin: str, clips: int = DRAWN_CLIPS) -> tuple[dict[str, Any], Pictures]:
    """Figures and pictures of next frames and roll-outs of sprites over still pictures, test clips."""
    objective, recipe = load_drawing(origin)
    found, pictures = show(objective, recipe, _stills(clips), _stills(ROLLED_CLIPS, times=2))
    assert found is not None
    return {"benchmark": DRAWN_BENCHMARK, "level": DRAWN_LEVEL, "model": origin, **found}, pictures


def _stills(clips: int, times: int = 1) -> UInt8[Tensor, "clips frames 3 height width"]:
    spec = _spec(load(RELEASED))
    longer = ClipSpec(times * spec.frames, spec.fps, spec.size)
    return render(benchmarks.load(DRAWN_BENCHMARK, DRAWN_LEVEL, "test", clips), longer, progress=False).frames
