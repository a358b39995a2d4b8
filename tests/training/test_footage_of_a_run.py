"""What a run keeps of its footage: the same files when it goes on, and the list of those that broke."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from media import cut_short, write_numbered, write_sound
from nano import nano_recipe
from rich.console import Console

from nextvid.config import Recipe
from nextvid.data.clip import Broken
from nextvid.errors import UserError
from nextvid.footage.scan import scan
from nextvid.training import loop
from nextvid.training.footage import BROKEN_FILE, FOOTAGE_FILE, BrokenFiles, build_mixtures

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for number, name in enumerate("abcde"):
        write_numbered(tmp_path / "videos" / f"{name}.mp4", count=20 + number)
    (tmp_path / "videos" / "broken.mp4").touch()
    return tmp_path / "videos"


def recipe_on(path: Path | str, **data: Any) -> Recipe:
    return nano_recipe(data={"sources": [{"path": str(path)}], "workers": 0, **data})


def items(recipe: Recipe, run: Path | None) -> list[str]:
    source = build_mixtures(recipe, run, QUIET)[0].sources[0]
    return [source.describe(item) for item in range(source.items)]


def test_a_run_goes_on_with_the_files_that_it_began_with(videos: Path, tmp_path: Path, cache: Path) -> None:
    recipe, run = recipe_on(videos), tmp_path / "run"
    loop.pretrain(recipe, run, until=1, console=QUIET)
    kept = json.loads((run / FOOTAGE_FILE).read_text())["sources"][str(videos)]
    assert kept["summary"]["broken"] == {"empty": 1}
    assert kept["broken_files"] == [[str(videos / "broken.mp4"), "empty"]]
    before = items(recipe, run)
    write_numbered(videos / "new.mp4", count=33)
    shutil.rmtree(cache)
    moved = run.rename(tmp_path / "moved")
    assert items(recipe, moved) == before
    assert len(items(recipe, None)) == len(before) + 1


def test_a_manifest_is_used_as_it_is_and_may_not_change_under_a_run(videos: Path, tmp_path: Path) -> None:
    manifest, run = tmp_path / "m.parquet", tmp_path / "run"
    scan([str(videos)], manifest, console=QUIET)
    recipe = recipe_on(manifest)
    loop.pretrain(recipe, run, until=1, console=QUIET)
    assert not (run / "footage").exists()
    loop.pretrain(recipe, run, until=2, console=QUIET)
    write_numbered(videos / "new.mp4", count=33)
    scan([str(videos)], manifest, console=QUIET)
    with pytest.raises(UserError, match=r"not the manifest that this run began with"):
        loop.pretrain(recipe, run, until=3, console=QUIET)


def test_a_list_is_a_source(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("videos/a.mp4 0\nvideos/c.mp4 1\n")
    assert items(recipe_on(tmp_path / "list.csv"), None) == [str(videos / "a.mp4"), str(videos / "c.mp4")]


def test_nothing_usable_is_a_sentence_with_reasons_and_an_example(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "empty.mp4").touch()
    write_numbered(tmp_path / "v" / "one.mp4", count=1)
    with pytest.raises(UserError, match=r"None of the 2 .*1 empty, 1 with fewer than 2 frames.*empty\.mp4"):
        build_mixtures(recipe_on(tmp_path / "v"), None, QUIET)


def test_files_that_break_later_are_named_once_and_training_goes_on(videos: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", recipe_on(videos)
    loop.pretrain(recipe, run, until=1, console=QUIET)
    cut_short(videos / "a.mp4", videos / "b.mp4")
    (videos / "c.mp4").unlink()
    loop.pretrain(recipe, run, console=QUIET)
    rows = [json.loads(row) for row in (run / BROKEN_FILE).read_text().splitlines()]
    assert {row["path"]: row["reason"] for row in rows} == {
        str(videos / "b.mp4"): "truncated",
        str(videos / "c.mp4"): "unreadable",
    }
    assert len(rows) == 2


def test_what_was_lost_to_a_hang_is_kept_for_the_run_that_goes_on(tmp_path: Path) -> None:
    first = BrokenFiles(tmp_path, QUIET)
    lost = [Broken("/v/a.mp4", "timeout", 7, 0, lost=True), Broken("/v/a.mp4", "timeout", 9, 1, lost=True)]
    first.add([lost[0], Broken("/v/b.mp4", "truncated", 8, 0), lost[1], Broken("/v/b.mp4", "truncated", 11, 0)])
    first.add(lost)
    again = BrokenFiles(tmp_path, QUIET)
    assert again.lost == lost
    assert again.known == {"/v/a.mp4", "/v/b.mp4"}
    assert len((tmp_path / BROKEN_FILE).read_text().splitlines()) == 3


def test_rows_of_an_earlier_version_still_count(tmp_path: Path) -> None:
    (tmp_path / BROKEN_FILE).write_text('{"path": "/v/a.mp4", "reason": "truncated"}\n')
    assert BrokenFiles(tmp_path, QUIET).known == {"/v/a.mp4"}


def test_footage_of_an_earlier_version_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / FOOTAGE_FILE).write_text('{"videos": {"report": {}}}')
    with pytest.raises(UserError, match="earlier nextvid"):
        build_mixtures(recipe_on(tmp_path), tmp_path, QUIET)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 7 // 10]


def flipped(content: bytes) -> bytes:
    """Bits of the first frames are turned over."""
    middle = content.index(b"mdat") + 900  # behind the text that x264 leaves
    return content[:middle] + bytes(byte ^ 0x5A for byte in content[middle : middle + 300]) + content[middle + 300 :]


def absurd(content: bytes) -> bytes:
    """The header claims frames of 65,535 x 65,535 pixels, and says nothing that the decoder could use."""
    size, setup = content.index(b"avc1") + 28, content.index(b"avcC") + 4
    return content[:size] + b"\xff" * 4 + content[size + 4 : setup] + b"\xff" * 20 + content[setup + 20 :]


DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("truncated", cut),
    ("unreadable", flipped),
    ("unreadable", absurd),
    ("empty", lambda content: b""),
    ("not_media", lambda content: b"a text with a video's name\n" * 50),
]


def damaged(folder: Path) -> Counter[str]:
    """Sixteen damaged files; returns how many of each kind, "gone" for those that go after the scan."""
    expected = Counter[str]()
    for number, (reason, change) in enumerate(DAMAGE * 2):
        source = write_numbered(folder / f"damaged-{number}.mp4", count=60 + number)
        source.write_bytes(change(source.read_bytes()))
        expected[reason] += 1
    for number in range(2):
        write_sound(folder / f"sound-{number}.mp4")
        write_numbered(folder / f"one-{number}.mp4", count=1)
        write_numbered(folder / f"gone-{number}.mp4", count=90 + number)
    return expected + Counter(no_video=2, too_short=2, gone=2)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_training_completes_on_a_folder_with_a_third_of_damaged_files(tmp_path: Path, workers: int) -> None:
    folder, run = tmp_path / "videos", tmp_path / "run"
    folder.mkdir()
    for number in range(32):
        write_numbered(folder / f"good-{number}.mp4", count=20 + number)
    expected = damaged(folder)
    recipe = recipe_on(folder, workers=workers)
    loop.pretrain(recipe, run, until=1, console=QUIET)
    summary = json.loads((run / FOOTAGE_FILE).read_text())["sources"][str(folder)]["summary"]
    gone, short = expected.pop("gone"), expected.pop("too_short")
    assert summary["broken"] == dict(sorted(expected.items()))
    assert (summary["found"], summary["usable"], summary["too_short"]) == (48, 32 + gone, short)
    for number in range(2):
        (folder / f"gone-{number}.mp4").unlink()
    loop.pretrain(recipe, run, console=QUIET)
    named = {json.loads(row)["path"] for row in (run / BROKEN_FILE).read_text().splitlines()}
    assert named <= {str(folder / f"gone-{number}.mp4") for number in range(2)}
    assert json.loads((run / "metrics.json").read_text())["pretrain"]["steps"] == recipe.steps


def test_a_row_that_was_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    BrokenFiles(tmp_path, QUIET).add([Broken("/v/a.mp4", "truncated", 1, 0)])
    with (tmp_path / BROKEN_FILE).open("a") as file:
        file.write('{"path": "/v/b')
    BrokenFiles(tmp_path, QUIET).add([Broken("/v/c.mp4", "truncated", 2, 0)])
    assert BrokenFiles(tmp_path, QUIET).known == {"/v/a.mp4", "/v/c.mp4"}
