"""The scan: every file counted once, with its reason; nothing lost when it is killed; nothing opened twice."""

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from media import (
    cut_short,
    numbered,
    rotate_header,
    write_numbered,
    write_picture,
    write_sound,
    write_video,
)
from rich.console import Console

from nextvid.data import manifest as manifests
from nextvid.data.locations import Place
from nextvid.data.manifest import Manifest, write_manifest
from nextvid.errors import UserError
from nextvid.footage import inspect
from nextvid.footage import scan as scanning
from nextvid.footage.command import scan_footage
from nextvid.footage.scan import ScanSettings, scan
from nextvid.report.histograms import histogram

QUIET = Console(quiet=True)
DENIED_TO_ROOT = os.geteuid() != 0


def huge_png(path: Path) -> None:
    """A picture that claims 100,000 x 100,000 pixels."""
    content = bytearray(write_picture(path, numbered(1)).read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    path.write_bytes(content)


def flip_bits(source: Path, path: Path, seed: int) -> None:
    draw, content = random.Random(seed), bytearray(source.read_bytes())
    for _ in range(40):
        content[draw.randrange(len(content) // 8, len(content) * 7 // 8)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files of every kind, and every kind of damage."""
    folder = tmp_path_factory.mktemp("pile")
    (folder / "inner").mkdir()
    video = write_numbered(folder / "b.mp4")
    write_numbered(folder / "inner" / "a.MKV", fps=12)
    rotate_header(video, folder / "inner" / "turned.mov")
    write_picture(folder / "p.png", numbered(3))
    shutil.copy(video, folder / "copy of b.mp4")
    write_numbered(folder / "inner" / "one.mp4", count=1)
    (folder / "empty.mp4").touch()
    (folder / "text.avi").write_text("no video\n" * 30)
    (folder / "a\n<img src=x onerror=alert(1)>.mp4").write_text("<script>alert(1)</script>")
    cut_short(video, folder / "cut.mp4")
    write_sound(folder / "sound.mp4")
    huge_png(folder / "huge.png")
    flip_bits(video, folder / "flipped.mp4", 0)
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        archive.add(write_numbered(folder / "inner" / "c.webm", codec="libvpx-vp9"), "x/c.webm")
        archive.add(folder / "p.png", "../../climbs.png")
    (folder / "inner" / "c.webm").unlink()
    return folder


EXPECTED = {
    "b.mp4": "usable",
    "a.MKV": "usable",
    "turned.mov": "usable",
    "p.png": "usable",
    "c.webm": "usable",
    "copy of b.mp4": "duplicate",
    "one.mp4": "too_short",
    "empty.mp4": "empty",
    "text.avi": "not_media",
    "a\n<img src=x onerror=alert(1)>.mp4": "not_media",
    "cut.mp4": "truncated",
    "sound.mp4": "no_video",
    "huge.png": "too_large",
    "flipped.mp4": "unreadable",
    "gone.mp4": "unreadable",
    "climbs.png": "denied",
}


def rows_of(manifest: Path) -> dict[str, dict[str, Any]]:
    return {os.path.basename(row["name"] or row["path"]): row for row in pq.read_table(manifest).to_pylist()}


@pytest.fixture(scope="module")
def scanned(pile: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "m.parquet"
    return out, scan_footage([str(pile)], out, ScanSettings(), "tiny", 2, 60.0, None, None, QUIET)


def test_every_file_is_counted_once_with_its_reason(scanned: tuple[Path, dict[str, Any]]) -> None:
    manifest, summary = scanned
    assert {name: row["reason"] or row["status"] for name, row in rows_of(manifest).items()} == EXPECTED
    broken = sum(summary["broken"].values())
    assert summary["found"] == len(EXPECTED)
    assert summary["found"] == summary["usable"] + broken + summary["duplicates"] + summary["too_short"]
    assert summary["broken"] == {
        reason: list(EXPECTED.values()).count(reason)
        for reason in sorted({*EXPECTED.values()} - {"usable", "duplicate", "too_short"})
    }
    assert summary["hours"] == pytest.approx((4 + 40 / 12 + 4 + 4) / 3600, rel=0.02)
    assert json.loads(manifest.with_suffix(".json").read_text()) == json.loads(json.dumps(summary))


def test_rows_say_what_is_in_the_file(scanned: tuple[Path, dict[str, Any]]) -> None:
    rows = rows_of(scanned[0])
    video, turned, picture, member = rows["b.mp4"], rows["turned.mov"], rows["p.png"], rows["c.webm"]
    assert (video["kind"], video["codec"], video["width"], video["height"]) == ("video", "h264", 64, 48)
    assert (video["fps"], video["frames"], video["decoded"]) == (10.0, 40, "all")
    assert video["keyframe_seconds"] == pytest.approx(0.8, abs=0.25)
    assert (turned["width"], turned["height"], turned["rotation"]) == (48, 64, 270)
    assert (picture["kind"], picture["frames"], picture["seconds"]) == ("picture", 1, 0.0)
    assert (member["codec"], member["frames"], member["offset"] > 0) == ("vp9", 40, True)


def test_the_manifest_gives_the_usable_rows(scanned: tuple[Path, dict[str, Any]]) -> None:
    manifest = Manifest(scanned[0])
    assert len(manifest) == 5
    usable = [os.path.basename(str(manifest[number].place)) for number in range(5)]
    assert sorted(usable) == sorted(name for name, why in EXPECTED.items() if why == "usable")
    with pytest.raises(IndexError):
        manifest[5]


def test_the_page_escapes_names(scanned: tuple[Path, dict[str, Any]]) -> None:
    page = scanned[0].with_suffix(".html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;.mp4" in page
    assert "truncated" in page


def test_what_the_recipe_would_make_of_it(scanned: tuple[Path, dict[str, Any]]) -> None:
    stage = scanned[1]["prospect"][0]
    assert stage["clip_seconds"] == pytest.approx(8 / 6)
    assert stage["clips"] == 3 + 2 + 3 + 3 + 1
    assert stage["shorter"] == 0
    assert stage["epochs"] == stage["draws"] / 5


@pytest.mark.skipif(not DENIED_TO_ROOT, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4").chmod(0)
    assert scan([str(tmp_path)], tmp_path / "m.parquet")["broken"] == {"denied": 1}


def test_large_files_are_decoded_in_places_unless_everything_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "WHOLE_PIXELS", 0)
    frames = [np.full((48, 64, 3), 60 + 120 * (number > 25), np.uint8) for number in range(40)]
    write_video(tmp_path / "a.mp4", frames)
    scan([str(tmp_path)], tmp_path / "part.parquet")
    scan([str(tmp_path)], tmp_path / "all.parquet", ScanSettings(everything=True))
    part, whole = (rows_of(tmp_path / f"{name}.parquet")["a.mp4"] for name in ("part", "all"))
    assert (part["decoded"], part["shots"], part["seconds"], part["frames"]) == ("part", [], 4.0, 40)
    assert (whole["decoded"], whole["shots"]) == ("all", [0.0, 2.6])
    assert part["keyframe_seconds"] == pytest.approx(whole["keyframe_seconds"], rel=0.3)


def test_what_has_not_changed_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "v", tmp_path / "m.parquet"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_numbered(folder / name, count=20 + ord(name[0]) % 7)
    (folder / "bad.mp4").touch()
    first = scan([str(folder)], out)
    looked_at = []
    monkeypatch.setattr(scanning, "_looked_at", lambda work, *_: iter(look(work)))

    def look(work: Any) -> list[tuple[int, dict[str, Any]]]:
        found = [(place, scanning.row_of(entry, settings)) for place, (entry, settings) in enumerate(work)]
        looked_at.append(sorted(os.path.basename(row["path"]) for _, row in found))
        return found

    assert scan([str(folder)], out) == first
    write_numbered(folder / "c.mp4", count=30)
    write_numbered(folder / "a.mp4", count=33)
    again = scan([str(folder)], out)
    assert looked_at == [["bad.mp4"], ["a.mp4", "bad.mp4", "c.mp4"]]
    assert (again["found"], again["usable"]) == (4, 3)
    (folder / "b.mp4").unlink()
    assert scan([str(folder)], out)["found"] == 3


def test_labels_are_those_of_this_list(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4")
    for label in ("run", "jump"):
        (tmp_path / "list.csv").write_text(f"path,label\na.mp4,{label}\n")
        scan([str(tmp_path / "list.csv")], tmp_path / "m.parquet")
        assert rows_of(tmp_path / "m.parquet")["a.mp4"]["label"] == label


def test_a_file_that_is_listed_twice_is_a_duplicate_of_itself(tmp_path: Path) -> None:
    path = str(write_numbered(tmp_path / "a.mp4"))
    summary = scan([path, path, str(tmp_path)], tmp_path / "m.parquet")
    assert (summary["found"], summary["usable"], summary["duplicates"]) == (3, 1, 2)


def test_large_files_that_differ_in_one_byte_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "SAMPLED_BYTES", 64)
    monkeypatch.setattr("nextvid.footage.duplicates.SAMPLED_BYTES", 64)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = bytearray(write_picture(tmp_path / "a.bmp", picture, "bmp", "bgr24").read_bytes())
    (tmp_path / "b.bmp").write_bytes(content)
    content[len(content) // 4] ^= 1
    (tmp_path / "c.bmp").write_bytes(content)
    summary = scan([str(tmp_path)], tmp_path / "m.parquet")
    assert (summary["usable"], summary["duplicates"]) == (2, 1)


def hang(entry: Any, settings: Any) -> dict[str, Any]:
    name = os.path.basename(entry.place.path)
    if name == "hangs.mp4":
        time.sleep(1000)
    if name == "kills.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return REAL(entry, settings)


REAL = scanning.row_of


def test_a_decoder_that_hangs_or_dies_costs_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("a.mp4", "hangs.mp4", "kills.mp4", "z.mp4")):
        write_numbered(tmp_path / name, count=20 + number)
    monkeypatch.setattr(scanning, "row_of", hang)
    summary = scan([str(tmp_path)], tmp_path / "m.parquet", workers=2, seconds=2.0)
    assert (summary["usable"], summary["broken"]) == (2, {"timeout": 1, "unreadable": 1})


def many(folder: Path, count: int) -> None:
    """Small files, every twentieth broken, all different."""
    folder.mkdir()
    source = write_picture(folder / "0.png", numbered(1, 16, 16)).read_bytes()
    for number in range(1, count):
        content = b"" if number % 20 == 0 else source + number.to_bytes(4, "big")
        (folder / f"{number}.png").write_bytes(content)


def scan_command(folder: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "nextvid", "scan", str(folder), "-o", str(out), "--workers", "2"]


def journal_lines(out: Path) -> int:
    journal = out.with_name(f"{out.name}.journal")
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_scan_that_was_killed_goes_on_where_it_was(tmp_path: Path, how: signal.Signals) -> None:
    many(tmp_path / "v", 1200)
    scan([str(tmp_path / "v")], tmp_path / "whole.parquet")
    out = tmp_path / "m.parquet"
    started = subprocess.Popen(scan_command(tmp_path / "v", out), stderr=subprocess.PIPE)
    while journal_lines(out) < 100:
        assert started.poll() is None
        time.sleep(0.005)
    started.send_signal(how)
    assert started.wait(60) == (75 if how == signal.SIGTERM else -9)
    before = journal_lines(out)
    assert 100 <= before < 1200
    assert not out.exists()
    kept = out.with_name("m.parquet.journal").read_bytes().split(b"\n")[1 : before + 1]
    done = {json.loads(row)["path"] for row in kept}
    os.utime(next(iter(done)))  # one that has changed is looked at again, and no other
    scan([str(tmp_path / "v")], out)
    assert not out.with_name("m.parquet.journal").exists()
    one, other = (pq.read_table(path).drop_columns(["modified"]) for path in (out, tmp_path / "whole.parquet"))
    assert one.equals(other)


def test_a_journal_that_was_cut_in_the_middle_of_a_line(tmp_path: Path) -> None:
    many(tmp_path / "v", 50)
    out = tmp_path / "m.parquet"
    summary = scan([str(tmp_path / "v")], out)
    started = scanning.Journal(out, {"everything": False, "min_frames": 2})
    started.append(REAL(scanning.Entry(Place(str(tmp_path / "v" / "1.png"))), ScanSettings()))
    started._file.write(b'{"path": "/half')
    started.close()
    assert scan([str(tmp_path / "v")], out) == summary


def test_two_scans_do_not_write_the_same_manifest(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4")
    held = scanning.Journal(tmp_path / "m.parquet", {})
    with pytest.raises(UserError, match="being written by another scan"):
        scan([str(tmp_path)], tmp_path / "m.parquet")
    held.close()
    assert scan([str(tmp_path)], tmp_path / "m.parquet")["usable"] == 1


def test_a_manifest_may_be_a_source(scanned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    again = scan([str(scanned[0])], tmp_path / "m.parquet")
    assert (again["found"], again["usable"]) == (scanned[1]["found"], scanned[1]["usable"])


def test_outputs_that_cannot_be_written_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "a.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"m\.parquet could not be written"):
        scan([str(tmp_path)], tmp_path / "file" / "m.parquet")
    (tmp_path / "notes.parquet").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a manifest"):
        scan([str(tmp_path)], tmp_path / "notes.parquet")
    assert (tmp_path / "notes.parquet").read_text() == "mine"
    for name, sentence in (("m.json", r"call it .*m\.parquet"), ("", "is a folder")):
        with pytest.raises(UserError, match=sentence):
            scan_footage([str(tmp_path)], tmp_path / name, ScanSettings(), "tiny", 1, 60.0, None, None, QUIET)


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_numbered(tmp_path / "a.mp4")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifests.pq.ParquetWriter, "write_batch", full)
        with pytest.raises(UserError, match="No space left on device"):
            scan([str(tmp_path)], tmp_path / "m.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "m.parquet.journal"]
    assert scan([str(tmp_path)], tmp_path / "m.parquet")["usable"] == 1


def test_manifests_of_another_version_or_without_a_column_are_a_sentence(
    scanned: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(scanned[0])
    monkeypatch.setattr(manifests, "FORMAT_VERSION", 0)
    write_manifest(tmp_path / "old.parquet", table.to_batches(), {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="format version 0; this nextvid reads 1"):
        Manifest(tmp_path / "old.parquet")
    facts = pq.read_metadata(scanned[0]).metadata[b"nextvid"]
    with pq.ParquetWriter(tmp_path / "short.parquet", table.drop_columns(["fps"]).schema) as writer:
        writer.write_table(table.drop_columns(["fps"]))
        writer.add_key_value_metadata({b"nextvid": facts})
    with pytest.raises(UserError, match="without the column fps"):
        Manifest(tmp_path / "short.parquet")
    pq.write_table(table, tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="not a manifest of nextvid"):
        Manifest(tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="no manifest at"):
        Manifest(tmp_path / "missing.parquet")


def test_a_manifest_without_its_arrow_file_makes_another(
    scanned: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path / "cache"))
    alone = tmp_path / "alone.parquet"
    shutil.copy(scanned[0], alone)
    (tmp_path / "alone.parquet.arrow").write_bytes(b"of something else")
    one, other = Manifest(alone), Manifest(scanned[0])
    assert [one[number] for number in range(5)] == [other[number] for number in range(5)]


def test_an_official_benchmark_is_a_source_with_its_counts_and_class_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "k400"
    rows = ["label,youtube_id,time_start,time_end,split", "abseiling,aaa,0,10,train", "zumba,bbb,5,15,train"]
    (root / "train").mkdir(parents=True)
    (root / "train.csv").write_text("\n".join([*rows, "yoga,ccc,5,15,train"]) + "\n")
    write_numbered(root / "train" / "aaa_000000_000010.mp4")
    write_numbered(root / "train" / "bbb_000005_000015.mp4", count=30)
    out = tmp_path / "m.parquet"
    source = f"kinetics400:{root}"
    found = scan_footage([source], out, ScanSettings(), "tiny", 1, 60.0, None, None, Console(width=200))
    assert found["official"] == [
        {
            "benchmark": "kinetics400",
            "split": "train",
            "official": 246535,
            "listed": 3,
            "found": 2,
            "missing": 1,
            "classes": 400,
        }
    ]
    assert (found["usable"], found["broken"]) == (2, {"unreadable": 1})
    assert [row["label"] for row in pq.read_table(out).to_pylist()][:2] == ["abseiling", "zumba"]
    assert "246535 published, 3 listed, 2 found, 1 missing; 400 classes, 0 = 'abseiling'" in capsys.readouterr().out
    assert "<td>riding unicycle</td>" in out.with_suffix(".html").read_text()


THREADS = """
import sys, torch
torch.set_num_threads(4)
torch.nn.functional.adaptive_avg_pool2d(torch.rand(64, 3, 256, 256), (8, 8))
from pathlib import Path
from nextvid.footage.scan import scan
print(scan([sys.argv[1]], Path(sys.argv[2]), workers=2, seconds=20.0)["usable"])
"""


def test_a_parent_that_computes_with_threads_does_not_block_its_workers(tmp_path: Path) -> None:
    for number in range(4):
        write_numbered(tmp_path / f"{number}.mp4", count=20 + number)
    command = [sys.executable, "-c", THREADS, str(tmp_path), str(tmp_path / "m.parquet")]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4"]


def test_every_refused_member_of_a_tar_has_its_own_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("../one.mp4", "../two.mp4"):
            archive.addfile(tarfile.TarInfo(name))
    with (tmp_path / "t.tar").open("r+b") as file:
        file.truncate(1024 + 100)
    for _ in range(2):
        summary = scan([str(tmp_path)], tmp_path / "m.parquet")
        assert summary["broken"] == {"denied": 2, "truncated": 1}
        assert set(rows_of(tmp_path / "m.parquet")) == {"one.mp4", "two.mp4", "t.tar"}


def test_a_manifest_of_another_version_is_made_anew(
    scanned: tuple[Path, dict[str, Any]], pile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = tmp_path / "m.parquet", pq.read_table(scanned[0])
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "FORMAT_VERSION", 0)
        write_manifest(out, table.to_batches(), {})
    assert scan([str(pile)], out)["usable"] == 5
    facts = pq.read_metadata(out).metadata[b"nextvid"]
    with pq.ParquetWriter(out, table.drop_columns(["hashes"]).schema) as writer:
        writer.write_table(table.drop_columns(["hashes"]))
        writer.add_key_value_metadata({b"nextvid": facts})
    assert scan([str(pile)], out)["usable"] == 5
    assert pq.read_schema(out).names == pq.read_schema(scanned[0]).names


def test_remote_files_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/scan-once/a.mp4", write_numbered(tmp_path / "a.mp4").read_bytes())
    monkeypatch.setattr(scanning, "in_processes", lambda function, items, *_: enumerate(map(function, items)))
    assert scan(["memory://scan-once"], tmp_path / "m.parquet")["usable"] == 1
    monkeypatch.setattr(scanning, "in_processes", lambda function, items, *_: iter([]) if not items else 1 / 0)
    assert scan(["memory://scan-once"], tmp_path / "m.parquet")["usable"] == 1


def test_lengths_that_differ_by_a_rounding_have_a_page(tmp_path: Path) -> None:
    for number, seconds in enumerate((8.416666666666666, 8.416666666666668)):
        write_numbered(tmp_path / f"{number}.mp4", count=20 + number)
        figure = histogram(np.array([8.416666666666666, seconds]), "length", "seconds", ratios=True)
        assert figure.axes[0].patches


def test_two_processes_may_need_the_same_scan(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4")
    out = tmp_path / "m.parquet"
    held = scanning.Journal(out, {"everything": False, "min_frames": 2})
    threading.Timer(0.5, held.remove).start()
    assert scan([str(tmp_path)], out, wait=True)["usable"] == 1


def test_what_follows_a_whole_file_does_not_make_it_truncated(tmp_path: Path) -> None:
    video = write_numbered(tmp_path / "a.mp4")
    video.write_bytes(video.read_bytes() + b"some more bytes that are no box")
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 255, 200_000, dtype=np.uint8).tobytes().replace(b"\xff\xd9", b"")
    for name, codec, pixels in (("p.jpg", "mjpeg", "yuvj420p"), ("p.png", "png", "rgb24")):
        picture = write_picture(tmp_path / name, draw.integers(0, 255, (48, 64, 3), dtype=np.uint8), codec, pixels)
        picture.write_bytes(picture.read_bytes() + noise)
        cut_short(picture, tmp_path / f"cut-{name}", 0.003)
    summary = scan([str(tmp_path)], tmp_path / "m.parquet")
    assert (summary["usable"], summary["broken"]) == (3, {"truncated": 2})


def test_a_clock_that_steps_back_ends_what_is_used(tmp_path: Path) -> None:
    one = write_numbered(tmp_path / "one.ts", count=40)
    (tmp_path / "joined.ts").write_bytes(one.read_bytes() + one.read_bytes())
    one.unlink()
    scan([str(tmp_path)], tmp_path / "m.parquet")
    row = rows_of(tmp_path / "m.parquet")["joined.ts"]
    assert (row["frames"], row["fps"]) == (40, pytest.approx(10.0))
    assert row["seconds"] == pytest.approx(4.0)


def ten_thousand(folder: Path) -> None:
    """Ten thousand videos, no two the same, every twentieth broken in one of four ways."""
    folder.mkdir()
    good = write_numbered(folder / "0.mp4", count=12).read_bytes()
    broken = (b"", good[: len(good) // 2], b"no video " * 20, write_sound(folder / "1.mp4").read_bytes())
    for number in range(10_000):
        content = broken[number // 20 % 4] if number % 20 == 0 else good
        mark = struct.pack(">I4sQ", 16, b"free", number) if number % 20 else b""
        (folder / f"{number}.mp4").write_bytes(content + mark)


@pytest.mark.slow
def test_ten_thousand_files_killed_again_and_again(tmp_path: Path) -> None:
    ten_thousand(tmp_path / "v")
    out = tmp_path / "m.parquet"
    kills = 0
    for target in (1000, 4000, 7000):
        started = subprocess.Popen(scan_command(tmp_path / "v", out), stderr=subprocess.PIPE)
        while journal_lines(out) < target and started.poll() is None:
            time.sleep(0.01)
        kills += started.poll() is None
        before = journal_lines(out)
        started.kill()
        started.wait()
        assert target <= before <= journal_lines(out) < 10_000
    assert kills == 3
    last = subprocess.run([*scan_command(tmp_path / "v", out), "--json"], capture_output=True, text=True, check=True)
    summary = json.loads(last.stdout)
    assert (summary["found"], summary["usable"], summary["duplicates"]) == (10_000, 9500, 0)
    assert summary["broken"] == {"empty": 125, "no_video": 125, "not_media": 125, "truncated": 125}
    paths = pq.read_table(out)["path"].to_pylist()
    assert len(set(paths)) == 10_000
