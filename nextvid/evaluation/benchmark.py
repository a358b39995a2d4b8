"""An encoder on a built-in benchmark, beside what needs no learning."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError, nearest
from nextvid.evaluation import baselines
from nextvid.evaluation.features import Encode, RenderedClips, features, frozen, render
from nextvid.evaluation.fitting import train_probe
from nextvid.evaluation.probe import ProbeConfig, ProbeResult
from nextvid.evaluation.protocol import EvalRecipe
from nextvid.evaluation.scores import class_map
from nextvid.models.encoder import Encoder, EncoderConfig
from nextvid.randomness import key_of

CEILINGS = Path(__file__).parent / "ceilings.json"
"""Supervised ceilings, made by ``benchmarks/ceilings.py``: benchmark/level/task to test scores and how they were made."""


@dataclass
class Measurement:
    """One benchmark at one level, rendered once and shared by every encoder that is measured on it."""

    benchmark: str
    level: str
    spec: ClipSpec
    train: RenderedClips
    test: RenderedClips
    config: ProbeConfig = field(default_factory=ProbeConfig)
    baselines: dict[tuple[str, Any], dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By name and shape, and then by task: what :func:`measure_baselines` has found so far."""

    def probe(self, encode: Encode, task: str, progress: bool = True) -> ProbeResult:
        """The attentive probe of one encoder on one task."""
        return self.probe_all(encode, [task], progress)[task]

    def probe_all(self, encode: Encode, tasks: list[str], progress: bool = True) -> dict[str, ProbeResult]:
        """The attentive probes of one encoder on several tasks, from features computed once."""
        train = features(encode, self.train, progress=progress)
        test = features(encode, self.test, progress=progress)
        return {task: train_probe(train, test, task, self.config, progress=progress) for task in tasks}


def prepare(
    benchmark: str,
    level: str | None,
    spec: ClipSpec,
    train_clips: int | None = None,
    test_clips: int | None = None,
    config: ProbeConfig | None = None,
    progress: bool = True,
) -> Measurement:
    """Render both splits of a benchmark at a level (by default its first). Raises ``UserError`` for unknown names."""
    level = level or default_level(benchmark)
    train = render(benchmarks.load(benchmark, level, "train", train_clips), spec, progress=progress)
    test = render(benchmarks.load(benchmark, level, "test", test_clips), spec, progress=progress)
    return Measurement(benchmark, level, spec, train, test, config or ProbeConfig())


def default_level(benchmark: str) -> str:
    """The level that the demo and the documentation use: the first of the benchmark's levels."""
    return benchmarks.levels(benchmark)[0]


def check_task(measurement: Measurement, task: str | None) -> str:
    """``task``, or the benchmark's first; ``UserError`` where it has no such task."""
    known = list(measurement.train.tasks)
    if task is not None and task not in known:
        raise UserError(
            f"{measurement.benchmark} has no task '{task}'{nearest(task, known)}; it has {', '.join(known)}"
        )
    return task or known[0]


def random_encoder(config: EncoderConfig, seed: int = 0, device: torch.device | str = "cpu") -> Encode:
    """An encoder of this shape that has learned nothing."""
    torch.manual_seed(key_of("random encoder", seed))
    return frozen(Encoder(config).to(device))


def baseline_encoders(config: EncoderConfig) -> dict[str, Encode]:
    """What needs no learning, by name: an untrained encoder, raw pixels with their places, the middle frame alone."""
    return {
        "random_init": random_encoder(config),
        "pixels": baselines.pixels(config.patch, config.tubelet, positions=True),
        "middle_frame": baselines.middle_frame(config.patch),
    }


def score(result: ProbeResult) -> dict[str, Any]:
    """Accuracy and its 95% interval, as the figures that a machine reads."""
    return {"top1": result.top1, "ci95": list(result.ci95)}


def supervised_ceiling(benchmark: str, level: str, task: str, spec: ClipSpec) -> dict[str, Any] | None:
    """The committed supervised score for this benchmark, level, task and clip, or None where none was made."""
    name = f"{benchmark}/{level}/{task}/{spec.frames}x{spec.size}@{spec.fps:g}"
    return json.loads(CEILINGS.read_text()).get(name) if CEILINGS.is_file() else None


def figures(
    measurement: Measurement, task: str, result: ProbeResult, beside: dict[str, dict[str, Any]], layers: int
) -> dict[str, Any]:
    """What is reported of one task; ``layers``: how many the encoder has."""
    return {
        "benchmark": measurement.benchmark,
        "level": measurement.level,
        "task": task,
        **score(result),
        "classes": result.classes,
        "class_map": class_map(measurement.train.tasks[task]),
        "train_clips": result.train_clips,
        "test_clips": result.test_clips,
        "standardised": result.standardised,
        "depth": result.depth,
        "heads": result.heads,
        "protocol": {
            **EvalRecipe(**measurement.config.model_dump()).settings(),
            "layers": [layers - 1],
            "features": "memory",
        },
        "best_lr": result.best_lr,
        "held_out_top1": result.held_out_top1,
        "baselines": beside,
    }


def measure_baselines(
    config: EncoderConfig, measurement: Measurement, tasks: list[str], progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Every task's scores of what needs no learning, by name, and the supervised ceiling where there is one.

    The measurement remembers them: another encoder of this shape shares them, and of any shape what reads pixels alone.
    """
    beside: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for name, baseline in baseline_encoders(config).items():
        shape = config if name == "random_init" else (config.patch, config.tubelet)
        known = measurement.baselines.setdefault((name, shape), {})
        missing = [task for task in tasks if task not in known]
        if missing:
            known |= {
                task: score(result) for task, result in measurement.probe_all(baseline, missing, progress).items()
            }
        for task in tasks:
            beside[task][name] = known[task]
    for task in tasks:
        ceiling = supervised_ceiling(measurement.benchmark, measurement.level, task, measurement.spec)
        if ceiling:
            beside[task]["supervised"] = ceiling
    return beside


def measure(
    encode: Encode,
    config: EncoderConfig,
    measurement: Measurement,
    tasks: list[str],
    progress: bool = True,
    others: Mapping[str, Encode] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every task's figures: the encoder's probe beside all baselines and the supervised ceiling where there is one.

    The scores of ``others``, further trained encoders by name, stand beside ``top1`` under their names.
    """
    found = measurement.probe_all(encode, tasks, progress)
    beside = measure_baselines(config, measurement, tasks, progress)
    table = {task: figures(measurement, task, found[task], beside[task], config.depth) for task in tasks}
    for name, other in (others or {}).items():
        for task, result in measurement.probe_all(other, tasks, progress).items():
            table[task][name] = score(result)
    return table
