"""The page of a leaderboard: sorted, self-contained, and plain about what the test clips do not tell apart."""

import html
import re
from pathlib import Path
from typing import Any

from builders import references

from nextvid.report.leaderboard_page import ranked, write_leaderboard

EVIL = "<script>alert('$x$')</script>"


def row(name: str, top1: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "transformers",
        "top1": top1,
        "ci95": [top1 - 0.02, top1 + 0.02],
        "width": 768,
        **more,
    }


def found(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"benchmark": "moving-sprites", "level": "film", "task": "motion", "classes": 16, "rows": list(rows), **more}


def everything() -> dict[str, Any]:
    return found(
        row("third", 0.3, kind="nextvid", note="half as many frames"),
        row("first", 0.5, top5=0.9, mean_class=0.49, parameters=86_000_000, standardise_effect={"with": 0.5, "without": 0.4},
            clip={"frames": 16, "fps": 8.0, "size": 224}, preprocessing={"mean": [0.5, 0.4, 0.3], "size": 224}),
        row("second", 0.47, parameters=1_100_000_000),
        clip={"frames": 8, "fps": 6.0, "size": 32},
        protocol={"epochs": 20, "lrs": [0.01, 0.003]},
        baselines={"chance": {"top1": 0.0625}, "optical_flow": {"top1": 0.4, "ci95": [0.38, 0.42]}},
        remarks=["one clip is broken"],
    )  # fmt: skip


def test_rows_are_sorted_and_ties_marked() -> None:
    rows = ranked(everything()["rows"])
    assert [(row["name"], row["rank"], row["best"], row["tie"]) for row in rows] == [
        ("first", 1, True, False),
        ("second", 2, False, True),
        ("third", 3, False, False),
    ]
    same = ranked([row("a", 0.5), row("b", 0.5), row("c", 0.4)])
    assert [row["rank"] for row in same] == [1, 1, 3]


def test_the_page_holds_every_figure(tmp_path: Path) -> None:
    page = html.unescape(write_leaderboard(tmp_path / "l.html", everything()).read_text())
    for text in (
        "50.0 (48.0–52.0)", "47.0 (45.0–49.0)", "90.0", "49.0", "86.0 M", "1.10 B", "+10.0", "half as many frames",
        "16 frames at 8 a second of 224 × 224 pixels", "0.5, 0.4, 0.3", "8 frames at 6 a second", "0.01, 0.003",
        "one clip is broken", "optical flow", "40.0 (38.0–42.0)", "1 of 2 others cannot be told from it: second",
    ):  # fmt: skip
        assert text in page, text
    assert page.count('class="tie"') == 1
    assert page.index(">first") < page.index(">second") < page.index(">third")


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    page = write_leaderboard(tmp_path / "l.html", everything()).read_text()
    assert "<svg" in page
    assert all(text.startswith(("data:image/", "#")) for text in references(page))
    assert "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def test_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    page = write_leaderboard(tmp_path / "l.html", found(row(EVIL, 0.5, note=EVIL), remarks=[EVIL])).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    page = write_leaderboard(tmp_path / "l.html", found({"name": "only", "top1": 0.5, "ci95": [0.4, 0.6]})).read_text()
    assert "only, the only encoder, has 50.0 (40.0–60.0)." in page
    for title in ("top-5", "parameters", "What each was given"):
        assert title not in page
    assert "No encoder was measured" in write_leaderboard(tmp_path / "l.html", found()).read_text()
