"""``nextvid doctor``: facts of machines that are not this one, and this one tried for real."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from nextvid.doctor import Check, compute, decoders, examine_machine, packages, report, storage, table
from nextvid.doctor.check import first_line, guarded, some
from nextvid.doctor.compute import Accelerator, DeviceFacts
from nextvid.doctor.decoders import Trial
from nextvid.limits import cpu_quota, memory_limit, memory_of_machine, usable_cores

GIB, MIB = 2**30, 2**20


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def version_2(root: Path) -> Path:
    """A group of 1.5 cores and 8 GiB inside one of 4 cores and 2 GiB."""
    folder, inner = root / "sys/fs/cgroup/outer", root / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    (folder / "cpu.max").write_text("400000 100000\n")
    (folder / "memory.max").write_text(f"{2 * GIB}\n")
    (inner / "cpu.max").write_text("150000 100000\n")
    (inner / "memory.max").write_text("max\n")
    return write(root, proc__self__cgroup="0::/outer/inner")


def version_1(root: Path) -> Path:
    """A container's own view: the host's name of its group, and the group at the mount's root."""
    processor, memory = root / "sys/fs/cgroup/cpu,cpuacct", root / "sys/fs/cgroup/memory"
    processor.mkdir(parents=True)
    memory.mkdir(parents=True)
    (processor / "cpu.cfs_quota_us").write_text("200000\n")
    (processor / "cpu.cfs_period_us").write_text("100000\n")
    (memory / "memory.limit_in_bytes").write_text(f"{3 * GIB}\n")
    return write(root, proc__self__cgroup="4:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n1:name=systemd:/docker/abc")


def test_limits_of_control_groups_of_version_2(tmp_path: Path) -> None:
    assert (cpu_quota(version_2(tmp_path)), memory_limit(tmp_path)) == (1.5, 2 * GIB)


def test_limits_of_control_groups_of_version_1(tmp_path: Path) -> None:
    assert (cpu_quota(version_1(tmp_path)), memory_limit(tmp_path)) == (2.0, 3 * GIB)


def test_groups_without_limits_limit_nothing(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="4:cpu,cpuacct:/\n9:memory:/\n0::/")
    write(tmp_path / "sys/fs/cgroup", cpuDOTmax="max 100000", memoryDOTmax="max")
    write(tmp_path / "sys/fs/cgroup/memory", memoryDOTlimit_in_bytes="9223372036854771712")
    write(tmp_path / "sys/fs/cgroup/cpu", cpuDOTcfs_quota_us="-1", cpuDOTcfs_period_us="100000")
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (None, None)
    assert (cpu_quota(tmp_path / "nothing"), memory_limit(tmp_path / "nothing")) == (None, None)


def test_usable_cores_are_those_allowed_or_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert usable_cores(tmp_path) == 3
    assert usable_cores(version_2(tmp_path)) == 1.5


def test_memory_is_read_from_the_machine(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo="MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0")
    assert memory_of_machine(tmp_path) == (8 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("usable", "threads", "state"),
    [(4.0, 4, "ok"), (2.0, 4, "wrong"), (1.5, 2, "ok"), (0.5, 1, "ok"), (8.0, 1, "note"), (1.5, 3, "wrong")],
)
def test_threads_against_usable_cores(usable: float, threads: int, state: str) -> None:
    check = compute.judge_cores(8, usable, threads, None)
    assert check.state == state
    assert state == "ok" or check.mend == f"use training.threads={int(usable)}"


def test_threads_are_those_of_torch_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    check = compute.check_cores(version_2(tmp_path))
    assert check.state == "wrong"
    assert "64 threads (OMP_NUM_THREADS=64)" in check.found


CARD = Accelerator("Some GPU", 80 * GIB, bfloat16=True)


