"""The verb ``compare``: runs side by side as a table, a page and figures."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nextvid.comparison.page import write_page
from nextvid.comparison.probing import probe_missing
from nextvid.comparison.subject import Subject, open_subjects
from nextvid.comparison.words import spent_rows
from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.evaluation.protocol import PROTOCOL
from nextvid.files import replace_json
from nextvid.report.tables import score_words

FORMAT_VERSION = 1
SAME = 0.02
"""Compute is called the same within this share of the first run's."""


def compare_runs(
    origins: list[str],
    benchmark: str | None,
    level: str | None,
    train_clips: int | None,
    test_clips: int | None,
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Compare runs' folders and released encoders; writes ``out`` (a page) and the figures beside it as JSON.

    With a ``benchmark`` what was not probed yet is probed first. Raises ``UserError`` where there is nothing to compare.
    """
    if out.suffix == ".json":
        raise UserError(
            f"--out {out} is the page; its figures go beside it as JSON, so give it a name such as {out.stem}.html"
        )
    if benchmark is None and (level, train_clips, test_clips) != (None, None, None):
        raise UserError("--level, --train-clips and --test-clips say how to probe; they need --benchmark")
    subjects = open_subjects(origins)
    if benchmark is not None:
        probe_missing(subjects, benchmark, level, train_clips, test_clips, console)
    found = figures_of(subjects)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_json(out.with_suffix(".json"), found)
    write_page(out, subjects, found)
    return found


def figures_of(subjects: list[Subject]) -> dict[str, Any]:
    """What a machine reads: every run's figures, and in what their recipes differ."""
    runs = [subject.figures() for subject in subjects]
    check_class_maps(runs)
    first = runs[0]["flops"]
    for run in runs:
        run["compute"] = run["flops"] / first
    return {
        "format_version": FORMAT_VERSION,
        "same_compute": all(abs(run["compute"] - 1) <= SAME for run in runs),
        "runs": runs,
        "differences": recipe_differences([subject.recipe for subject in subjects]),
        "remarks": _remarks(runs),
    }


def check_class_maps(runs: list[dict[str, Any]]) -> None:
    """Raise ``UserError`` where one task was read with two lists of classes, or with one in two orders: those are two tasks."""
    for name in dict.fromkeys(name for run in runs for name in run["probes"]):
        maps = {
            run["name"]: run["probes"][name]["class_map"] for run in runs if "class_map" in run["probes"].get(name, {})
        }
        other = next((run for run, found in maps.items() if found != next(iter(maps.values()))), None)
        if other is not None:
            raise UserError(
                f"{name} was read with one list of classes for {next(iter(maps))} and with another for {other}: their "
                "scores are not of one task; probe both again on the same benchmark files"
            )


def recipe_differences(recipes: list[Recipe]) -> dict[str, list[Any]]:
    """Dotted names of the settings that are not the same in all recipes, with every recipe's value (None: it has none)."""
    flat = [_flat(recipe.model_dump(mode="json", exclude={"name"})) for recipe in recipes]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every setting by its dotted name; a stage or source is named by what it is, so that its place does not matter."""
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}
    if isinstance(node, list) and node and isinstance(node[0], dict):
        labels = _labels(node)
        return {
            k: v for label, value in zip(labels, node, strict=True) for k, v in _flat(value, f"{path}[{label}]").items()
        }
    return {path: node}


def _labels(items: list[dict[str, Any]]) -> list[str]:
    """A stage by its name, a source by what it is, with a number where two are called the same; else by number."""
    names = [_label(item) for item in items]
    return [
        str(number) if not name else name if names.count(name) == 1 else f"{name} #{names[:number].count(name) + 1}"
        for number, name in enumerate(names)
    ]


def _label(item: dict[str, Any]) -> str:
    name = item.get("name") or item.get("path") or item.get("builtin") or ""
    return f"{name} {item['level']}" if name and item.get("level") else str(name)


def _remarks(runs: list[dict[str, Any]]) -> list[str]:
    """What one should know before reading the table."""
    remarks = []
    unequal = [run for run in runs if abs(run["compute"] - 1) > SAME]
    if unequal:
        told = ", ".join(f"{run['name']} {run['compute']:.2f} times" for run in unequal)
        ended = all(run["steps"] == run["steps_of_recipe"] for run in runs)
        remedy = "; nextvid pretrain RECIPE --flops-of RUN makes it so" if ended else ""
        remarks.append(f"not the same compute: {told} that of {runs[0]['name']}{remedy}")
    for run in runs:
        if run["steps"] < run["steps_of_recipe"]:
            remarks.append(
                f"{run['name']} is at step {run['steps']} of {run['steps_of_recipe']}: its rates are not at their end"
            )
        if run["init"]:
            remarks.append(f"{run['name']} started from {run['init']}, whose training is not counted")
        stale = [name for name, probe in run["probes"].items() if probe.get("step", run["steps"]) != run["steps"]]
        if stale:
            remarks.append(f"{run['name']} was probed at another step than its last: {', '.join(stale)}")
    remarks += _probe_remarks(runs)
    if not any(run["probes"] for run in runs):
        remarks.append("no run was probed yet: add --benchmark moving-sprites")
    return remarks


def _probe_remarks(runs: list[dict[str, Any]]) -> list[str]:
    """Which benchmarks are missing for some runs, and what was read with different numbers of clips."""
    missing, uneven = {}, []
    for name in dict.fromkeys(name for run in runs for name in run["probes"]):
        benchmark, level, _ = name.split("/")
        having = [run["probes"].get(name) for run in runs]
        if None in having:
            missing[f"--benchmark {benchmark} --level {level}"] = f"{benchmark}, {level}"
        read = {(probe["train_clips"], probe["test_clips"]) for probe in having if probe}
        if len(read) > 1:
            numbers = " and ".join(f"{train:,} / {test:,}" for train, test in sorted(read))
            uneven.append(f"{name} was read with different numbers of clips (train / test): {numbers}")
        for key, what in (
            ("clip", "on clips of different shapes"),
            ("standardised", "with and without standardised features"),
            ("depth", "by probes of different depths, whose figures do not compare"),
            ("settings", "by different protocols, whose figures do not compare"),
        ):
            known = [told[key] for told in map(_told, filter(None, having)) if key in told]
            if any(value != known[0] for value in known):
                uneven.append(f"{name} was read {what}")
    return [f"not every run was probed on {where}: add {flag}" for flag, where in missing.items()] + uneven


def _told(probe: dict[str, Any]) -> dict[str, Any]:
    """A probe's figures with the settings that have to be the same to compare, apart from what names the recipe."""
    settings = (
        {key: probe["protocol"][key] for key in PROTOCOL if key in probe["protocol"]} if "protocol" in probe else None
    )
    return {**probe, **({"settings": settings} if settings else {})}


def table_of(found: dict[str, Any]) -> Table:
    """A column a run; spent compute above, what a probe reads below, with 95% intervals."""
    runs = found["runs"]
    table = Table(title="at the same compute" if found["same_compute"] else "not at the same compute")
    table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(run["name"], justify="right", overflow="fold")
    for title, words in spent_rows(runs):
        table.add_row(title, *words)
    for name in dict.fromkeys(name for run in runs for name in run["probes"]):
        table.add_section()
        benchmark, level, task = name.split("/")
        table.add_row(f"{task} ({benchmark}, {level})", *[score_words(run["probes"].get(name)) for run in runs])
        untrained = [(run["probes"].get(name) or {}).get("baselines", {}).get("random_init") for run in runs]
        table.add_row("  the same encoder untrained", *[score_words(score) for score in untrained])
    return table
