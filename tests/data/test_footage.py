import itertools

import numpy as np
import pytest
from media import (
    cut_short,
    footage_of,
    numbered,
    read_numbers,
    rotate_header,
    write_numbered,
    write_picture,
    write_sound,
    write_video,
)

from nextvid.data.clip import BrokenFile, ClipSpec, Source
from nextvid.data.cuts import back_and_forth, cuts, longest_shot, thumbnails
from nextvid.data.film import load_film
from nextvid.data.footage import clip_times
from nextvid.data.transforms import Augmentation
from nextvid.errors import UserError
from nextvid.footage import inspect

WHOLE = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0)
SPEC = ClipSpec(frames=8, fps=5.0, size=32)


def square(path, count=40, **settings):
    """A square video, so that a whole crop keeps all the stripes; the stripes are faint, so that they are no cuts."""
    pictures = [numbered(number, 64, 64) // 10 + 100 for number in range(count)]
    return write_video(path, pictures, **settings)


def numbers(clip):
    return read_numbers((clip > 112) * 255)


def drawn(source, seed, spec=SPEC, item=0):
    return source.clip(np.random.default_rng(seed), spec, item)


@pytest.fixture(params=["decoded whole", "decoded in part"])
def knowledge(request, monkeypatch):
    """Both ways: the scan knows all shots, or clips look for cuts themselves."""
    if request.param == "decoded in part":
        monkeypatch.setattr(inspect, "WHOLE_PIXELS", 0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Every kind of good and bad file, in nested folders."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "inner" / "most").mkdir(parents=True)
    video = write_numbered(folder / "b.mp4")
    write_numbered(folder / "inner" / "A.MKV", fps=12)
    rotate_header(video, folder / "inner" / "most" / "turned.mov")
    write_picture(folder / "inner" / "most" / "p.png", numbered(3))
    write_picture(folder / "photo.jpeg", numbered(5), "mjpeg", "yuvj420p")
    (folder / "empty.mp4").touch()
    cut_short(video, folder / "cut.mp4")
    write_sound(folder / "sound.mp4")
    return folder


def test_clips_of_every_kind_of_file(mixed):
    source = footage_of(mixed)
    assert isinstance(source, Source)
    assert source.items == 5
    for item in range(source.items):
        clip = drawn(source, 0, item=item)
        assert (clip.shape, clip.dtype) == ((8, 32, 32, 3), np.uint8)
        assert source.describe(item).startswith(str(mixed))


def test_a_clip_is_a_pure_function_of_draw_and_item(mixed):
    source, other = footage_of(mixed), footage_of(mixed)
    keys = list(itertools.product(range(3), range(source.items)))
    clips = {key: drawn(source, key[0], item=key[1]) for key in keys}
    for seed, item in reversed(keys):
        assert (drawn(other, seed, item=item) == clips[seed, item]).all()
    assert not all((first == second).all() for first, second in itertools.pairwise(clips.values()))


@pytest.mark.usefixtures("knowledge")
@pytest.mark.parametrize("fps", [2.5, 5.0, 10.0])
def test_clips_keep_true_time_whatever_the_files_rate(tmp_path, fps):
    for rate in (10, 30):
        square(tmp_path / f"{rate}.mp4", count=6 * rate, fps=rate)
    source = footage_of(tmp_path, augmentation=WHOLE)
    for seed, (item, rate) in itertools.product(range(3), enumerate((10, 30))):
        shown = np.array(numbers(drawn(source, seed, ClipSpec(5, fps, 64), item))) / rate
        assert abs(shown - shown[0] - np.arange(5) / fps).max() <= 1 / rate + 1e-6


@pytest.mark.usefixtures("knowledge")
def test_a_variable_frame_rate_is_sampled_by_true_time(tmp_path):
    seconds = np.cumsum([0.0, *np.random.default_rng(0).choice([0.05, 0.2, 0.4], 39)])
    square(tmp_path / "a.mkv", seconds=seconds)
    source = footage_of(tmp_path, augmentation=WHOLE)
    for seed in range(5):
        shown = seconds[numbers(drawn(source, seed, ClipSpec(4, 4.0, 64)))]
        assert (abs(np.diff(shown) - 0.25) <= 0.4).all()


@pytest.mark.usefixtures("knowledge")
def test_starts_reach_the_whole_video(tmp_path):
    square(tmp_path / "a.mp4", count=60)
    source = footage_of(tmp_path, augmentation=WHOLE)
    shown = np.array([numbers(drawn(source, seed, ClipSpec(4, 5.0, 64))) for seed in range(60)])
    assert shown.min() <= 3
    assert shown.max() >= 57


def test_several_clips_a_video_begin_in_as_many_parts_of_it(tmp_path):
    square(tmp_path / "a.mp4", count=80)
    source = footage_of(tmp_path, augmentation=WHOLE, clips_per_video=4)
    assert source.items == 4
    for item in range(4):
        starts = [numbers(drawn(source, seed, ClipSpec(1, 5.0, 64), item))[0] for seed in range(12)]
        assert 20 * item <= min(starts)
        assert max(starts) < 20 * (item + 1)


@pytest.mark.usefixtures("knowledge")
def test_a_short_video_is_played_back_and_forth(tmp_path):
    square(tmp_path / "short.mp4", count=5)
    shown = numbers(drawn(footage_of(tmp_path, augmentation=WHOLE), 0, ClipSpec(12, 10.0, 64)))
    assert shown == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3]


def test_a_picture_is_a_still_clip(tmp_path):
    write_picture(tmp_path / "p.png", np.random.default_rng(0).integers(0, 255, (70, 50, 3), dtype=np.uint8))
    clip = drawn(footage_of(tmp_path), 0)
    assert clip.shape == (8, 32, 32, 3)
    assert (clip == clip[:1]).all()


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("tall.mp4", {}, (64, 48)),
        ("odd.mkv", {"codec": "ffv1", "pixels": "yuv444p"}, (47, 33)),
        ("grey.mkv", {"codec": "ffv1", "pixels": "gray"}, (48, 64)),
        ("deep.mkv", {"codec": "ffv1", "pixels": "yuv420p10le"}, (48, 64)),
        ("alpha.mov", {"codec": "png", "pixels": "rgba"}, (48, 64)),
        ("small.mp4", {}, (16, 16)),
    ],
)
def test_every_shape_and_pixel_format_gives_clips(tmp_path, name, settings, shape):
    write_video(tmp_path / name, [numbered(number, *shape) for number in range(12)], **settings)
    source = footage_of(tmp_path)
    for seed in range(3):
        assert drawn(source, seed).shape == (8, 32, 32, 3)


