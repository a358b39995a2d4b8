"""The page of a comparison."""

import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nextvid.comparison.subject import Subject
from nextvid.comparison.words import spent_rows
from nextvid.files import replace_file
from nextvid.report.curves import COLOURS, Line, overlay, svg
from nextvid.report.tables import ENCODERS, Cell, cell
from nextvid.report.template import template

FORMAT_VERSION = 1


def write_page(out: Path, subjects: list[Subject], found: dict[str, Any]) -> None:
    """Write the page, which needs nothing beside it, from what :func:`nextvid.comparison.command.figures_of` found."""
    runs = found["runs"]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(runs))]
    lines = [Line(s.rows, s.row_flops(), colour) for s, colour in zip(subjects, colours, strict=True) if s.rows]
    text = template("compare.html.j2").render(
        format_version=FORMAT_VERSION,
        name=", ".join(run["name"] for run in runs),
        runs=[{"name": run["name"], "colour": colour} for run, colour in zip(runs, colours, strict=True)],
        same_compute=found["same_compute"],
        remarks=found["remarks"],
        spent=spent_rows(runs),
        tasks=_tasks(runs),
        curves=[Markup(svg(figure)) for figure in overlay(lines)],
        differences=[(key, [_setting(key, value) for value in values]) for key, values in found["differences"].items()],
        command=shlex.join(["nextvid", "compare", *(subject.origin for subject in subjects)]),
    )
    replace_file(out, text.encode())


def _tasks(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A block a task: every run's score, then the baselines, each named once where all runs have the same."""
    blocks = []
    for name in dict.fromkeys(name for run in runs for name in run["probes"]):
        probes = [run["probes"].get(name) for run in runs]
        measured = next(probe for probe in probes if probe)
        rows = [
            (run["name"], number, cell(probe)) for number, (run, probe) in enumerate(zip(runs, probes, strict=True))
        ]
        blocks.append(
            {
                "name": name,
                "chance": 100 / measured["classes"],
                "clips": f"{measured['train_clips']} / {measured['test_clips']}",
                "rows": rows,
                "baselines": _baselines(runs, probes),
            }
        )
    return blocks


def _baselines(runs: list[dict[str, Any]], probes: list[dict[str, Any] | None]) -> list[tuple[str, Cell | None]]:
    found: dict[str, Cell | None] = {}
    for run, probe in zip(runs, probes, strict=True):
        for key, score in (probe or {}).get("baselines", {}).items():
            title = ENCODERS.get(key, key)
            if title in found and found[title] != cell(score):
                title = f"{title} (as in {run['name']})"
            found[title] = cell(score)
    return list(found.items())


def _setting(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list) and (".lr." in key or ".weights." in key):
        return " → ".join(f"{end:g}" for end in dict.fromkeys(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
