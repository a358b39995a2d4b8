import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvid.data import benchmarks
from nextvid.data.benchmarks import ego_motion, figure, motion_capture, rendered
from nextvid.data.benchmarks.figure import Take
from nextvid.data.benchmarks.levels import Level
from nextvid.data.benchmarks.rendered import FRAMES, SHARD, Rendering, Rows, frame_numbers
from nextvid.data.clip import ClipSpec, Source
from nextvid.errors import UserError

NAMES = ("motion-capture", "ego-motion")
PACKAGES = {"motion-capture": "pybullet", "ego-motion": "vizdoom"}
MODULES = {"motion-capture": motion_capture, "ego-motion": ego_motion}
SPEC = ClipSpec(8, 6.0, 32)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, filled by one process at a time."""
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    return tmp_path


# A renderer that is quick


@contextlib.contextmanager
def fake_stage(split):
    yield lambda index: np.full((2, 3), index % 200 + (split == "test"), np.uint8)


@contextlib.contextmanager
def failing_stage(split):
    def row(index):
        if index >= SHARD:
            raise ValueError("no such pose")
        return np.zeros((2, 3), np.uint8)

    yield row


@contextlib.contextmanager
def dying_stage(split):
    yield lambda index: os._exit(9)


FAKE = Rendering("fake", 1, "json", (2, 3), fake_stage)


@pytest.fixture
def at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that this process fills itself."""

    def render(rendering, split, missing):
        with rendering.stage(split) as row:
            for number in missing:
                rows = [row(index) for index in range(number * SHARD, (number + 1) * SHARD)]
                rendered._save(rendering.shard(split, number), np.stack(rows))

    monkeypatch.setattr(rendered, "_render", render)
    return cache


def test_rows_are_rendered_when_asked_for_and_only_as_many_shards_as_the_length_takes(cache):
    rows = Rows(FAKE, "train", SHARD + 1)
    assert rows.missing() == [0, 1]
    assert not list(cache.iterdir())
    assert [int(rows[index][0, 0]) for index in (0, 5, SHARD)] == [0, 5, SHARD]
    assert rows.missing() == []
    assert sorted(file.name for file in FAKE.folder("train").glob("*.npy")) == ["0000.npy", "0001.npy"]
    assert int(Rows(FAKE, "test", 3)[2][0, 0]) == 3


def test_what_is_whole_stays_and_what_is_damaged_or_absent_is_rendered_anew(at_once):
    rows = Rows(FAKE, "train", 4 * SHARD)
    rows.render()
    kept, cut, gone, other = (FAKE.shard("train", number) for number in range(4))
    before = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:100])
    gone.unlink()
    np.save(other, np.zeros((SHARD, 2, 4), np.uint8))
    (FAKE.folder("train") / ".0001.npy.77.tmp").write_bytes(b"half")
    rendered._mapped.cache_clear()
    assert rows.missing() == [1, 2, 3]
    assert int(rows[SHARD][0, 0]) == SHARD
    assert rows.missing() == []
    assert kept.stat().st_mtime_ns == before
    assert not list(FAKE.folder("train").glob(".*.tmp"))


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(cache, monkeypatch):
    content = []
    for processors in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, those=processors: those)
        Rows(FAKE, "train", 5 * SHARD).render()
        content.append([FAKE.shard("train", number).read_bytes() for number in range(5)])
        shutil.rmtree(FAKE.folder("train"))
        rendered._mapped.cache_clear()
    assert content[0] == content[1]


def test_a_whole_cache_needs_neither_the_package_nor_the_right_to_write(at_once, monkeypatch):
    Rows(FAKE, "train", 3).render()
    absent = Rendering("fake", 1, "no_such_package", (2, 3), fake_stage)
    monkeypatch.setattr(rendered, "_locked", None)
    assert int(Rows(absent, "train", 3)[1][0, 0]) == 1
    with pytest.raises(UserError, match=r"fake is rendered by no_such_package.*pip install nextvid\[benchmarks\]"):
        Rows(absent, "test", 3)


def test_a_failure_is_told_and_what_was_whole_by_then_stays(cache):
    failing = Rendering("fake", 1, "json", (2, 3), failing_stage)
    with pytest.raises(RuntimeError, match="no such pose"):
        Rows(failing, "train", 2 * SHARD).render()
    assert Rows(failing, "train", 2 * SHARD).missing() == [1]