def with_cut(path, before, after):
    """Two shots: a dark one of ``before`` frames and a bright one of ``after``."""
    dark, bright = (np.full((64, 64, 3), level, np.uint8) for level in (30, 200))
    return write_video(path, [dark] * before + [bright] * after)


@pytest.mark.usefixtures("knowledge")
def test_clips_stay_inside_a_shot(tmp_path):
    with_cut(tmp_path / "two.mp4", 30, 30)
    source = footage_of(tmp_path)
    brightness = [drawn(source, seed, ClipSpec(8, 5.0, 32)).astype(int).mean(axis=(1, 2, 3)) for seed in range(30)]
    assert max(np.ptp(levels) for levels in brightness) < 10
    assert len({levels[0] > 100 for levels in brightness}) == 2


@pytest.mark.usefixtures("knowledge")
def test_a_shot_shorter_than_the_clip_is_played_back_and_forth(tmp_path):
    with_cut(tmp_path / "two.mp4", 8, 3)
    source = footage_of(tmp_path)
    for seed in range(8):
        clip = drawn(source, seed, ClipSpec(10, 10.0, 32)).astype(int)
        assert np.ptp(clip.mean(axis=(1, 2, 3))) < 10


def test_motion_is_no_cut_and_a_change_of_scene_is_one():
    y, x = np.mgrid[:90, :160]
    moving = [np.stack([x + 12 * n, y + 7 * n, x - y], -1) % 256 // 2 for n in range(8)]
    clip = np.stack(moving).astype(np.uint8)
    assert longest_shot(clip) == range(8)
    clip[5:] = 255 - clip[5:]
    assert longest_shot(clip) == range(5)
    assert longest_shot(clip[:1]) == range(1)


def test_cuts_of_the_film_are_found():
    film = load_film()
    true = {shot.start for shot in film.train if 0 < shot.start < 2000}
    found = set(cuts(thumbnails(film.frames[:2000])))
    assert len(found & true) >= 0.85 * len(true)
    assert len(found & true) >= 0.85 * len(found)


def test_indices_forth_and_back():
    assert back_and_forth(range(2, 5), 8).tolist() == [2, 3, 4, 3, 2, 3, 4, 3]
    assert back_and_forth(range(3, 4), 3).tolist() == [3, 3, 3]


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.9, 1.4, 1.6, 30.0])
def test_times_lie_inside_the_stretch(seconds):
    for at in np.linspace(0, 0.999, 20):
        times = clip_times(float(at), 5.0, 5.0 + seconds, 10.0, SPEC)
        assert times.shape == (8,)
        assert (times >= 5.0).all()
        assert (times < 5.0 + seconds).all()


def test_a_file_that_has_gone_since_is_broken(tmp_path):
    source = footage_of(square(tmp_path / "a.mp4"))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(BrokenFile, match=r"a\.mp4: unreadable"):
        drawn(source, 0)


def test_nothing_to_use_is_a_sentence(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError, match="no usable file"):
        footage_of(tmp_path)
