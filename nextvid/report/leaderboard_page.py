"""The page of a leaderboard: several encoders on one task, sorted, and which of them the test clips do not tell apart."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nextvid.files import replace_file
from nextvid.report.curves import COLOURS, INK, svg
from nextvid.report.probe_page import Row, chance_of, clip_words, loose_cell, notes_of, title_of, word
from nextvid.report.probe_pictures import Interval, intervals
from nextvid.report.tables import Cell
from nextvid.report.template import template

FORMAT_VERSION = 1

BEST, ALIKE, APART = COLOURS[0], COLOURS[4], COLOURS[1]


def write_leaderboard(path: Path, found: dict[str, Any]) -> Path:
    """Write the page, one file that needs nothing beside it; keys of ``found`` that are missing are left out of it."""
    rows = ranked(found.get("rows") or [])
    baselines = baseline_rows(found)
    chance = 100 * chance_of(found)
    columns = _columns(rows)
    details = detail_rows(rows)
    text = template("leaderboard.html.j2").render(
        format_version=FORMAT_VERSION,
        name=f"{found['benchmark']}: {found['task']}",
        where="; ".join(
            part for part in (found.get("level", ""), f"{found['classes']} classes", _clips(found)) if part
        ),
        verdict=verdict(rows),
        remarks=[str(remark) for remark in found.get("remarks") or [] if str(remark).strip()],
        rows=[{**row, "figures": [_figure(row["found"], key) for key, _ in columns]} for row in rows],
        columns=[title for _, title in columns],
        baselines=baselines,
        chance=chance,
        plot=Markup(svg(intervals(_lines(rows, baselines), chance, rows[0]["cell"]))) if rows else None,
        setting=_setting(found),
        detail_titles=details[0][1:] if details else [],
        details=details[1:],
        command=shlex.join(["nextvid", *found["command"][1:]]) if found.get("command") else None,
    )
    replace_file(path, text.encode())
    return path


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The encoders, the best first, each with its rank and whether its interval overlaps the best one's."""
    bars = [(row, loose_cell(row)) for row in rows]
    known = sorted(((row, bar) for row, bar in bars if bar), key=lambda pair: -pair[1].top1)
    return [
        {
            "found": row,
            "name": str(row.get("name", "encoder")),
            "kind": "; ".join(str(row[key]) for key in ("kind", "note") if row.get(key)),
            "cell": bar,
            "rank": 1 + sum(other.top1 > bar.top1 for _, other in known),
            "best": place == 0,
            "tie": place > 0 and overlap(bar, known[0][1]),
        }
        for place, (row, bar) in enumerate(known)
    ]


def overlap(one: Cell, other: Cell) -> bool:
    """Whether two intervals have anything in common."""
    return one.low <= other.high and other.low <= one.high


def verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which encoder is best, and how many cannot be told from it."""
    if not rows:
        return []
    ties = [row["name"] for row in rows if row["tie"]]
    best = f"{rows[0]['name']} is best with {rows[0]['cell'].words}"
    if len(rows) == 1:
        return [f"{rows[0]['name']}, the only encoder, has {rows[0]['cell'].words}."]
    if not ties:
        return [f"{best}, ahead of all {len(rows) - 1} others by more than the intervals."]
    return [f"{best}; {len(ties)} of {len(rows) - 1} others cannot be told from it: {', '.join(ties)}."]


def baseline_rows(found: dict[str, Any]) -> list[Row]:
    """What needs no learning, the best first, and a ceiling where there is one."""
    rows = [
        (title_of(key), loose_cell(score), notes_of(score)) for key, score in (found.get("baselines") or {}).items()
    ]
    return sorted((Row(*row) for row in rows if row[1]), key=lambda row: -row.cell.top1 if row.cell else 0.0)


def _lines(rows: Sequence[dict[str, Any]], baselines: Sequence[Row]) -> list[Interval]:
    """All scores from the best down: encoders in colour, baselines in grey."""
    lines = [
        Interval(row["name"], row["cell"], BEST if row["best"] else ALIKE if row["tie"] else APART) for row in rows
    ]
    lines += [Interval(row.title, row.cell, INK) for row in baselines if row.cell]
    return sorted(lines, key=lambda line: -line.cell.top1)


def _columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The figures that any encoder has."""
    titles = {
        "top5": "top-5",
        "mean_class": "mean of classes",
        "width": "width",
        "parameters": "parameters",
        "standardise_effect": "standardised",
    }
    return [(key, title) for key, title in titles.items() if any(row["found"].get(key) is not None for row in rows)]


def _figure(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if value is None:
        return "–"
    if key == "standardise_effect":
        return f"{100 * (value['with'] - value['without']):+.1f}"
    if key == "parameters":
        return _parameters(value)
    return f"{100 * value:.1f}" if key in ("top5", "mean_class") else word(value)


def _parameters(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _clips(found: dict[str, Any]) -> str:
    counts = [(found.get(f"{split}_clips"), split) for split in ("train", "test")]
    return " and ".join(f"{count:,} {split} clips" for count, split in counts if count)


def _setting(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What all encoders have in common."""
    rows = [("a clip", clip_words(found.get("clip") or {}))]
    rows += [(title_of(key), word(value)) for key, value in (found.get("protocol") or {}).items() if value is not None]
    if any(row.get("standardise_effect") for row in found.get("rows") or []):
        rows.append(("standardised", "the points that standardising every channel adds to the held-out accuracy"))
    return [(title, words) for title, words in rows if words]


def detail_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line of titles, then what clips each encoder was given, and what was done to them; nothing where nobody says."""
    said = [
        (row["name"], clip_words(row["found"].get("clip") or {}), row["found"].get("preprocessing") or {})
        for row in rows
    ]
    keys = list(dict.fromkeys(key for _, _, prepared in said for key in prepared))
    if not keys and not any(clip for _, clip, _ in said):
        return []
    lines = [[name, clip or "–", *(word(prepared.get(key)) for key in keys)] for name, clip, prepared in said]
    return [["encoder", "clip", *(title_of(key) for key in keys)], *lines]