def test_a_process_that_is_killed_is_noticed(cache):
    with pytest.raises(RuntimeError, match=r"rendering fake ended with \[9\]"):
        Rows(Rendering("fake", 1, "json", (2, 3), dying_stage), "train", 1).render()


def test_a_cache_without_room_or_rights_is_the_users_error(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 100))
    with pytest.raises(UserError, match=r"fake \(train\) cannot be rendered into .*0 MiB are free.*NEXTVID_CACHE"):
        Rows(FAKE, "train", 1)[0]
    (cache / "file").write_text("")
    monkeypatch.setenv("NEXTVID_CACHE", str(cache / "file"))
    with pytest.raises(UserError, match=r"cannot be rendered into .*NEXTVID_CACHE"):
        Rows(FAKE, "train", 1)[0]


def test_a_disk_that_fills_while_rendering_is_the_users_error(cache, monkeypatch):
    monkeypatch.setattr(rendered, "_render", lambda *_: rendered._check(FAKE, [0, rendered.CANNOT_WRITE], complaints))
    complaints = cache.joinpath("complaints").open("w+b")
    complaints.write(b"a warning\n[Errno 28] No space left on device\n")
    with complaints, pytest.raises(UserError, match=r"No space left on device\. Set NEXTVID_CACHE"):
        Rows(FAKE, "train", 1).render()


def render_in_a_daemon(answers) -> None:
    answers.put(int(Rows(FAKE, "train", 2 * SHARD)[SHARD][0, 0]))


@pytest.mark.slow
def test_workers_of_a_loader_may_ask_all_at_once(cache):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=render_in_a_daemon, args=(answers,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=60) for _ in workers] == [SHARD, SHARD]
    for worker in workers:
        worker.join()


# True time


def test_frames_are_those_of_true_time_about_the_middle():
    assert frame_numbers("x", ClipSpec(32, 12.0, 8)).tolist() == list(range(32))
    assert frame_numbers("x", ClipSpec(4, 4.0, 8)).tolist() == [10, 13, 16, 19]
    assert frame_numbers("x", ClipSpec(4, 24.0, 8)).tolist() == [15, 15, 16, 16]
    assert frame_numbers("x", ClipSpec(1, 1.0, 8)).tolist() == [16]


