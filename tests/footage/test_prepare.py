"""Shards of clips: what is in them, going on after a stop, and what can go wrong."""

import json
import multiprocessing
import operator
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from media import cut_short, read_numbers, write_numbered, write_picture
from rich.console import Console

from nextvid.data.clip import ClipSpec
from nextvid.data.decode import decode_clip, probe_file
from nextvid.data.footage import FootageSource
from nextvid.data.manifest import SCHEMA, Manifest, read_facts, read_rows, write_manifest
from nextvid.errors import UserError
from nextvid.files import checksum, read_json
from nextvid.footage import crew
from nextvid.footage.crew import make_shards
from nextvid.footage.plan import PrepareSettings, Shard, plan_digest
from nextvid.footage.prepare import prepare_footage, table_of
from nextvid.footage.scan import scan
from nextvid.footage.shard import ShardFacts, ShardProgress, ShardTask, make_shard

SETTINGS = PrepareSettings(short_side=32, min_seconds=0.0, shard_mb=0.001)
"""About one file makes a shard."""
QUIET = Console(quiet=True)
LABELS = {"a.mp4": "7", "b.mkv": "a word"}


def manifest_of(folder: Path) -> Path:
    """A scan's manifest of ``folder``, with labels, and with what looks alike."""
    path = folder.parent / f"{folder.name}.parquet"
    scan([str(folder)], path, workers=1, console=QUIET)
    rows = pa.Table.from_batches(read_rows(path), SCHEMA).to_pylist()
    for row in rows:
        row["label"] = LABELS.get(os.path.basename(row["path"]))
        row["status"] = "usable" if row["status"] == "duplicate" else row["status"]
    write_manifest(path, pa.Table.from_pylist(rows, SCHEMA).to_batches(), read_facts(path)["summary"])
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage") / "mine"
    folder.mkdir()
    write_numbered(folder / "a.mp4")
    write_numbered(folder / "b.mkv", 30, codec="mpeg4", seconds=(np.arange(30) ** 1.5 / 20).tolist())
    write_picture(folder / "c.png", np.full((50, 70, 3), (200, 90, 20), np.uint8))
    cut_short(folder / "a.mp4", folder / "d.mp4")
    write_numbered(folder / "e.mp4", 20)
    return manifest_of(folder)


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that two processes have made."""
    out = tmp_path_factory.mktemp("shards") / "whole"
    prepare_footage(manifest, out, SETTINGS, workers=2, console=QUIET)
    return out


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def contents(folder: Path) -> dict[str, str]:
    """The checksums of what must be the same whoever makes it."""
    names = [*folder.glob("shard-*"), folder / "manifest.parquet"]
    return {path.name: checksum(path) for path in sorted(names)}


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                file = tar.extractfile(member)
                assert file is not None
                found[f"{path.name}/{member.name}"] = file.read()
    return found


def one_task(manifest: Path, folder: Path, last: int = 10**6) -> ShardTask:
    """All of a manifest in one shard."""
    folder.mkdir(exist_ok=True)
    return ShardTask(folder, manifest, SETTINGS, plan_digest(manifest, SETTINGS), Shard(0, 0, last, 1.0))


def test_the_counts_add_up(whole: Path) -> None:
    summary = read_json(whole / "prepare.json")
    assert summary["found"] == summary["usable"] + sum(summary["broken"].values()) + summary["too_short"] == 4
    assert summary["clips"] == summary["videos"] + summary["pictures"] == len(Manifest(whole / "manifest.parquet"))
    assert summary["pictures"] == 1
    assert summary["shards"] == len(list(whole.glob("*.tar"))) > 1
    assert summary["bytes_out"] == sum(path.stat().st_size for path in whole.glob("*.tar"))
    assert summary["left_out"] == 0
    scanned = Manifest(whole / "manifest.parquet").summary
    assert (scanned["found"], scanned["usable"], scanned["hours"]) == (summary["clips"],) * 2 + (summary["hours"],)


def test_random_access_gives_what_the_member_holds(whole: Path, tmp_path: Path) -> None:
    stored = members(whole)
    prepared = Manifest(whole / "manifest.parquet")
    frames = 0
    for number in range(len(prepared)):
        file = prepared[number]
        alone = tmp_path / os.path.basename(str(file.place))
        alone.write_bytes(stored[os.path.relpath(str(file.place), whole)])
        probed = probe_file(str(alone))
        assert (probed.kind, probed.width, probed.height, probed.frames) == (
            file.info.kind,
            file.info.width,
            file.info.height,
            file.info.frames,
        )
        assert probed.seconds == pytest.approx(file.info.seconds, abs=1e-4)
        times = np.linspace(0, file.info.seconds, 5)
        assert np.array_equal(decode_clip(file.place, times), decode_clip(str(alone), times))
        frames += file.info.frames * (file.info.kind == "video")
    assert frames == 40 + 30 + 20


def test_a_source_draws_clips_from_the_shards(whole: Path) -> None:
    source = FootageSource(Manifest(whole / "manifest.parquet"))
    for item in range(source.items):
        clip = source.clip(np.random.default_rng(item), ClipSpec(4, 5.0, 16), item)
        assert clip.shape == (4, 16, 16, 3)
        assert source.describe(item).startswith(str(whole / "shard-"))


def test_what_a_clip_says_of_its_source_is_true(whole: Path) -> None:
    stored = members(whole)
    for name, about in stored.items():
        if name.endswith(".json"):
            said = json.loads(about)
            kind = "jpg" if said["source"].endswith("png") else "mp4"
            assert f"{name.removesuffix('.json')}.{kind}" in stored
            if kind == "mp4" and said["source"].endswith("a.mp4"):
                middle = (said["start"] + said["end"]) / 2
                assert read_numbers(decode_clip(said["source"], np.array([middle]))) == [int(middle * 10)]
            label = LABELS.get(os.path.basename(said["source"]))
            assert said["label"] == label
            assert stored.get(f"{name.removesuffix('.json')}.cls") == (b"7" if label == "7" else None)
    assert {row["label"] for batch in read_rows(whole / "manifest.parquet") for row in batch.to_pylist()} == {
        "7",
        "a word",
        None,
    }


def test_keys_are_safe_and_unique(whole: Path) -> None:
    keys = [os.path.basename(name).split(".")[0] for name in members(whole) if name.endswith("json")]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("_", "").isdecimal() for key in keys)


def test_webdataset_reads_the_shards(whole: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    tars = [str(path) for path in sorted(whole.glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == read_json(whole / "prepare.json")["clips"]
    stored = members(whole)
    for sample in samples:
        (content,) = (sample[kind] for kind in ("mp4", "jpg") if kind in sample)
        assert content in stored.values()
        assert json.loads(sample["json"])["frames"] >= 1


def test_once_more_makes_nothing(shards: Path, manifest: Path) -> None:
    before = times_of(shards)
    summary = prepare_footage(manifest, shards, SETTINGS, console=QUIET)
    assert times_of(shards) == before
    assert summary == read_json(shards / "prepare.json")
    prepare_footage(manifest, shards, SETTINGS, verify=True, console=QUIET)
    assert times_of(shards) == before


def test_a_flipped_byte_is_found_and_mended(shards: Path, whole: Path, manifest: Path) -> None:
    tar = shards / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    damaged = times_of(shards)
    others = {name: when for name, when in damaged.items() if name.startswith("shard-000000")}
    prepare_footage(manifest, shards, SETTINGS, workers=1, console=QUIET)
    assert times_of(shards) == damaged
    prepare_footage(manifest, shards, SETTINGS, workers=1, verify=True, console=QUIET)
    assert contents(shards) == contents(whole)
    assert others.items() <= times_of(shards).items()


def test_a_missing_or_short_shard_is_made_anew(shards: Path, whole: Path, manifest: Path) -> None:
    (shards / "shard-000000.tar").unlink()
    cut_short(shards / "shard-000001.tar", shards / "shard-000001.tar")
    (shards / "shard-000002.parquet").write_bytes(b"PAR1 no more")
    prepare_footage(manifest, shards, SETTINGS, workers=1, console=QUIET)
    assert contents(shards) == contents(whole)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("name", "damage"), [("manifest.parquet", b"PAR1 no more"), ("prepare.json", b'{"found": ')])
@pytest.mark.parametrize("gone", [False, True])
def test_what_is_said_of_all_shards_is_made_anew_from_them(
    shards: Path, whole: Path, manifest: Path, name: str, damage: bytes, gone: bool, verify: bool
) -> None:
    before = {name: when for name, when in times_of(shards).items() if name.startswith("shard-")}
    (shards / name).unlink() if gone else (shards / name).write_bytes(damage)
    summary = prepare_footage(manifest, shards, SETTINGS, workers=1, verify=verify, console=QUIET)
    assert contents(shards) == contents(whole)
    assert before.items() <= times_of(shards).items()
    expected = read_json(whole / "prepare.json")
    assert summary["time"].pop("clips_per_second") == 0 < expected["time"].pop("clips_per_second")
    assert {**summary, "time": 0} == {**expected, "time": 0}


@pytest.mark.parametrize("damage", ["{", "[1]", "{}", '{"format_version": 1}', '{"settings": 1, "manifest": 2}'])
def test_damaged_settings_are_refused_with_a_sentence(shards: Path, manifest: Path, damage: str) -> None:
    (shards / "settings.json").write_text(damage)
    with pytest.raises(UserError, match=r"settings\.json is damaged"):
        prepare_footage(manifest, shards, SETTINGS, console=QUIET)


def test_a_video_without_two_frames_in_a_shot_is_too_short(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_numbered(folder / "a.mp4", 15)
    write_numbered(folder / "b.mp4", 60)
    write_picture(folder / "c.png", np.full((50, 70, 3), (200, 90, 20), np.uint8))
    manifest = manifest_of(folder)
    settings = PrepareSettings(short_side=32, fps=0.5)
    summary = prepare_footage(manifest, tmp_path / "out", settings, workers=1, console=QUIET)
    assert [summary[name] for name in ("found", "usable", "too_short", "broken")] == [3, 2, 1, {}]
    assert summary["left_out"] >= 1
    assert summary["bytes_in"] == sum((folder / name).stat().st_size for name in ("b.mp4", "c.png"))
    rows = pa.Table.from_batches(read_rows(tmp_path / "out" / "manifest.parquet"), SCHEMA).to_pylist()
    assert [(row["status"], row["path"]) for row in rows if row["status"] != "usable"] == [
        ("too_short", str(folder / "a.mp4"))
    ]
    assert all(row["frames"] >= 2 for row in rows if row["kind"] == "video")
    prepared = Manifest(tmp_path / "out" / "manifest.parquet")
    assert (len(prepared), prepared.summary["too_short"]) == (summary["clips"], 1)
    assert table_of(summary).row_count == 4


def test_workers_are_for_this_machine(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers is 3, which is for this machine or --ray local"):
        prepare_footage(manifest, tmp_path / "out", SETTINGS, workers=3, ray="10.0.0.1:6379", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_other_settings_and_other_manifests_are_refused(shards: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepared with crf 23, not 30"):
        prepare_footage(manifest, shards, PrepareSettings(short_side=32, min_seconds=0.0, shard_mb=0.001, crf=30))
    rows = pa.Table.from_batches(read_rows(manifest), SCHEMA)
    write_manifest(tmp_path / "other.parquet", rows.slice(1).to_batches(), {})
    with pytest.raises(UserError, match="other rows"):
        prepare_footage(tmp_path / "other.parquet", shards, SETTINGS)
    (shards / "settings.json").unlink()
    with pytest.raises(UserError, match=r"no settings\.json"):
        prepare_footage(manifest, shards, SETTINGS)


def test_files_gone_or_damaged_since_the_scan_are_counted_and_named(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_numbered(folder / name, 60, options={"movflags": "faststart"})
    manifest = manifest_of(folder)
    (folder / "a.mp4").unlink()
    cut_short(folder / "b.mp4", folder / "b.mp4")
    summary = prepare_footage(manifest, tmp_path / "out", PrepareSettings(), 1, console=Console(width=500))
    assert (summary["found"], summary["usable"]) == (3, 1)
    assert summary["broken"] == {"truncated": 1, "unreadable": 1}
    said = capsys.readouterr().out
    assert f"{folder / 'a.mp4'}: unreadable" in said
    assert f"{folder / 'b.mp4'}: truncated" in said
    rows = pa.Table.from_batches(read_rows(tmp_path / "out" / "manifest.parquet"), SCHEMA)
    broken = rows.filter(pc.equal(rows["status"], "broken"))
    assert broken["reason"].to_pylist() == ["unreadable", "truncated"]
    assert {json.loads(data)["row"] for name, data in members(tmp_path / "out").items() if "json" in name} == {2}


def test_nothing_of_a_file_that_breaks_part_way_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_numbered(folder / "a.mp4", 20)
    write_numbered(folder / "b.mkv", 100, codec="mpeg4")
    manifest = manifest_of(folder)
    expected = make_shard(one_task(manifest, tmp_path / "alone", last=1))
    data = bytearray((folder / "b.mkv").read_bytes())
    data[-3000:-2000] = bytes(1000)
    (folder / "b.mkv").write_bytes(data)
    said: list[ShardProgress] = []
    facts = make_shard(one_task(manifest, tmp_path / "both"), said.append)
    assert max(progress.clips for progress in said) > expected.clips
    assert [progress.row for progress in said if progress.row is None] == [said[-1].row]
    assert facts.broken == {"unreadable": 1}
    assert (facts.clips, facts.sha256) == (expected.clips, expected.sha256)


def test_the_disk_says_no(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="could not be written"):
        prepare_footage(manifest, tmp_path / "file" / "shards", SETTINGS, console=QUIET)
    if os.path.exists("/dev/full"):
        task = one_task(manifest, tmp_path / "full")
        os.symlink("/dev/full", task.folder / f".{task.tar.name}.{os.getpid()}.tmp")
        with pytest.raises(UserError, match="could not be written"):
            make_shard(task)
        assert list(task.folder.iterdir()) == []
    with pytest.raises(UserError, match="no manifest"):
        prepare_footage(tmp_path / "none.parquet", tmp_path / "shards", SETTINGS, console=QUIET)


def worker_pid() -> int:
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    return child.pid


@pytest.mark.parametrize(("kills", "reason"), [(True, "unreadable"), (False, "timeout")])
def test_a_process_that_dies_or_hangs_over_a_file_is_replaced(
    manifest: Path, tmp_path: Path, kills: bool, reason: str
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    rows = pa.Table.from_batches(read_rows(manifest), SCHEMA).to_pylist()
    rows[1] = {**rows[1], "path": str(tmp_path / "pipe.mp4")}
    write_manifest(tmp_path / "m.parquet", pa.Table.from_pylist(rows, SCHEMA).to_batches(), {})
    said: list[ShardProgress | ShardFacts] = []
    task = one_task(tmp_path / "m.parquet", tmp_path / "out")
    for _, heard in make_shards([task], workers=1, patience=60.0 if kills else 1.5):
        said.append(heard)
        if kills and isinstance(heard, ShardProgress) and heard.row == 1:
            os.kill(worker_pid(), signal.SIGKILL)
            kills = sum(isinstance(one, ShardProgress) and one.row == 1 for one in said) < 2
    (facts,) = (heard for heard in said if isinstance(heard, ShardFacts))
    assert facts.broken == {reason: 1}
    assert facts.usable == 3
    assert files_in(task.folder) == ["shard-000000.parquet", "shard-000000.tar"]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def starting(monkeypatch: pytest.MonkeyPatch, deaths: int) -> list[ShardTask]:
    """The tasks that workers are started for, of whom the first ``deaths`` end at once."""
    started: list[ShardTask] = []
    work, start = crew._work, crew._started

    def begin(task: ShardTask) -> Any:
        started.append(task)
        monkeypatch.setattr(crew, "_work", operator.is_ if len(started) <= deaths else work)
        return start(task)

    monkeypatch.setattr(crew, "_started", begin)
    return started


def test_a_process_that_dies_before_it_begins_is_started_again(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = starting(monkeypatch, deaths=2)
    task = one_task(manifest, tmp_path / "out", last=1)
    (facts,) = (heard for _, heard in make_shards([task], workers=1) if isinstance(heard, ShardFacts))
    assert facts.usable == 1
    assert started == [task] * 3


def test_processes_that_never_begin_end_the_run_with_a_sentence(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = starting(monkeypatch, deaths=100)
    with pytest.raises(UserError, match="fewer workers"):
        list(make_shards([one_task(manifest, tmp_path / "out")], workers=1))
    assert len(started) == 3


def test_a_process_that_dies_while_it_closes_a_shard_costs_no_file(manifest: Path, tmp_path: Path) -> None:
    task = one_task(manifest, tmp_path / "out")
    closing = 0
    for _, heard in make_shards([task], workers=1):
        if isinstance(heard, ShardProgress) and heard.row is None:
            closing += 1
            if closing <= 2:
                os.kill(worker_pid(), signal.SIGKILL)
    assert closing == 3
    assert isinstance(heard, ShardFacts)
    assert heard.broken == {}
    assert files_in(task.folder) == ["shard-000000.parquet", "shard-000000.tar"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_a_main_process_that_was_killed(manifest: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    rows = pa.Table.from_batches(read_rows(manifest), SCHEMA).slice(0, 1).to_pylist()
    rows[0]["path"] = str(tmp_path / "pipe.mp4")
    write_manifest(tmp_path / "m.parquet", pa.Table.from_pylist(rows, SCHEMA).to_batches(), {})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nextvid", "prepare", str(tmp_path / "m.parquet"), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (half := list(out.glob(".shard-*.tmp"))):
        assert process.poll() is None
        time.sleep(0.01)
    worker = int(half[0].name.split(".")[-2])
    assert alive(worker)
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    try:
        assert not alive(worker)
    finally:
        if alive(worker):
            os.kill(worker, signal.SIGKILL)
    (tmp_path / "pipe.mp4").unlink()
    summary = prepare_footage(tmp_path / "m.parquet", out, workers=1, console=QUIET)
    assert summary["broken"] == {"unreadable": 1}
    assert not [name for name in files_in(out) if name.endswith(".tmp")]


def test_nothing_half_written_is_left_where_a_run_fails(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tasks: list[ShardTask], *_: Any) -> Any:
        (tmp_path / "out" / ".shard-000000.tar.1.tmp").write_text("half")
        raise UserError("no more")

    monkeypatch.setattr("nextvid.footage.prepare.make_shards", fails)
    with pytest.raises(UserError, match="no more"):
        prepare_footage(manifest, tmp_path / "out", SETTINGS, workers=1, console=QUIET)
    assert files_in(tmp_path / "out") == [".lock", "settings.json"]


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_is_as_if_nothing_had_happened(
    manifest: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nextvid", "prepare", str(manifest), "-o", str(out), "--workers", "1", "--json"]
    command += ["--short-side", "32", "--min-seconds", "0", "--shard-mb", "0.001"]
    kills = 0
    for number, code in ((signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        already = len(list(out.glob("shard-*.parquet")))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(list(out.glob("shard-*.parquet"))) <= already and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == code
        kills += 1
        if code == 75:
            assert "the same command goes on" in " ".join(said.split())
    assert kills
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["clips"] == read_json(whole / "prepare.json")["clips"]
    assert contents(out) == contents(whole)
    assert not list(out.glob(".shard-*"))


def test_one_folder_is_prepared_by_one_process(shards: Path, manifest: Path) -> None:
    import fcntl  # noqa: PLC0415

    with (shards / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            prepare_footage(manifest, shards, SETTINGS, console=QUIET)


def test_without_ray_the_way_to_get_it_is_named(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install nextvid\[ray\]"):
        prepare_footage(manifest, tmp_path / "out", SETTINGS, ray="local", console=QUIET)


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_shards(manifest: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    summary = prepare_footage(manifest, tmp_path / "out", SETTINGS, workers=2, ray="local", console=QUIET)
    assert contents(tmp_path / "out") == contents(whole)
    assert summary["clips"] == read_json(whole / "prepare.json")["clips"]