@pytest.mark.parametrize(
    ("facts", "state", "says"),
    [
        (DeviceFacts("12.8", (CARD,), None, True, None), "ok", "Some GPU (80.0 GiB, bfloat16)"),
        (DeviceFacts("12.8", (Accelerator("Old", GIB, False),), None, True, None), "note", "precision=float32"),
        (
            DeviceFacts("12.8", (Accelerator("New", GIB, True, "no kernel image"),), None, True, None),
            "wrong",
            "no kernel",
        ),
        (DeviceFacts("12.8", (), "The driver is too old", True, None), "wrong", "The driver is too old"),
        (DeviceFacts("12.8", (), None, True, ""), "wrong", "unset CUDA_VISIBLE_DEVICES"),
        (DeviceFacts(None, (), "not compiled", True, None), "wrong", "built for the CPU only"),
        (DeviceFacts(None, (), "not compiled", False, None), "note", "CPU only"),
        (DeviceFacts("12.8", (), "no driver", False, None), "note", "CPU only"),
    ],
)
def test_devices(facts: DeviceFacts, state: str, says: str) -> None:
    check = compute.judge_devices(facts)
    assert check.state == state
    assert says in f"{check.found} {check.mend}"


def test_a_driver_beside_a_torch_without_cuda_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cuda() -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "init", no_cuda)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compute.check_devices(tmp_path).state == "note"
    write(tmp_path, proc__driver__nvidia__version="NVRM version")
    assert compute.check_devices(tmp_path).state == "wrong"


@pytest.mark.parametrize(
    ("figures", "state", "mend"),
    [
        ((50.0, 190.0, 4, 0.6), "ok", ""),
        ((50.0, 190.0, 4, 5.0), "note", "training.precision=float32"),
        ((50.0, 45.0, 4, 0.6), "note", "training.threads=1"),
        ((50.0, 50.0, 1, 1.05), "ok", ""),
    ],
)
def test_arithmetic(figures: tuple[float, float, int, float], state: str, mend: str) -> None:
    check = compute.judge_arithmetic(*figures)
    assert check.state == state
    assert mend in check.mend


def test_rates_are_measured_and_the_threads_stay_as_they_were() -> None:
    before = torch.get_num_threads()
    check = compute.check_arithmetic()
    assert "GFLOP/s with one thread" in check.found
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("free", "state"), [(MIB - 1, "wrong"), (MIB, "ok"), (GIB, "ok")])
def test_shared_memory(free: int, state: str) -> None:
    assert storage.judge_shared_memory(free).state == state


def test_no_shared_memory_at_all_is_wrong(tmp_path: Path) -> None:
    assert storage.check_shared_memory(tmp_path / "shm").state == "wrong"


def test_little_memory_is_a_note_also_where_only_the_container_has_little() -> None:
    assert storage.judge_memory(64 * GIB, 32 * GIB, None).state == "ok"
    assert storage.judge_memory(64 * GIB, 32 * GIB, GIB).state == "note"
    assert storage.judge_memory(64 * GIB, GIB, None).state == "note"


@pytest.mark.parametrize(("free", "state"), [(100 * MIB, "wrong"), (GIB, "note"), (9 * GIB, "ok")])
def test_free_space(tmp_path: Path, free: int, state: str) -> None:
    assert storage.judge_disk(tmp_path, free).state == state


@pytest.mark.parametrize(
    ("limits", "state"), [((128, 128), "wrong"), ((512, 8192), "note"), ((1024, 1024), "ok"), ((-1, -1), "ok")]
)
def test_open_files(limits: tuple[int, int], state: str) -> None:
    assert storage.judge_open_files(*limits).state == state


def test_writing_and_locking_leave_nothing_behind_and_need_no_folder(tmp_path: Path) -> None:
    assert storage.check_writing(tmp_path / "runs/mine").state == "ok"
    assert storage.check_locks(tmp_path / "runs/mine").state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_wrong() -> None:
    for check in (storage.check_writing(Path("/proc")), storage.check_locks(Path("/proc"))):
        assert check.state == "wrong"
        assert "/proc" in check.found


@pytest.mark.parametrize(
    ("refusal", "says"), [(OSError(38, "Function not implemented"), "not implemented"), (None, "two holders")]
)
def test_locks_that_do_not_work_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: OSError | None, says: str
) -> None:
    def lock(*_: object) -> None:
        if refusal:
            raise refusal

    monkeypatch.setattr("nextvid.doctor.storage.fcntl.flock", lock)
    check = storage.check_locks(tmp_path)
    assert check.state == "wrong"
    assert says in check.found


