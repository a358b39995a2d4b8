"""The page and the table of a scan."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from rich.filesize import decimal
from rich.table import Table

from nextvid.data.benchmarks.official.split import OfficialSplit
from nextvid.files import replace_file
from nextvid.report.curves import COLOURS, svg
from nextvid.report.histograms import histogram, stacked
from nextvid.report.template import template

FORMAT_VERSION = 1
NAMED = 200
MEANINGS = {
    "usable": "clips can be drawn from it",
    "duplicate": "its content is that of an earlier file",
    "too_short": "a video of fewer frames than one tubelet",
    "empty": "no byte in it",
    "not_media": "neither a video nor a picture, whatever its name says",
    "unreadable": "missing, damaged inside, or of a format that the decoder does not know",
    "truncated": "it ends before its own structure says",
    "no_video": "sound only",
    "denied": "it may not be read, or a tar's member that points outside the tar",
    "too_large": "a picture of more than 134 million pixels",
    "timeout": "the decoder did not come to an end",
}


@dataclass(frozen=True)
class Count:
    """A row of the table: how many files, and what that means; the parts of the bar have a colour."""

    title: str
    count: int
    share: float
    meaning: str
    colour: str = ""


def counts_of(summary: dict[str, Any]) -> list[Count]:
    """Usable, duplicates, too short, and broken by reason."""
    found = max(1, summary["found"])
    kinds = {"usable": summary["usable"], "duplicate": summary["duplicates"], "too_short": summary["too_short"]}
    rows = [
        Count(name.replace("_", " "), count, 100 * count / found, MEANINGS[name], colour)
        for (name, count), colour in zip(kinds.items(), (COLOURS[2], COLOURS[1], COLOURS[4]), strict=True)
    ]
    broken = sum(summary["broken"].values())
    rows.append(Count("broken", broken, 100 * broken / found, "by reason:", COLOURS[0]))
    return rows + [
        Count(f"· {reason.replace('_', ' ')}", count, 100 * count / found, MEANINGS[reason])
        for reason, count in summary["broken"].items()
    ]


def counts_in_words(split: OfficialSplit) -> str:
    """The published count of a benchmark's split beside what is there, and how its class map begins and ends."""
    counts, classes = split.summary(), split.classes
    return (
        f"{split.name}, {split.split}: {counts['official']} published, {counts['listed']} listed, {counts['found']} found, "
        f"{counts['missing']} missing; {len(classes)} classes, 0 = {classes[0]!r} … {len(classes) - 1} = {classes[-1]!r}"
    )


def table_of(summary: dict[str, Any]) -> Table:
    """The counts, the hours, and what the recipe would make of it, for a terminal."""
    table = Table(title=f"{summary['found']} files found, {summary['hours']:.2f} hours usable")
    table.add_column("")
    table.add_column("files", justify="right")
    table.add_column("")
    for row in counts_of(summary):
        table.add_row(row.title, str(row.count), row.meaning)
    for stage in summary["prospect"]:
        words = f"clips of {stage['clip_seconds']:.2f} s; the stage draws {stage['draws']}, each file {stage['epochs']:.2f} times"
        table.add_row(f"stage {stage['stage']}", str(stage["clips"]), words)
    return table


def write_page(
    out: Path,
    sources: Sequence[str],
    rows: pa.Table,
    summary: dict[str, Any],
    splits: Sequence[OfficialSplit],
    command: list[str],
) -> None:
    """Write the page, which needs nothing beside it; ``splits``: the official benchmarks among the sources."""
    counts = counts_of(summary)
    bar = {row.title: row.count for row in counts if row.colour}
    left_out = rows.filter(pc.not_equal(rows["status"], "usable")).select(["path", "name", "status", "reason"])
    named = [
        (repr(row["name"] or row["path"]), (row["reason"] or row["status"]).replace("_", " "))
        for row in left_out.slice(0, NAMED).to_pylist()
    ]
    text = template("scan.html.j2").render(
        format_version=FORMAT_VERSION,
        name=", ".join(sources),
        summary=summary,
        bar=Markup(svg(stacked(bar, {row.title: row.colour for row in counts}))),
        counts=counts,
        facts=_facts(summary),
        histograms=[Markup(svg(figure)) for figure in _histograms(rows)],
        official=[(counts_in_words(split), list(enumerate(split.classes))) for split in splits],
        left_out=named,
        more=left_out.num_rows - len(named),
        command=shlex.join(command),
    )
    replace_file(out, text.encode())


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    codecs = ", ".join(f"{name} {count}" for name, count in summary["codecs"].items())
    return [
        ("videos", str(summary["videos"])),
        ("pictures", str(summary["pictures"])),
        ("hours", f"{summary['hours']:.2f}"),
        ("size", decimal(summary["bytes"])),
        ("codecs", codecs or "–"),
        ("rotated in the header", str(summary["rotated"])),
        ("labels", str(summary["labels"])),
    ]


def _histograms(rows: pa.Table) -> list[Any]:
    usable = rows.filter(pc.equal(rows["status"], "usable"))
    videos = usable.filter(pc.equal(usable["kind"], "video"))
    sides = np.minimum(_numbers(usable, "width"), _numbers(usable, "height"))
    wanted = [
        (_numbers(videos, "seconds"), "length of the videos", "seconds", True),
        (sides, "short side", "pixels", False),
        (_numbers(videos, "fps"), "frame rate", "frames a second", False),
        (_numbers(videos, "keyframe_seconds"), "time between key frames", "seconds", True),
    ]
    return [histogram(values, title, unit, ratios=ratios) for values, title, unit, ratios in wanted if len(values)]


def _numbers(rows: pa.Table, column: str) -> np.ndarray:
    return rows[column].drop_null().to_numpy().astype(np.float64)
