import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media import cut_short, write_numbered, write_picture

from nextvid.data.footage import FolderSource
from nextvid.data.loader import Batch, BatchPlan, batches
from nextvid.data.mixture import Mixture
from nextvid.errors import UserError

STAGES = [(5, 3, 4, 6.0, 16), (4, 2, 8, 10.0, 24), (3, 4, 1, 1.0, 32)]


def schedule():
    """Twelve steps in three stages of another batch, length, rate and size."""
    plans, number = [], 0
    for steps, batch, frames, fps, size in STAGES:
        for _ in range(steps):
            plans.append(BatchPlan(number, batch, frames, fps, size))
            number += batch
    return plans


class Keyed:
    """Clips of noise, made in no time."""

    name = "noise"

    def clip(self, draw, spec):
        return draw.integers(0, 256, (spec.frames, spec.size, spec.size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("footage")
    write_numbered(path / "a.mp4", count=20)
    write_numbered(path / "b.mkv", count=30)
    write_picture(path / "p.png", np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    return path


def facts(batch: Batch):
    return batch.frames.numpy().tobytes(), tuple(batch.frames.shape), batch.keys, batch.broken


@pytest.fixture(scope="module")
def expected(folder):
    return [facts(batch) for batch in batches([Mixture([FolderSource(folder)], [1.0], 3)], schedule())]


def test_batches_are_what_the_plans_say(expected):
    shapes = [shape for _, shape, _, _ in expected]
    assert shapes == [(b, f, 3, s, s) for steps, b, f, _, s in STAGES for _ in range(steps)]
    keys = [key for _, _, keys, _ in expected for key in keys]
    assert len(set(keys)) == len(keys) == sum(steps * batch for steps, batch, *_ in STAGES)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_order_does_not_depend_on_workers(folder, expected, workers):
    mixture = Mixture([FolderSource(folder)], [1.0], 3)
    assert [facts(batch) for batch in batches([mixture], schedule(), workers, seed=workers)] == expected


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 11))
def test_a_restart_goes_on_with_the_same_batches(step):
    mixture = Mixture([Keyed()], [1.0], 8)
    whole = [facts(batch) for batch in batches([mixture], schedule())]
    assert [facts(batch) for batch in batches([mixture], schedule()[step:])] == whole[step:]


@pytest.mark.parametrize("step", [1, 7])
def test_a_restart_with_another_number_of_workers(folder, expected, step):
    mixture = Mixture([FolderSource(folder)], [1.0], 3)
    assert [facts(batch) for batch in batches([mixture], schedule()[step:], workers=2)] == expected[step:]


def test_each_plan_names_its_mixture():
    mixtures = [Mixture([Keyed()], [1.0], 0), Mixture([Keyed()], [1.0], 1)]
    plans = [BatchPlan(0, 2, 2, 1.0, 8, mixture) for mixture in (0, 1, 0)]
    first, second, third = (facts(batch) for batch in batches(mixtures, plans))
    assert first == third
    assert first != second


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(batches([Mixture([Keyed()], [1.0], 0)], schedule()[:2], workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_break_after_the_scan_are_named_and_replaced(tmp_path, workers):
    for name in "abcd":
        write_numbered(tmp_path / f"{name}.mp4", count=20)
    mixture = Mixture([FolderSource(tmp_path)], [1.0], 0)
    cut_short(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "c.mp4").unlink()
    made = list(batches([mixture], schedule(), workers))
    assert len(made) == len(schedule())
    broken = {entry for batch in made for entry in batch.broken}
    assert broken == {(str(tmp_path / "b.mp4"), "truncated"), (str(tmp_path / "c.mp4"), "unreadable")}


@pytest.mark.parametrize("workers", [0, 2])
def test_footage_that_has_all_gone_is_a_sentence(tmp_path, workers):
    path = write_numbered(tmp_path / "a.mp4", count=20)
    mixture = Mixture([FolderSource(tmp_path)], [1.0], 0)
    path.unlink()
    with pytest.raises(UserError) as stopped:
        list(batches([mixture], schedule(), workers))
    assert str(path) in str(stopped.value)
    assert "Traceback" not in str(stopped.value)


ENDLESS = """
import multiprocessing, time
import numpy as np
from nextvid.data.loader import BatchPlan, batches
from nextvid.data.mixture import Mixture

class Slow:
    name = "slow"
    def clip(self, draw, spec):
        time.sleep(0.05)
        return np.zeros((spec.frames, spec.size, spec.size, 3), np.uint8)

plans = (BatchPlan(number, 1, 1, 1.0, 4) for number in range(100_000))
for batch in batches([Mixture([Slow()], [1.0], 0)], plans, workers=2):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_outlive_stop_signals_and_end_with_the_main_process():
    main = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        for _ in range(20):
            assert [int(pid) for pid in main.stdout.readline().split()] == workers
    finally:
        main.kill()
        main.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)