def test_packages_against_what_is_asked_for() -> None:
    wanted = ["numpy>=2.0", "no-such-package-here; extra == 'dev'"]
    assert packages.judge_packages(wanted).state == "ok"
    check = packages.judge_packages([*wanted, "rich<1", "no-such-package-here>=3"])
    assert check.state == "wrong"
    assert "but nextvid supports <1" in check.found
    assert "no-such-package-here is not installed" in check.found
    assert 'pip install "rich<1"' in check.mend


def test_python_against_what_is_asked_for() -> None:
    assert packages.judge_python("3.12.4", ">=3.11,<3.14").state == "ok"
    assert packages.judge_python("3.10.1", ">=3.11,<3.14").state == "wrong"


@pytest.mark.parametrize(
    ("content", "state"),
    [("raise RuntimeError('operator nms does not exist')", "wrong"), ("__version__ = '0.99'", "ok")],
)
def test_a_torchvision_that_fails_at_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, state: str
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    check = packages.check_torchvision()
    assert check.state == state
    assert ("operator nms does not exist" in check.found) == (state == "wrong")
    assert (check.mend == "pip uninstall torchvision") == (state == "wrong")
    assert "torchvision" not in sys.modules


def test_the_real_film_is_decoded() -> None:
    trial = decoders.try_decoder("pyav")
    assert trial.problem is None
    assert trial.clip is not None
    assert len(trial.clip) == 16
    assert decoders.judge_pyav(trial).state == "ok"
    assert decoders.judge_torchcodec(trial, trial).state == "ok"


def test_a_film_that_does_not_decode_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/film.mp4").write_bytes(b"no film at all")
    (tmp_path / "assets/film.json").write_text(json.dumps({"frames": 100, "fps": 12}))
    monkeypatch.setattr(decoders.resources, "files", lambda _: tmp_path)
    check = decoders.judge_pyav(decoders.try_decoder("pyav"))
    assert check.state == "wrong"
    assert "not_media" in check.found


def test_decoders_that_disagree_are_wrong_and_one_that_fails_is_a_note() -> None:
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 9, np.uint8)
    assert decoders.judge_torchcodec(Trial(grey, 1.0), Trial(black, 1.0)).state == "wrong"
    assert decoders.judge_torchcodec(Trial(black[:, :2], 1.0), Trial(black, 1.0)).state == "wrong"
    check = decoders.judge_torchcodec(Trial(None, 0.0, "no libavutil"), Trial(black, 1.0))
    assert check.state == "note"
    assert "no libavutil" in check.found


def test_ffmpeg_by_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert decoders.check_ffmpeg().state == "note"
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho ffmpeg version 7.1 Copyright someone\n")
    program.chmod(0o755)
    assert decoders.check_ffmpeg() == Check("FFmpeg", "ok", f"ffmpeg version 7.1 at {program}")


def test_this_machine_is_examined_and_a_check_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Check:
        raise KeyError("MemTotal")

    monkeypatch.setattr("nextvid.doctor.storage.check_memory", broken)
    checks = {check.name: check for check in examine_machine(tmp_path)}
    assert "KeyError" in checks["memory"].found
    assert {checks[name].state for name in ("Python", "packages", "writing", "file locks", "PyAV", "decoder")} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_sound_unless_something_is_wrong() -> None:
    fine, bad = [Check("a", "ok", "x"), Check("b", "note", "y", "z")], Check("c", "wrong", "w")
    assert report(fine)["sound"] is True
    found = report([*fine, bad])
    assert found["sound"] is False
    assert found["format_version"] == 1
    expected = {"name": "b", "state": "note", "found": "y", "mend": "z", "figures": {}}
    assert json.loads(json.dumps(found))["checks"][1] == expected


def test_the_table_fits_80_columns_and_leaves_out_nothing() -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table([Check("learning rates", "wrong", "word " * 40 + "[end]", "do " * 30 + "this")]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "[end]" in " ".join(lines)
    assert any("→ do do" in line for line in lines)


def test_small_words() -> None:
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert first_line(ValueError("")) == "no message"
    assert guarded("x", lambda: Check("x", "ok", "y")).state == "ok"
