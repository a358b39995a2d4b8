"""Reading what the compared runs have not been read for yet, from clips that are rendered once."""

from typing import Any

from rich.console import Console

from nextvid.comparison.subject import Subject, probe_name
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import Measurement, default_level, measure, prepare
from nextvid.evaluation.command import keep_probe
from nextvid.evaluation.protocol import EvalRecipe
from nextvid.inference.load import load


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
    asked = {"train_clips": len(train), "test_clips": len(test), "standardised": True, "depth": 1}
    settings = EvalRecipe().settings()
    prepared: dict[ClipSpec, Measurement] = {}
    for subject in subjects:
        encoder = load(subject.origin)
        clip = encoder.settings["clip"]
        spec = ClipSpec(clip["frames"], clip["fps"], clip["size"])
        step = int(encoder.settings["step"])
        missing = [
            task
            for task in train.tasks
            if not _is_done(
                subject, probe_name({"benchmark": benchmark, "level": level, "task": task}), step, asked, settings
            )
        ]
        if not missing:
            continue
        if spec not in prepared:
            console.print(f"rendering {benchmark}, {level} …", highlight=False)
            prepared[spec] = prepare(benchmark, level, spec, train_clips, test_clips)
        measurement = prepared[spec]
        console.print(f"probing {subject.name}: {', '.join(missing)} …", highlight=False)
        for figures in measure(encoder, encoder.encoder.config, measurement, missing).values():
            kept = keep_probe(subject.origin, encoder, figures)
            subject.probes[probe_name(kept)] = kept


def _is_done(subject: Subject, name: str, step: int, asked: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a probe of this step and of the same protocol is there."""
    found = subject.probes.get(name)
    if found is None or found.get("step") != step:
        return False
    asked_too = {key: value for key, value in found.get("protocol", {}).items() if key in settings}
    return asked_too == settings and all(found.get(key) == value for key, value in asked.items())
