import itertools
import json

import numpy as np
import pytest
from media import (
    cut_short,
    numbered,
    read_numbers,
    rotate_header,
    write_numbered,
    write_picture,
    write_sound,
    write_video,
)

from nextvid.data.clip import BrokenFile, ClipSpec, Source
from nextvid.data.decode import FileInfo
from nextvid.data.footage import FolderSource, back_and_forth, clip_times, longest_shot
from nextvid.data.transforms import Augmentation
from nextvid.errors import UserError

WHOLE = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0)
SPEC = ClipSpec(frames=8, fps=5.0, size=32)


def square(path, count=40, **settings):
    """A square video, so that a whole crop keeps all the stripes; the stripes are faint, so that they are no cuts."""
    pictures = [numbered(number, 64, 64) // 5 + 100 for number in range(count)]
    return write_video(path, pictures, **settings)


def numbers(clip):
    return read_numbers((clip > 125) * 255)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Every kind of good and bad file, in nested folders."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "inner" / "most").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    video = write_numbered(folder / "b.mp4")
    write_numbered(folder / "inner" / "A.MKV")
    write_numbered(folder / "inner" / "one.mp4", count=1)
    rotate_header(video, folder / "inner" / "most" / "turned.mov")
    write_picture(folder / "inner" / "most" / "p.png", numbered(3))
    write_picture(folder / "photo.jpeg", numbered(5), "mjpeg", "yuvj420p")
    (folder / "empty.mp4").touch()
    (folder / "text.avi").write_text("no video\n" * 30)
    (folder / "text.jpg").write_text("no picture\n" * 30)
    (folder / "notes.txt").write_text("not footage, so not counted")
    (folder / "._b.mp4").write_text("a shadow file")
    cut_short(video, folder / "cut.mp4")
    write_sound(folder / "sound.mp4")
    write_numbered(folder / ".hidden" / "c.mp4")
    return folder


def test_a_folder_is_scanned_and_every_file_counted(mixed):
    source = FolderSource(mixed, WHOLE)
    report = source.report
    assert isinstance(source, Source)
    assert source.name == str(mixed)
    assert report.broken == {"empty": 1, "no_video": 1, "not_media": 2, "truncated": 1}
    assert [(path.rsplit("/")[-1], reason) for path, reason in report.broken_files] == [
        ("cut.mp4", "truncated"),
        ("empty.mp4", "empty"),
        ("sound.mp4", "no_video"),
        ("text.avi", "not_media"),
        ("text.jpg", "not_media"),
    ]
    assert (report.found, report.usable, report.too_short) == (11, 5, 1)
    assert report.found == report.usable + sum(report.broken.values()) + report.too_short
    assert report.hours == pytest.approx(3 * 4 / 3600, rel=0.05)
    assert [file.path for file in source.files] == sorted(file.path for file in source.files)


def test_clips_of_every_kind_of_file(mixed):
    source = FolderSource(mixed)
    for seed in range(20):
        clip = source.clip(np.random.default_rng(seed), SPEC)
        assert (clip.shape, clip.dtype) == ((8, 32, 32, 3), np.uint8)


def test_a_clip_is_a_pure_function_of_the_draw(mixed):
    source, other = FolderSource(mixed), FolderSource(mixed)
    clips = {seed: source.clip(np.random.default_rng(seed), SPEC) for seed in range(8)}
    for seed in reversed(range(8)):
        assert (other.clip(np.random.default_rng(seed), SPEC) == clips[seed]).all()
    assert not all((first == second).all() for first, second in itertools.pairwise(clips.values()))


@pytest.mark.parametrize("ending", ["", "/*.mp4", "/**/*.mp4"])
def test_a_folder_a_file_and_a_glob(tmp_path, ending):
    square(tmp_path / "a.mp4")
    write_picture(tmp_path / "p.png", numbered(1))
    found = FolderSource(f"{tmp_path}{ending}", WHOLE).report.found
    assert found == (1 if ending else 2)
    assert FolderSource(str(tmp_path / "a.mp4"), WHOLE).report.usable == 1


@pytest.mark.parametrize("fps", [2.5, 5.0, 10.0])
def test_clips_keep_true_time_whatever_the_files_rate(tmp_path, fps):
    for rate in (10, 30):
        square(tmp_path / f"{rate}.mp4", count=6 * rate, fps=rate)
    source = FolderSource(tmp_path, WHOLE)
    for seed in range(6):
        draw = np.random.default_rng(seed)
        rate = 10 if int(np.random.default_rng(seed).integers(2)) == 0 else 30
        shown = np.array(numbers(source.clip(draw, ClipSpec(5, fps, 64)))) / rate
        assert abs(shown - shown[0] - np.arange(5) / fps).max() <= 1 / rate + 1e-6


def test_starts_reach_the_whole_video(tmp_path):
    square(tmp_path / "a.mp4", count=60)
    source = FolderSource(tmp_path, WHOLE)
    shown = np.array([numbers(source.clip(np.random.default_rng(seed), ClipSpec(4, 5.0, 64))) for seed in range(60)])
    assert shown.min() <= 3
    assert shown.max() >= 57


def test_a_short_video_is_played_back_and_forth(tmp_path):
    square(tmp_path / "short.mp4", count=5)
    shown = numbers(FolderSource(tmp_path, WHOLE).clip(np.random.default_rng(0), ClipSpec(12, 10.0, 64)))
    assert shown == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3]


