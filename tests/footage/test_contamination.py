"""Near-duplicates between footage and test splits: real files, and the search against comparing all with all."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import cut_short, write_picture, write_video
from rich.console import Console

from nextvid.data import benchmarks
from nextvid.data.benchmarks.official import Listed
from nextvid.data.film import load_film, resize
from nextvid.data.manifest import SCHEMA, read_rows, write_manifest
from nextvid.errors import UserError
from nextvid.footage.contamination import (
    SPEC,
    THRESHOLD_BITS,
    contamination_table,
    escaped,
    find_contamination,
    hash_file,
    hash_test_split,
    result_path,
)
from nextvid.footage.hash_index import HashIndex
from nextvid.footage.hashing import distances
from nextvid.footage.scan import scan

FPS = 12
TEST_START, TEST_FRAMES = 4700, 120
QUIET = Console(quiet=True)


def film(start: int, frames: int) -> np.ndarray:
    return np.array(load_film().frames[start : start + frames])


def found_in(footage: Path, benchmark: str, level: str | None = None) -> dict:
    manifest = footage.parent / "manifest.parquet"
    scan([str(footage)], manifest, workers=1)
    return find_contamination(manifest, benchmark, level, QUIET, workers=1)


def named(found: dict) -> set[str]:
    return {Path(row["footage"]).name for row in found["near_duplicates"]}


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory) -> Path:
    """Two test videos: ten seconds of the film, and one that is cut short; a third is missing."""
    root = tmp_path_factory.mktemp("k400")
    folder = root / "val"
    folder.mkdir()
    whole = write_video(folder / "abcdefghijk_000001_000011.mp4", film(TEST_START, TEST_FRAMES), fps=FPS)
    cut_short(whole, folder / "brokenbroke_000001_000011.mp4", 0.4)
    names = ("abcdefghijk", "brokenbroke", "missingmiss")
    rows = [f"zumba,{name},1,11,val" for name in names]
    (root / "val.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    return root


@pytest.fixture(scope="module")
def found(kinetics, tmp_path_factory) -> dict:
    """All that is asked of footage, in one scan."""
    folder = tmp_path_factory.mktemp("footage") / "pile"
    folder.mkdir()
    same = film(TEST_START, TEST_FRAMES)
    write_video(folder / "re-encoded.mkv", same, fps=FPS, options={"crf": "35"})
    write_video(folder / "small.mp4", resize(same, 46, 80), fps=FPS)
    write_video(folder / "trimmed.mp4", same[30:90], fps=FPS)
    write_video(folder / "longer.mp4", film(TEST_START - 120, TEST_FRAMES + 240), fps=FPS)
    write_video(folder / "faster.mp4", same, fps=2 * FPS)
    write_video(folder / "mirrored.mp4", same[:, :, ::-1], fps=FPS)
    write_video(folder / "other.mp4", film(600, TEST_FRAMES), fps=FPS)
    write_picture(folder / "picture.jpg", same[60], "mjpeg", "yuvj420p")
    write_picture(folder / "other.png", film(600, 1)[0])
    write_picture(folder / "flat.png", np.full((90, 160, 3), 128, np.uint8))
    write_video(folder / "line\nbreak [red]<b>.mp4", same, fps=FPS)
    return found_in(folder, f"kinetics400:{kinetics}")


@pytest.mark.parametrize(
    "name", ["re-encoded.mkv", "small.mp4", "trimmed.mp4", "longer.mp4", "faster.mp4", "mirrored.mp4", "picture.jpg"]
)
def test_copies_of_a_test_video_are_found(found, name):
    assert name in named(found)


def test_other_footage_is_not(found):
    assert not named(found) & {"other.mp4", "other.png", "flat.png"}


def test_every_find_says_what_matches(found, kinetics):
    clip = str(kinetics / "val" / "abcdefghijk_000001_000011.mp4")
    for row in found["near_duplicates"]:
        assert row["clip"] == clip
        assert row["mirrored"] == row["footage"].endswith("mirrored.mp4")
        assert row["distance"] <= THRESHOLD_BITS
        assert len(row["seconds"]) >= 1
        assert all(0 <= seconds <= 10 for seconds in row["seconds"])
    (picture,) = (row for row in found["near_duplicates"] if row["footage"].endswith("picture.jpg"))
    assert (picture["frames"], picture["seconds"]) == (1, [5.0])


def test_what_could_not_be_compared_is_named(found, kinetics):
    broken = str(kinetics / "val" / "brokenbroke_000001_000011.mp4")
    assert found["broken"] == [{"path": broken, "reason": "truncated"}]
    assert found["missing"] == ["missingmiss_000001_000011.mp4"]
    assert (found["test_clips"], found["footage_files"], found["split"]) == (2, 11, "test")


def test_the_result_lies_beside_the_manifest(found):
    folder = Path(found["near_duplicates"][0]["footage"]).parents[1]
    path = result_path(folder / "manifest.parquet", "kinetics400:/data")
    assert path.name == "manifest_against_kinetics400.json"
    assert json.loads(path.read_text()) == found
    assert found["count"] == len(found["near_duplicates"]) == 8


def test_strange_names_are_escaped_in_the_table(found):
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(contamination_table(found))
    text = console.export_text()
    assert r"line\nbreak [red]<b>.mp4" in text
    assert "(mirrored)" in text
    assert escaped("\x1b[2J\r") == r"\x1b\[2J\r"


def test_a_test_file_is_hashed_as_a_scan_hashes_footage(kinetics, tmp_path):
    video = kinetics / "val" / "abcdefghijk_000001_000011.mp4"
    scan([str(video)], tmp_path / "m.parquet", workers=1)
    (batch,) = read_rows(tmp_path / "m.parquet", ["hashes"])
    hashes = hash_file(Listed(str(video), 0))
    assert [seconds for seconds, _, mirrored in hashes if not mirrored] == [number / 2 for number in range(20)]
    assert batch["hashes"][0].as_py()[0] == hashes[0][1]


def test_only_what_a_benchmark_shows_of_a_file_is_hashed(kinetics):
    video = str(kinetics / "val" / "abcdefghijk_000001_000011.mp4")
    seconds = [seconds for seconds, _, _ in hash_file(Listed(video, 0, start=24, end=60))]
    assert (min(seconds), max(seconds)) == (2.0, 4.5)


def test_clips_of_a_built_in_benchmark_are_found_as_they_are_shown(tmp_path, monkeypatch):
    monkeypatch.setitem(benchmarks.LENGTHS, "test", 12)
    (tmp_path / "pile").mkdir()
    clip = benchmarks.load("camera-moves", "still", "test").clip(3, SPEC)
    write_video(tmp_path / "pile" / "clip.mp4", clip, fps=6)
    found = found_in(tmp_path / "pile", "camera-moves")
    assert {row["clip"] for row in found["near_duplicates"]} == {"clip 3"}
    assert (found["level"], found["test_clips"]) == ("still", 12)


@pytest.mark.parametrize("benchmark", ["camera-moves", "moving-sprites"])
def test_the_film_that_built_in_clips_are_cut_from_is_not_found(tmp_path, monkeypatch, benchmark):
    """A window of half the height, or a crop under a sprite, is too far from the film: docs/contamination.md says so."""
    monkeypatch.setitem(benchmarks.LENGTHS, "test", 24)
    (tmp_path / "pile").mkdir()
    write_video(tmp_path / "pile" / "film.mp4", film(4400, 1200), fps=FPS)
    assert found_in(tmp_path / "pile", benchmark)["count"] == 0


def test_wrong_input_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no manifest"):
        find_contamination(tmp_path / "none.parquet", "camera-moves", None, QUIET)
    write_manifest(tmp_path / "m.parquet", [], {})
    for benchmark, level, words in (
        ("camera-move", None, "did you mean 'camera-moves'"),
        ("camera-moves", "stil", "There is no level 'stil'"),
        (f"kinetics400:{tmp_path}", "hard", "There is no level 'hard'"),
        (f"kinetics400:{tmp_path / 'gone'}", None, "There is no folder"),
    ):
        with pytest.raises(UserError, match=words):
            find_contamination(tmp_path / "m.parquet", benchmark, level, QUIET)


def test_a_manifest_without_usable_files_has_no_near_duplicates(tmp_path, monkeypatch):
    monkeypatch.setitem(benchmarks.LENGTHS, "test", 2)
    row = dict.fromkeys(SCHEMA.names) | {"path": "a.mp4", "status": "broken", "reason": "empty"}
    write_manifest(tmp_path / "m.parquet", [pa.RecordBatch.from_pylist([row], SCHEMA)], {})
    found = find_contamination(tmp_path / "m.parquet", "moving-sprites", None, QUIET)
    assert (found["count"], found["footage_files"], found["hashes"]) == (0, 0, 0)


def test_mirrored_frames_of_a_test_clip_are_hashed_too(monkeypatch):
    monkeypatch.setitem(benchmarks.LENGTHS, "test", 2)
    frames = hash_test_split("camera-moves", "still", QUIET, 1).frames
    assert frames.mirrored.sum() == (~frames.mirrored).sum() > 0


def flipped(draw: np.random.Generator, hashes: np.ndarray, bits: int) -> np.ndarray:
    """``hashes``, each with ``bits`` random bits changed."""
    places = draw.permuted(np.tile(np.arange(64, dtype=np.uint64), (len(hashes), 1)), axis=1)[:, :bits]
    return hashes ^ (np.uint64(1) << places).sum(axis=1, dtype=np.uint64).view(np.int64)


@given(seed=st.integers(0, 2**32), bits=st.integers(0, THRESHOLD_BITS + 2), count=st.integers(0, 40))
def test_the_search_equals_comparing_all_with_all(seed, bits, count):
    draw = np.random.default_rng(seed)
    limits = np.iinfo(np.int64)
    hashes = draw.integers(limits.min, limits.max, count, np.int64)
    near = [flipped(draw, hashes, changed) for changed in range(bits + 2)]
    queries = np.concatenate([*near, draw.integers(limits.min, limits.max, 10, np.int64), hashes[:0]])
    found = HashIndex(hashes, bits).near(queries)
    table = distances(queries, hashes)
    expected = np.argwhere(table <= bits)
    assert np.stack([found.query, found.hash], axis=1).tolist() == expected.tolist()
    assert found.bits.tolist() == table[tuple(expected.T)].tolist()


def test_many_candidates_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr("nextvid.footage.hash_index._CANDIDATES", 50)
    monkeypatch.setattr("nextvid.footage.hash_index._QUERIES", 7)
    hashes = np.arange(30, dtype=np.int64)
    found = HashIndex(hashes, 2).near(hashes)
    assert len(found.query) == (distances(hashes, hashes) <= 2).sum()
