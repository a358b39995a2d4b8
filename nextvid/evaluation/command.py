"""The verb ``probe``: one loaded encoder, one benchmark, one task."""

from pathlib import Path
from typing import Any, Literal, cast

from rich.console import Console
from rich.table import Table

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.benchmark import check_task, measure, prepare
from nextvid.evaluation.probe import ProbeConfig
from nextvid.files import replace_json
from nextvid.inference.load import LoadedEncoder, load
from nextvid.inference.released import is_released
from nextvid.report.tables import score_words

FORMAT_VERSION = 1


def probe_run(
    run: str,
    benchmark: str,
    level: str | None,
    task: str | None,
    weights: str | None,
    train_clips: int | None,
    test_clips: int | None,
    standardise: bool,
    console: Console,
) -> dict[str, Any]:
    """Probe a run's or a released encoder on clips such as it was trained on; a run's figures go beside its weights too."""
    if weights not in (None, "ema", "online"):
        raise UserError(f"--weights is ema or online, not '{weights}'")
    encoder = load(run, cast(Literal["ema", "online"] | None, weights))
    clip = encoder.settings["clip"]
    spec = ClipSpec(clip["frames"], clip["fps"], clip["size"])
    config = ProbeConfig(standardise=standardise)
    measurement = prepare(benchmark, level, spec, train_clips, test_clips, config)
    task = check_task(measurement, task)
    found = keep_probe(run, encoder, measure(encoder, encoder.encoder.config, measurement, [task])[task])
    console.print(table_of({task: found}))
    return found


def keep_probe(run: str, encoder: LoadedEncoder, figures: dict[str, Any]) -> dict[str, Any]:
    """``figures`` with the encoder's step and weights, also written beside the weights of a run (not of a released encoder)."""
    weights = encoder.settings["loaded"]
    own = {"step": encoder.settings["step"], "weights": weights, "clip": encoder.settings["clip"]}
    found = {"format_version": FORMAT_VERSION, **own, **figures}
    if not is_released(run):
        folder = Path(run) if Path(run).is_dir() else Path(run).parent
        name = "_".join((found["benchmark"], found["level"], found["task"], weights))
        replace_json(folder / f"probe_{name}.json", found)
    return found


def table_of(tasks: dict[str, dict[str, Any]]) -> Table:
    """A table of probe figures: a row an encoder, a column a task."""
    table = Table(title="single-layer attentive probe, top-1 in percent (95% interval)")
    table.add_column("encoder")
    for name, figures in tasks.items():
        table.add_column(f"{name}: {figures['benchmark']} {figures['level']}", justify="right")
    for row in dict.fromkeys(row for figures in tasks.values() for row in _scores(figures)):
        cells = [_scores(figures).get(row) for figures in tasks.values()]
        table.add_row(row.replace("_", " "), *[score_words(cell) for cell in cells])
    return table


def _scores(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every encoder's score on a task: this one, other trained ones, then the baselines."""
    others = {name: value for name, value in figures.items() if isinstance(value, dict) and "top1" in value}
    return {"this encoder": figures, **others, **figures["baselines"]}
