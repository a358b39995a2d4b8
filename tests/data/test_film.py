import importlib.util
import itertools
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvid.data import film
from nextvid.data.clip import ClipSpec, Source
from nextvid.data.film import SPLITS, FilmClips, FilmPictures, load_film
from nextvid.data.transforms import Augmentation
from nextvid.errors import UserError

seeds = st.integers(0, 2**32)
splits = st.sampled_from(SPLITS)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return draw(seed).integers(256, size=(frames, 90, 160, 3), dtype=np.uint8)


def test_the_film_is_what_its_description_says_and_read_only():
    reel = load_film()
    assert reel.frames.shape == (5724, 90, 160, 3)
    assert reel.fps == 12
    with pytest.raises(ValueError, match="read-only"):
        reel.frames[0, 0, 0, 0] = 0


def test_train_shots_lie_in_the_first_three_quarters_and_test_shots_in_the_last():
    reel = load_film()
    boundary = 0.75 * len(reel.frames)
    assert max(shot.end for shot in reel.train) <= boundary <= min(shot.start for shot in reel.test)
    shots = reel.train + reel.test
    assert all(0 <= shot.start < shot.end <= len(reel.frames) for shot in shots)
    assert all(before.end <= after.start for before, after in itertools.pairwise(shots))
    assert sum(shot.end - shot.start for shot in shots) > 0.98 * len(reel.frames)


def test_no_frame_inside_a_shot_differs_from_the_one_before_as_scenes_do():
    reel = load_film()
    small = reel.frames[:, 2::5, 2::5].astype(np.int16)
    change = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))
    inside = np.concatenate([change[shot.start : shot.end - 1] for shot in reel.train + reel.test])
    across = [change[shot.start - 1] for shot in reel.train[1:]]
    assert inside.max() < 65
    assert np.median(across) > 8 * np.median(inside)


@settings(deadline=None)
@given(seeds, splits, st.integers(1, 12), st.sampled_from([2.0, 5.0, 6.0, 12.0, 24.0, 30.0]))
def test_clips_stay_inside_one_shot_and_keep_true_time(seed, split, frames, fps):
    numbers = FilmClips(split).frame_numbers(draw(seed), ClipSpec(frames, fps, 48))
    assert any(shot.start <= numbers.min() and numbers.max() < shot.end for shot in load_film().shots(split))
    seconds = np.arange(frames) / fps
    assert np.abs((numbers - numbers[0]) - 12 * seconds).max() <= 1


def test_at_the_films_own_rate_frames_follow_one_another():
    for seed in range(200):
        numbers = FilmClips().frame_numbers(draw(seed), ClipSpec(8, 12.0, 48))
        assert (np.diff(numbers) == 1).all()


def test_every_start_is_as_likely_as_any_other():
    spec = ClipSpec(8, 12.0, 48)
    generator = draw()
    starts = np.array([FilmClips("test").frame_numbers(generator, spec)[0] for _ in range(4000)])
    legal = np.concatenate([np.arange(shot.start, shot.end - 7) for shot in load_film().test])
    assert set(starts) <= set(legal)
    counts = np.array([(starts == start).sum() for start in legal])
    expected = len(starts) / len(legal)
    assert ((counts - expected) ** 2 / expected).sum() < len(legal) + 4 * np.sqrt(2 * len(legal))


def test_a_clip_longer_than_every_shot_is_the_users_error():
    with pytest.raises(UserError, match=r"64 frames at 1 fps lasts 63.0 s.*longest shot"):
        FilmClips().clip(draw(), ClipSpec(64, 1.0, 48))


@pytest.mark.parametrize("source", [FilmClips(), FilmPictures(), FilmClips("test"), FilmPictures("test")])
def test_sources_keep_the_contract_and_are_pure_functions_of_the_draw(source):
    assert isinstance(source, Source)
    spec = ClipSpec(5, 8.0, 40)
    clips = [source.clip(draw(seed), spec) for seed in (1, 2, 1)]
    assert clips[0].shape == (5, 40, 40, 3)
    assert clips[0].dtype == np.uint8
    assert np.array_equal(clips[0], clips[2])
    assert not np.array_equal(clips[0], clips[1])


def test_pictures_stand_still_and_come_from_the_shots():
    clip = FilmPictures().clip(draw(3), ClipSpec(6, 12.0, 48))
    assert (clip == clip[0]).all()
    for split in SPLITS:
        shots = load_film().shots(split)
        numbers = [FilmPictures(split).frame_number(draw(seed)) for seed in range(100)]
        assert all(any(shot.start <= number < shot.end for shot in shots) for number in numbers)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(8, 128))
def test_all_frames_get_the_same_crop_and_flip(seed, size):
    frames = noise(3)
    together = film._cropped(draw(seed), frames, np.arange(3), size, Augmentation())
    apart = [film._cropped(draw(seed), frames, np.array([number]), size, Augmentation()) for number in range(3)]
    assert together.shape == (3, size, size, 3)
    assert np.array_equal(together, np.concatenate(apart))


@pytest.mark.parametrize("source", [FilmClips, FilmPictures])
def test_a_flip_is_a_mirror_image(source):
    spec = ClipSpec(3, 12.0, 48)
    upright = source(augmentation=Augmentation(flip=0.0)).clip(draw(5), spec)
    mirrored = source(augmentation=Augmentation(flip=1.0)).clip(draw(5), spec)
    assert np.abs(upright[:, :, ::-1].astype(int) - mirrored).max() <= 1


@pytest.fixture
def tiny_film(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, tuple[int, ...]]:
    """A film of 6 frames of 16x16 in place of the built-in one; its hash and shape."""
    path = tmp_path / "tiny.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for grey in range(0, 240, 40):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16, 3), grey, np.uint8), format="rgb24"))
            )
        container.mux(stream.encode(None))
    monkeypatch.setattr(film, "_asset", lambda name: path.read_bytes())
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path / "cache"))
    return film.hashlib.sha256(path.read_bytes()).hexdigest(), (6, 16, 16, 3)


def test_the_film_is_decoded_once_even_when_many_start_at_the_same_time(tiny_film, tmp_path):
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(film._cached(*tiny_film))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.abs(frames.mean((1, 2, 3)) - np.arange(0, 240, 40)).max() < 4 for frames in results)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_a_damaged_cache_is_made_anew(tiny_film, tmp_path):
    whole = np.array(film._cached(*tiny_film))
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-100])
    assert np.array_equal(film._cached(*tiny_film), whole)
    assert path.read_bytes() == content


def test_another_film_than_described_is_refused(tiny_film):
    with pytest.raises(UserError, match="install nextvid anew"):
        film._cached("0" * 64, tiny_film[1])


def test_a_cache_folder_that_cannot_be_made_is_the_users_error(tiny_film, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set NEXTVID_CACHE"):
        film._cached(*tiny_film)


def test_the_cut_detector_finds_cuts_and_leaves_out_black():
    path = Path(__file__).parents[2] / "scripts" / "make_film.py"
    spec = importlib.util.spec_from_file_location("make_film", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    scene = [np.roll(noise(1, seed)[:, :36, :64] // 2 + 60, shift, axis=2) for seed in range(2) for shift in (0,) * 40]
    black = [np.zeros((1, 36, 64, 3), np.uint8)] * 6
    thumbnails = np.concatenate(scene[:40] + scene[40:] + black + scene[:20])
    assert script.find_shots(thumbnails) == [(0, 20), (20, 40), (43, 53)]