@given(st.integers(1, 40), st.sampled_from([3.0, 4.0, 6.0, 8.0, 12.0, 30.0]))
def test_a_clip_is_in_what_is_rendered_or_too_long(frames, fps):
    try:
        numbers = frame_numbers("ego-motion", ClipSpec(frames, fps, 8))
    except UserError as error:
        assert "ask for fewer frames or a higher fps" in str(error)  # noqa: PT017
        assert frames / fps > 2.3
    else:
        assert numbers[frames // 2] == FRAMES // 2
        assert (np.diff(numbers) >= 0).all()
        assert (frames - 1) / fps < FRAMES / 12


# By name, without the extra


@pytest.mark.parametrize("name", NAMES)
def test_they_are_known_and_say_what_to_install(name, cache, monkeypatch):
    assert name in benchmarks.names()
    assert benchmarks.levels(name)[0] == "still"
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    for open_it in (lambda: benchmarks.load(name, "still", "test"), lambda: benchmarks.unlabelled(name, "still")):
        with pytest.raises(UserError, match=rf"{name} is rendered by .*pip install nextvid\[benchmarks\]"):
            open_it()


def test_importing_the_benchmarks_imports_no_renderer():
    code = "import sys; from nextvid.data import benchmarks; print({'pybullet', 'vizdoom'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.fixture
def dots(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both benchmarks with rows of noise, so that everything but the drawing can be tried without the extra."""
    for name, module in MODULES.items():
        shape = module.RENDERING.shape
        quick = Rendering(name, 1, "json", shape, module.RENDERING.stage)
        monkeypatch.setattr(module, "RENDERING", quick)
        monkeypatch.setattr(module, "POOL", SHARD)
        for split in ("train", "test"):
            rows = draw(split == "test").integers(0, 256, (SHARD, *shape), np.uint8)
            quick.folder(split).mkdir(parents=True)
            np.save(quick.shard(split, 0), rows)


@pytest.mark.usefixtures("dots")
@pytest.mark.parametrize("name", NAMES)
def test_clips_and_labels(name):
    clips = benchmarks.load(name, "still", "train", length=SHARD)
    (task, classes), *_ = clips.tasks.items()
    assert len(classes) == {"motion-capture": 15, "ego-motion": 12}[name]
    counts = Counter(clips.labels(index)[task] for index in range(len(classes) * 2))
    assert counts == dict.fromkeys(range(len(classes)), 2)
    first, again = (clips.clip(7, SPEC) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (8, 32, 32, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, benchmarks.load(name, "still", "test", length=SHARD).clip(7, SPEC))
    for index in (-1, SHARD):
        with pytest.raises(IndexError, match=f"clip {index} of {SHARD}"):
            clips.clip(index, SPEC)
    with pytest.raises(UserError, match=f"those of {name} last 2.7 s"):
        clips.clip(0, ClipSpec(16, 4.0, 32))


@pytest.mark.usefixtures("dots")
@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_clips_are_a_source_and_pure(name):
    source = benchmarks.unlabelled(name, "still")
    assert isinstance(source, Source)
    clips = [source.clip(draw(seed), SPEC) for seed in (1, 2, 1)]
    assert np.array_equal(clips[0], clips[2])
    assert not np.array_equal(clips[0], clips[1])


@pytest.mark.usefixtures("dots")
@pytest.mark.parametrize("name", NAMES)
def test_less_contrast_spreads_the_colours_less(name):
    full, half = (benchmarks.load(name, level, "train", 9).clip(3, SPEC) for level in ("still", "still-0.25"))
    assert half.std() < 0.9 * full.std()


# Motion capture


def test_a_figure_covers_its_ground_and_nothing_else():
    row = np.zeros((8, 112, 112), np.uint8)
    row[:, 28:84, 28:84] = (np.array([1, 2, 3])[np.arange(56) % 3] << 6) + 63
    spec = ClipSpec(8, 6.0, 112)
    clip = motion_capture.paint(draw(5), row, "train", Level("plain"), spec)
    outside = clip[row == 0]
    assert (outside == outside[0]).all()
    assert len(np.unique(clip[row > 0], axis=0)) == 3
    dark = motion_capture.paint(draw(5), row - (row > 0) * np.uint8(63), "train", Level("plain"), spec)
    assert (dark[row > 0] == 0).all()


def test_train_and_test_see_the_figure_from_different_sides():
    take = Take(np.array([0.0, 1.0]), np.zeros((2, 3)), np.ones((2, 13, 4)), True)
    for split, odd in (("train", 0), ("test", 1)):
        sides = [motion_capture.draw_shot(draw(seed), split, take).azimuth for seed in range(200)]
        for mirror in (1, -1):
            found = {int((mirror * side + 15) % 360 // 30) for side in sides}
            assert found == {2 * sector + odd for sector in range(6)}


def test_the_camera_stands_still_until_it_has_to_follow():
    near = np.linspace(0, 0.3, 9)[:, None] * [1, 1, 0]
    np.testing.assert_allclose(motion_capture.follow(near), np.tile(near[4] * [1, 0, 1], (9, 1)))
    far = np.linspace(0, 8, 9)[:, None] * [1, 0, 1]
    left = far - motion_capture.follow(far)
    assert np.linalg.norm(left, axis=1).max() == pytest.approx(motion_capture.REACH)


def turned(angle: float) -> list[float]:
    return [np.cos(angle / 2), 0, np.sin(angle / 2), 0]


def test_a_take_that_loops_goes_on_where_it_was(tmp_path):
    still = [1.0, 0, 0, 0]
    rest = [*still, *still, *still, 0.5, *still, *still, 0.5, *still, 0.5, *still, *still, 0.5]
    poses = [[0.5, x, 1, 0, *(np.array(turned(0.1 * x)) * sign), *rest] for x, sign in ((0, 1), (1, -1), (2, 1))]
    file = tmp_path / "take.txt"
    file.write_text(f'{{"Loop": "wrap", "Frames": {poses}}}'.replace("np.float64(", "").replace(")", ""))
    take = figure.read_take(file)
    assert take.seconds == pytest.approx(1 + figure.GAP)
    place, turns = take.at(0.25)
    assert place[0] == pytest.approx(0.5)
    assert abs(turns[0, 3]) > 0.99
    assert turns[4, 0] == pytest.approx(0.5)
    places = np.array([take.at(moment)[0] for moment in np.arange(-3, 3, 0.05)])
    assert np.abs(np.diff(places, axis=0) - [0.1, 0, 0]).max() < 1e-6


def test_a_take_that_does_not_loop_rests_at_its_ends():
    take = Take(np.array([0.0, 1.0]), np.array([[0, 0, 0], [1.0, 0, 0]]), np.ones((2, 13, 4)), False)
    assert [take.at(moment)[0][0] for moment in (-1.0, 0.25, 3.0)] == [0, 0.25, 1]


def test_the_sphere_is_closed_and_faces_outwards():
    lines = [line.split() for line in figure.unit_sphere().splitlines()]
    points = np.array([line[1:] for line in lines if line[0] == "v"], float)
    faces = np.array([[int(corner.split("/")[0]) - 1 for corner in line[1:]] for line in lines if line[0] == "f"])
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    volume = np.sum(a * np.cross(b, c)) / 6
    assert 0.85 < volume / (4 / 3 * np.pi) < 1
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)


# Ego-motion


@given(st.sampled_from(sorted(ego_motion.MOTIONS)), st.integers(0, 2**32))
def test_every_path_passes_the_middle_view_and_stays_near(motion, seed):
    random = draw(seed)
    middle = ego_motion.View(complex(*random.uniform(-500, 500, 2)), random.uniform(0, 360), random.uniform(-8, 8))
    pace = ego_motion.Pace(random.uniform(60, 110), random.uniform(60, 120), random.uniform(25, 45))
    views = ego_motion.path(middle, ego_motion.MOTIONS[motion], pace)
    np.testing.assert_allclose(views[FRAMES // 2], middle)
    away = abs(np.array([view.place for view in views]) - middle.place).max()
    assert away <= pace.speed * FRAMES / ego_motion.FPS / 2 + 1e-6
    assert max(abs(view.pitch) for view in views) < 31


def test_each_motion_does_what_its_name_says():
    east = ego_motion.View(0j, 0.0, 0.0)
    pace = ego_motion.Pace(90.0, 90.0, 30.0)
    walked = {"forward": 1, "backward": -1, "left": 1j, "right": -1j}
    for name, motion in ego_motion.MOTIONS.items():
        views = ego_motion.path(east, motion, pace)
        step = views[17].place - views[16].place
        first = name.split(",")[0].removeprefix("circle ")
        assert abs(step - walked.get(first, 0) * 90 / 12) < 0.5
        turn = ("left" in name) - ("right" in name) if "turn" in name else 0
        turn += ("right" in name) - ("left" in name) if "circle" in name else 0
        assert np.sign(views[17].heading - views[16].heading) == turn
        assert np.sign(views[17].pitch - views[16].pitch) == ("up" in name) - ("down" in name)


def test_room_and_sight_are_the_distances_to_walls():
    square = np.array([[0, 100], [100, 100 + 100j], [100 + 100j, 100j], [100j, 0]])
    ground = ego_motion.Map(square, np.array([50 + 50j]))
    assert ground.room(30 + 50j) == pytest.approx(30)
    assert ground.sight(30 + 50j, 0.0) == pytest.approx(70)
    assert ground.sight(30 + 50j, 90.0) == pytest.approx(50)
    assert ground.sight(30 + 50j, 45.0) == pytest.approx(50 * np.sqrt(2))
    assert ground.sight(200 + 50j, 0.0) == np.inf


# With the extra


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_shard_is_the_same_in_any_order_and_another_process(name, cache):
    pytest.importorskip(PACKAGES[name])
    clips = benchmarks.load(name, "still", "test", length=SHARD)
    shown = clips.clip(5, SPEC)
    assert shown.std() > 5
    with MODULES[name].stage("test") as row:
        for index in (47, 5, 30):
            assert np.array_equal(row(index), clips.rows[index])


def test_the_figure_is_seen_and_all_its_parts():
    pytest.importorskip("pybullet")
    with motion_capture.stage("train") as row:
        for index in range(15):
            frames = row(index)
            share = (frames > 0).mean((1, 2))
            assert (share > 0.015).all()
            assert (share < 0.3).all()
            assert set(np.unique(frames >> 6)) == {0, 1, 2, 3}
            assert (frames[1:] != frames[:-1]).any((1, 2)).mean() > 0.4


def test_the_game_shows_light_and_motion_and_is_closed():
    pytest.importorskip("vizdoom")
    before = os.getcwd()
    with ego_motion.stage("test") as row:
        for index in range(12):
            one = row(index)
            clip = ego_motion.play(one, np.arange(FRAMES), ClipSpec(FRAMES, 12.0, 120), Level("still"))
            assert clip[16].mean() > 25
            assert (np.abs(np.diff(clip.astype(int), axis=0)).mean((1, 2, 3)) > 0.5).mean() > 0.8
    assert os.getcwd() == before
