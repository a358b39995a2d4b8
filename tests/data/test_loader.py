import faulthandler
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media import cut_short, footage_of, write_numbered, write_picture

from nextvid.data.clip import Broken, BrokenFile, ClipSpec, MadeUp
from nextvid.data.crew import Here, MixtureBench, Ring
from nextvid.data.loader import Batch, BatchPlan, Line, Losses, batches
from nextvid.data.mixture import Mixture
from nextvid.errors import UserError
from nextvid.randomness import generator, key_of

STAGES = [(5, 4, 4, 6.0, 16), (4, 8, 8, 10.0, 24), (3, 4, 1, 1.0, 32)]
REASONS = {"hang": "timeout", "exit": "unreadable", "SIGSEGV": "unreadable", "SIGKILL": "unreadable"}


def schedule():
    """Twelve steps in three stages of another batch, length, rate and size."""
    plans, number = [], 0
    for steps, batch, frames, fps, size in STAGES:
        for _ in range(steps):
            plans.append(BatchPlan(number, batch, frames, fps, size))
            number += batch
    return plans


class Files:
    """Noise, by the name of files; those in ``bad`` hang, kill the process that reads them, or are broken."""

    name = "files"

    def __init__(self, items=100, bad=None, name="files"):
        self.items = items
        self.bad = bad or {}
        self.name = name

    def describe(self, item):
        return f"{self.name}/{item}.mp4"

    def clip(self, draw, spec, item):
        what = self.bad.get(item)
        if what == "hang":
            time.sleep(1000)
        elif what == "exit":
            time.sleep(0.05)
            os._exit(3)
        elif what in ("SIGSEGV", "SIGKILL"):
            time.sleep(0.05)
            faulthandler.disable()
            os.kill(os.getpid(), getattr(signal, what))
        elif what == "bug":
            return np.zeros(1)[1 // 0]
        elif what is not None:
            raise BrokenFile(self.describe(item), what)
        return draw.integers(0, 256, (spec.frames, spec.size, spec.size, 3), dtype=np.uint8)


def mixture(bad=None, items=100, seed=3):
    return Mixture([Files(items, bad), Files(7, name="more")], [3.0, 1.0], seed)


def plain(broken: list[Broken]):
    return [entry[:4] for entry in broken]


def facts(batch: Batch):
    return batch.frames.numpy().tobytes(), tuple(batch.frames.shape), batch.keys, plain(batch.broken)


def items_of(numbers, mixed, source=0):
    """The items that these samples draw at first."""
    return [choice.item for choice in map(mixed.choice, numbers) if choice.source == source]


def lost_in(made):
    return [entry for batch in made for entry in batch.broken if entry.lost]


@pytest.fixture(scope="module")
def expected():
    return [facts(batch) for batch in batches([mixture()], schedule())]


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    path = tmp_path_factory.mktemp("footage")
    write_numbered(path / "a.mp4", count=20)
    write_numbered(path / "b.mkv", count=30)
    write_picture(path / "p.png", np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    return footage_of(path)


# The order.


def test_batches_are_what_the_plans_say(expected):
    shapes = [shape for _, shape, _, _ in expected]
    assert shapes == [(b, f, 3, s, s) for steps, b, f, _, s in STAGES for _ in range(steps)]
    keys = [key for _, _, keys, _ in expected for key in keys]
    assert len(set(keys)) == len(keys) == sum(steps * batch for steps, batch, *_ in STAGES)


@pytest.mark.parametrize(("workers", "step"), [(1, 0), (2, 7), (3, 1)])
def test_the_order_does_not_depend_on_workers_or_restarts(expected, workers, step):
    made = batches([mixture()], schedule()[step:], workers, seed=workers)
    assert [facts(batch) for batch in made] == expected[step:]


def test_real_files(footage):
    mixed = Mixture([footage], [1.0], 3)
    made = [facts(batch) for batch in batches([mixed], schedule()[3:7], 2)]
    assert made == [facts(batch) for batch in batches([mixed], schedule()[:7])][3:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_plans_whose_batches_grow(expected, workers):
    assert [facts(batch) for batch in batches([mixture()], iter(schedule()), workers)] == expected


def in_parts(mixed, plans, ranks, workers=0):
    """The batches of all ranks, each joined."""
    parts = [list(batches([mixed], plans, workers, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for batch in zip(*parts, strict=True):
        frames = torch.cat([part.frames for part in batch])
        keys, broken = ([entry for part in batch for entry in getattr(part, name)] for name in ("keys", "broken"))
        yield facts(Batch(frames, keys, broken))


@settings(max_examples=15)
@given(
    st.sampled_from([1, 2, 4]),
    st.integers(0, 11),
    st.dictionaries(st.integers(0, 19), st.sampled_from(["truncated", "empty"]), max_size=15),
)
def test_the_parts_of_all_ranks_are_the_batch(ranks, step, bad):
    mixed = mixture(bad, items=20)
    whole = [facts(batch) for batch in batches([mixed], schedule())]
    assert list(in_parts(mixed, schedule()[step:], ranks)) == whole[step:]


@pytest.mark.parametrize(("ranks", "workers"), [(2, 2), (4, 1)])
def test_ranks_with_workers(ranks, workers):
    mixed = mixture(dict.fromkeys(range(0, 100, 3), "truncated"))
    whole = [facts(batch) for batch in batches([mixed], schedule()[2:7])]
    assert list(in_parts(mixed, schedule()[2:7], ranks, workers)) == whole


def test_a_batch_that_does_not_divide_is_a_sentence():
    with pytest.raises(UserError, match=r"stages\.batch=4 .* multiple of 3"):
        next(batches([mixture()], schedule(), ranks=3))


def test_each_plan_names_its_mixture():
    plans = [BatchPlan(0, 2, 2, 1.0, 8, mixture) for mixture in (0, 1, 0)]
    first, second, third = (facts(batch) for batch in batches([mixture(seed=0), mixture(seed=1)], plans))
    assert first == third
    assert first != second


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(batches([mixture()], schedule()[:2], workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_was_handed_over_stays_as_it_is(workers):
    made = list(batches([mixture()], schedule(), workers, prefetch=1))
    assert [facts(batch) for batch in made] == [facts(batch) for batch in batches([mixture()], schedule())]
    parts = [batch.frames[-1] for batch in batches([mixture()], schedule(), workers)]
    assert all(torch.equal(part, batch.frames[-1]) for part, batch in zip(parts, made, strict=True))


# Files that are broken, that hang, and that kill their worker.


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_break_after_the_scan_are_named_and_replaced(tmp_path, workers):
    footage = tmp_path / "footage"
    footage.mkdir()
    for name in "abcd":
        write_numbered(footage / f"{name}.mp4", count=20, key_frames=ord(name) - 80)
    mixed = Mixture([footage_of(footage)], [1.0], 0)
    cut_short(footage / "a.mp4", footage / "b.mp4")
    (footage / "c.mp4").unlink()
    made = list(batches([mixed], schedule(), workers))
    assert len(made) == len(schedule())
    broken = {(entry.path, entry.reason) for batch in made for entry in batch.broken}
    assert broken == {(str(footage / "b.mp4"), "truncated"), (str(footage / "c.mp4"), "unreadable")}
    assert not lost_in(made)


@pytest.mark.parametrize("workers", [0, 1])
def test_footage_that_has_all_gone_is_a_sentence(tmp_path, workers):
    path = write_numbered(tmp_path / "a.mp4", count=20)
    mixed = Mixture([footage_of(path)], [1.0], 0)
    path.unlink()
    with pytest.raises(UserError) as stopped:
        list(batches([mixed], schedule(), workers))
    assert str(path) in str(stopped.value)
    assert "Traceback" not in str(stopped.value)


@pytest.mark.parametrize(("way", "workers"), [("hang", 1), ("hang", 3), ("exit", 2), ("SIGSEGV", 2), ("SIGKILL", 1)])
def test_a_file_that_takes_its_worker_along_is_broken(way, workers):
    early, late = items_of([0, 1, 2, 30, 31, 32], mixture())[:4:3]
    bad = {early: way, late: way, 50: "truncated"}
    made = list(batches([mixture(bad)], schedule(), workers, seconds=0.5))
    as_if = mixture({item: REASONS.get(reason, reason) for item, reason in bad.items()})
    assert [facts(batch) for batch in made] == [facts(batch) for batch in batches([as_if], schedule())]
    assert {entry.path for entry in lost_in(made)} == {f"files/{early}.mp4", f"files/{late}.mp4"}


def test_a_restart_need_not_wait_for_what_was_lost():
    bad = dict.fromkeys(items_of(range(12), mixture(items=15))[:2], "hang")
    made = list(batches([mixture(bad, items=15)], schedule(), 2, seconds=0.5))
    assert len(lost_in(made)) > 2, "the files are drawn in a later epoch, too"
    for step in (2, 7):
        began = time.monotonic()
        again = batches([mixture(bad, items=15)], schedule()[step:], 1, seconds=60.0, lost=lost_in(made[:step]))
        assert [facts(batch) for batch in again] == [facts(batch) for batch in made[step:]]
        assert time.monotonic() - began < 30


def test_one_hang_is_forgiven(expected, tmp_path):
    """A machine that was suspended, or a disk that was away, is no fault of the file."""

    class HangsOnce(Files):
        def clip(self, draw, spec, item):
            if not (tmp_path / "hung").exists():
                (tmp_path / "hung").touch()
                time.sleep(1000)
            return super().clip(draw, spec, item)

    mixed = Mixture([HangsOnce(), Files(7, name="more")], [3.0, 1.0], 3)
    assert [facts(batch) for batch in batches([mixed], schedule(), 2, seconds=0.5)] == expected


def test_workers_that_are_killed_between_clips_are_replaced(expected):
    stream = batches([mixture()], schedule(), 1)
    made = [facts(next(stream))]
    for _ in range(2):
        time.sleep(0.3)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        made.append(facts(next(stream)))
    assert made + [facts(batch) for batch in stream] == expected


@pytest.mark.parametrize("way", ["hang", "exit"])
def test_nothing_but_lost_files_is_a_sentence(way):
    mixed = Mixture([Files(2, dict.fromkeys(range(2), way))], [1.0], 0)
    with pytest.raises(UserError, match=rf"20 draws.*files/[01]\.mp4 \({REASONS[way]}\)"):
        list(batches([mixed], schedule(), 2, seconds=0.3))


@pytest.mark.parametrize(("workers", "error"), [(0, ZeroDivisionError), (2, RuntimeError)])
def test_an_error_in_a_source_ends_the_run(workers, error):
    bad = dict.fromkeys(items_of(range(10, 20), mixture()), "bug")
    with pytest.raises(error, match="integer division or modulo by zero") as stopped:
        list(batches([mixture(bad)], schedule(), workers))
    assert workers == 0 or "Traceback" in str(stopped.value)


def test_made_up_clips_are_not_given_up_for_one_loss():
    class Noise(MadeUp):
        name = "noise"

        def clip(self, draw, spec, item):
            return draw.integers(0, 256, (spec.frames, spec.size, spec.size, 3), dtype=np.uint8)

    lost = [Broken("noise", "timeout", 1, 0, lost=True)]
    made = list(batches([Mixture([Noise()], [1.0], 0)], schedule(), lost=lost))
    assert [entry for batch in made for entry in batch.broken] == lost


class Shuffled(Here):
    """Tasks that end in any order; a share of the files is lost at some draws of them and not at others."""

    def __init__(self, bench, order):
        super().__init__(bench)
        self._order = random.Random(order)

    def take(self, wait):
        if not self._tasks or not (wait or self._order.random() < 0.5):
            return None
        self._order.shuffle(self._tasks)
        task = self._tasks[0]
        if generator("lost", task.number, task.attempt).random() < 0.2:
            return self._tasks.popleft(), self._bench.lost(task, f"reason {key_of(task.number) % 3}")
        return super().take(wait=True)


def in_some_order(order, slots, plans, lost=()):
    bench = MixtureBench([mixture({2: "empty"}, items=9)], Ring(slots, max(plan.bytes for plan in plans)))
    line = Line(bench, Shuffled(bench, order), Losses(lost), slots, pin=False)
    return list(line.run(iter(plans)))


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 6))
def test_what_is_lost_does_not_depend_on_which_attempt_ends_first(order, slots, step):
    plans = schedule()[:7]
    whole = in_some_order(0, 1, plans)
    assert lost_in(whole)
    assert list(map(facts, in_some_order(order, slots, plans))) == list(map(facts, whole))
    if step:
        for known in (lost_in(whole[:step]), lost_in(whole)):
            again = in_some_order(order, slots, plans[step:], known)
            assert list(map(facts, again)) == list(map(facts, whole[step:]))


def test_a_clip_of_the_wrong_shape_is_an_error_not_its_neighbours():
    class Wrong(Files):
        def clip(self, draw, spec, item):
            return super().clip(draw, ClipSpec(spec.frames + 1, spec.fps, spec.size), item)

    with pytest.raises(RuntimeError, match="shape"):
        list(batches([Mixture([Wrong()], [1.0], 0)], schedule(), 1))


# Processes.


def test_an_early_end_leaves_no_process():
    stream = batches([mixture({0: "hang"}, items=1)], schedule(), 2, seconds=100.0)
    assert_stops(stream, wait=False)
    stream = batches([mixture()], schedule(), 2)
    assert_stops(stream, wait=True)


def assert_stops(stream, wait):
    if wait:
        next(stream)
    workers = [child.pid for child in multiprocessing.active_children()]
    assert len(workers) == 2 * wait
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 5
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


ENDLESS = """
import multiprocessing, sys, time
import numpy as np
from nextvid.data.loader import BatchPlan, batches
from nextvid.data.mixture import Mixture

class Slow:
    name, items = "slow", 1000
    def describe(self, item):
        return f"{item}.mp4"
    def clip(self, draw, spec, item):
        time.sleep(float(sys.argv[1]) if item % 30 == 29 else 0.05)
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


def named_shared_memory(pid: int) -> list[str]:
    with open(f"/proc/{pid}/maps") as file:
        return [line for line in file if "/dev/shm/" in line and "(deleted)" not in line]


@pytest.mark.parametrize("seconds", [0.05, 1000])
def test_workers_outlive_stop_signals_and_end_with_the_main_process(seconds):
    command = [sys.executable, "-c", ENDLESS, str(seconds)]
    main = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2
        assert not [line for pid in [main.pid, *workers] for line in named_shared_memory(pid)]
        for pid in workers:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        for _ in range(20 if seconds < 1 else 4):
            assert [int(pid) for pid in main.stdout.readline().split()] == workers
        time.sleep(1 if seconds > 1 else 0)
    finally:
        main.kill()
        main.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)
