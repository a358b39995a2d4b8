"""Reading what the compared runs have not been read for yet, from clips that are rendered once."""

from typing import Any

from rich.console import Console

from nextvid.comparison.subject import Subject, probe_name
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import (
    Measurement,
    baseline_encoders,
    default_level,
    figures,
    prepare,
    score,
    supervised_ceiling,
)
from nextvid.evaluation.command import keep_probe
from nextvid.evaluation.probe import ProbeConfig
from nextvid.inference.load import load
from nextvid.models.encoder import EncoderConfig


def probe_missing(
    subjects: list[Subject],
    benchmark: str,
    level: str | None,
    train_clips: int | None,
    test_clips: int | None,
    console: Console,
) -> None:
    """Probe every task of a benchmark for each run that has no figure of its present step, and keep it beside the run.

    Runs of clips of one shape share what is rendered, and encoders of one shape their baselines.
    """
    level = level or default_level(benchmark)
    train, test = (benchmarks.load(benchmark, level, *part) for part in (("train", train_clips), ("test", test_clips)))
    asked = {"train_clips": len(train), "test_clips": len(test), "standardised": ProbeConfig().standardise}
    prepared: dict[ClipSpec, Measurement] = {}
    baselines: dict[Any, dict[str, Any]] = {}
    for subject in subjects:
        encoder = load(subject.origin)
        clip = encoder.settings["clip"]
        spec = ClipSpec(clip["frames"], clip["fps"], clip["size"])
        step = int(encoder.settings["step"])
        missing = [
            task
            for task in train.tasks
            if not _is_done(subject, probe_name({"benchmark": benchmark, "level": level, "task": task}), step, asked)
        ]
        if not missing:
            continue
        if spec not in prepared:
            console.print(f"rendering {benchmark}, {level} …", highlight=False)
            prepared[spec] = prepare(benchmark, level, spec, train_clips, test_clips)
        measurement = prepared[spec]
        console.print(f"probing {subject.name}: {', '.join(missing)} …", highlight=False)
        found = measurement.probe_all(encoder, missing)
        beside = _baselines(measurement, encoder.encoder.config, missing, baselines)
        for task in missing:
            kept = keep_probe(subject.origin, encoder, figures(measurement, task, found[task], beside[task]))
            subject.probes[probe_name(kept)] = kept


def _is_done(subject: Subject, name: str, step: int, asked: dict[str, Any]) -> bool:
    found = subject.probes.get(name)
    return found is not None and found.get("step") == step and asked.items() <= found.items()


def _baselines(
    measurement: Measurement, config: EncoderConfig, tasks: list[str], known: dict[Any, dict[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every task's baselines by name, from ``known`` where an encoder of this shape has had them."""
    beside: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in tasks}
    for name, encode in baseline_encoders(config).items():
        shape = config if name == "random_init" else (config.patch, config.tubelet)
        key = (name, shape, measurement.spec, measurement.level)
        if not set(tasks) <= set(known.get(key, {})):
            found = measurement.probe_all(encode, tasks)
            known[key] = {**known.get(key, {}), **{task: score(result) for task, result in found.items()}}
        for task in tasks:
            beside[task][name] = known[key][task]
    for task in tasks:
        ceiling = supervised_ceiling(measurement, task)
        if ceiling:
            beside[task]["supervised"] = ceiling
    return beside