def test_a_picture_is_a_still_clip(tmp_path):
    write_picture(tmp_path / "p.png", np.random.default_rng(0).integers(0, 255, (70, 50, 3), dtype=np.uint8))
    clip = FolderSource(tmp_path).clip(np.random.default_rng(0), SPEC)
    assert clip.shape == (8, 32, 32, 3)
    assert (clip == clip[:1]).all()


def with_cut(path, before, after):
    """Two shots: a dark one of ``before`` frames and a bright one of ``after``."""
    dark, bright = (np.full((64, 64, 3), level, np.uint8) for level in (30, 200))
    return write_video(path, [dark] * before + [bright] * after)


def test_clips_stay_inside_a_shot(tmp_path):
    with_cut(tmp_path / "two.mp4", 30, 30)
    source = FolderSource(tmp_path)
    for seed in range(30):
        clip = source.clip(np.random.default_rng(seed), ClipSpec(8, 5.0, 32)).astype(int)
        assert np.ptp(clip.mean(axis=(1, 2, 3))) < 10


def test_where_no_start_avoids_the_cut_the_longer_side_is_kept(tmp_path):
    with_cut(tmp_path / "two.mp4", 8, 3)
    clip = FolderSource(tmp_path).clip(np.random.default_rng(0), ClipSpec(10, 10.0, 32))
    assert clip.mean() < 40


def test_motion_is_no_cut_and_a_change_of_scene_is_one():
    y, x = np.mgrid[:90, :160]
    moving = [np.stack([x + 12 * n, y + 7 * n, x - y], -1) % 256 // 2 for n in range(8)]
    clip = np.stack(moving).astype(np.uint8)
    assert longest_shot(clip) == range(8)
    clip[5:] = 255 - clip[5:]
    assert longest_shot(clip) == range(5)
    assert longest_shot(clip[:1]) == range(1)


def test_indices_forth_and_back():
    assert back_and_forth(range(2, 5), 8).tolist() == [2, 3, 4, 3, 2, 3, 4, 3]
    assert back_and_forth(range(3, 4), 3).tolist() == [3, 3, 3]


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.9, 1.4, 1.6, 30.0])
def test_times_lie_inside_the_video(seconds):
    info = FileInfo("video", 64, 48, 10.0, max(1, round(seconds * 10)), seconds)
    for seed in range(20):
        times = clip_times(np.random.default_rng(seed), info, SPEC)
        assert times.shape == (8,)
        assert (times >= 0).all()
        assert (times < seconds).all()


def test_the_list_of_files_survives_a_restart(mixed):
    source = FolderSource(mixed)
    again = FolderSource.from_json(source.to_json(), source.augmentation)
    assert (again.name, again.files, again.report) == (source.name, source.files, source.report)
    draw = [np.random.default_rng(5) for _ in range(2)]
    assert (again.clip(draw[0], SPEC) == source.clip(draw[1], SPEC)).all()


def test_a_file_that_has_gone_since_is_broken(tmp_path):
    stored = FolderSource(square(tmp_path / "a.mp4")).to_json()
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(BrokenFile, match=r"a\.mp4: unreadable"):
        FolderSource.from_json(stored).clip(np.random.default_rng(0), SPEC)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format_version": 99})])
def test_a_stored_list_that_is_none(text):
    with pytest.raises(UserError, match="scan the footage anew"):
        FolderSource.from_json(text)


def test_nothing_to_use_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no footage at .*missing"):
        FolderSource(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no video or picture.*\.mp4"):
        FolderSource(tmp_path)
    (tmp_path / "empty.mp4").touch()
    write_numbered(tmp_path / "one.mp4", count=1)
    with pytest.raises(UserError, match=r"None of the 2 .*1 empty, 1 with fewer than 2 frames.*empty\.mp4"):
        FolderSource(tmp_path)
    with pytest.raises(UserError, match="None of the 1"):
        FolderSource(tmp_path / "empty.mp4")
