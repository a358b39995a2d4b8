import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvid.data import benchmarks, film
from nextvid.data.benchmarks import camera_moves, moving_sprites
from nextvid.data.benchmarks.camera_moves import MOVES
from nextvid.data.benchmarks.digits import Digits, load_digits
from nextvid.data.benchmarks.levels import Level, flatten
from nextvid.data.benchmarks.moving_sprites import MOTIONS, TRAVEL
from nextvid.data.clip import ClipSpec, Source
from nextvid.data.film import Film, Shot, load_film
from nextvid.errors import UserError

SPEC = ClipSpec(8, 12.0, 48)
GENERATED = ("moving-sprites", "camera-moves")
"""Made on the fly; those that are rendered once are in ``test_rendered_benchmarks.py``."""
LEVELS = [(name, level) for name in GENERATED for level in (*benchmarks.levels(name), "still-0.5")]


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# By name


def test_names_and_levels():
    assert benchmarks.names() == (*GENERATED, "motion-capture", "ego-motion")
    assert benchmarks.levels("moving-sprites") == ("film", "still", "plain")
    assert benchmarks.levels("camera-moves") == ("still",)


def test_default_lengths_and_given_ones():
    assert len(benchmarks.load("moving-sprites", "plain", "train")) == 2400
    assert len(benchmarks.load("moving-sprites", "plain", "test")) == 2000
    assert len(benchmarks.load("camera-moves", "still", "test", length=24)) == 24


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("moving-sprite", "film", "train"), "no benchmark 'moving-sprite'; did you mean 'moving-sprites'"),
        (("moving-sprites", "flim", "train"), "no level 'flim' of moving-sprites; did you mean 'film'"),
        (("moving-sprites", "film", "validation"), "no split 'validation'. Known: train, test"),
        (("camera-moves", "film", "train"), "no level 'film' of camera-moves"),
        (("moving-sprites", "still-1.5", "test"), "above 0 and at most 1"),
        (("moving-sprites", "still-0", "test"), "above 0 and at most 1"),
        (("moving-sprites", "film-nan", "test"), "above 0 and at most 1"),
        (("moving-sprites", "plain-0.5", "test"), "no level 'plain-0.5'"),
        (("moving-sprites", "film", "test", 0), "length of moving-sprites .* must be at least 1"),
    ],
)
def test_what_there_is_not_is_the_users_error(arguments, says):
    with pytest.raises(UserError, match=says):
        benchmarks.load(*arguments)


def test_a_level_is_found_by_the_name_it_gives_itself():
    for name, contrast in (("film", 1.0), ("film-0.5", 0.5), ("still-0.25", 0.25)):
        clips = benchmarks.load("moving-sprites", name, "train")
        assert clips.level == Level(name.partition("-")[0], contrast)
        assert clips.level.name == name


# Clips and labels


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", GENERATED)
def test_classes_are_balanced_and_in_range(name, split):
    clips = benchmarks.load(name, "still", split, length=None if name == "moving-sprites" else 2400)
    labels = [clips.labels(index) for index in range(len(clips))]
    for task, classes in clips.tasks.items():
        assert len(set(classes)) == len(classes)
        counts = Counter(row[task] for row in labels)
        assert counts == dict.fromkeys(range(len(classes)), len(clips) // len(classes))


def test_every_pair_of_motion_and_digit_is_equally_frequent():
    clips = benchmarks.load("moving-sprites", "plain", "train")
    counts = Counter(tuple(clips.labels(index).values()) for index in range(len(clips)))
    assert set(counts.values()) == {15}
    assert len(counts) == 160


def test_the_tasks_have_the_classes_they_should():
    sprites, camera = (benchmarks.load(name, "still", "test") for name in GENERATED)
    assert {task: len(classes) for task, classes in sprites.tasks.items()} == {"motion": 16, "digit": 10}
    assert {task: len(classes) for task, classes in camera.tasks.items()} == {"move": 12}


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_a_clip_is_a_pure_function_of_its_index(name, level):
    clips = benchmarks.load(name, level, "train")
    first = [clips.clip(index, SPEC) for index in (0, 1, 17)]
    again = [benchmarks.load(name, level, "train").clip(index, SPEC) for index in (17, 1, 0)][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(first[0], benchmarks.load(name, level, "test").clip(0, SPEC))
    assert first[0].shape == (8, 48, 48, 3)
    assert first[0].dtype == np.uint8


@pytest.mark.parametrize("name", GENERATED)
def test_there_is_no_clip_beyond_the_length(name):
    clips = benchmarks.load(name, "still", "test", length=3)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"clip {index} of 3"):
            clips.clip(index, SPEC)


def digest_of_clips() -> str:
    digest = hashlib.sha256()
    for name, level in LEVELS:
        for index in (5, 1999):
            digest.update(benchmarks.load(name, level, "test").clip(index, SPEC).tobytes())
    return digest.hexdigest()


def test_another_process_draws_the_same_clips():
    folder = os.path.dirname(__file__)
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import test_benchmarks; print(test_benchmarks.digest_of_clips())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest_of_clips()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(LEVELS), st.integers(1, 12), st.sampled_from([4.0, 8.0, 24.0]), st.integers(12, 130))
def test_any_spec_is_welcome(which, frames, fps, size):
    spec = ClipSpec(frames, fps, size)
    assert benchmarks.load(*which, "test").clip(3, spec).shape == (frames, size, size, 3)


@pytest.mark.parametrize("name", GENERATED)
def test_every_size_shows_the_same_scene(name):
    clips = benchmarks.load(name, "still", "train")
    for index in range(0, 60, 5):
        small = clips.clip(index, SPEC).astype(float)
        large = clips.clip(index, ClipSpec(8, 12.0, 96)).reshape(8, 48, 2, 48, 2, 3).mean((2, 4))
        assert np.abs(small - large).mean() < 4


# Unlabelled clips, train and test apart


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_unlabelled_clips_are_a_source_and_pure(name, level):
    source = benchmarks.unlabelled(name, level)
    assert isinstance(source, Source)
    assert source.name == name
    clips = [source.clip(draw(seed), SPEC) for seed in (1, 2, 1)]
    assert np.array_equal(clips[0], clips[2])
    assert not np.array_equal(clips[0], clips[1])


def test_no_digit_is_both_train_and_test():
    train, test = (load_digits(split) for split in ("train", "test"))
    assert (np.bincount(train.labels) == 400).all()
    assert (np.bincount(test.labels) == 100).all()
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


@pytest.fixture
def _marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A film that is black in its train part and white in its test part, and train digits without ink."""
    frames = np.zeros((80, 90, 160, 3), np.uint8)
    frames[40:] = 255
    reel = Film(frames, 12.0, (Shot(0, 20), Shot(20, 40)), (Shot(40, 60), Shot(60, 80)))
    labels = np.arange(10, dtype=np.uint8)
    inks = {"train": np.zeros((10, 28, 28), np.uint8), "test": np.full((10, 28, 28), 255, np.uint8)}
    film._legal_starts.cache_clear()
    monkeypatch.setattr(film, "load_film", lambda: reel)
    monkeypatch.setattr(camera_moves, "load_film", lambda: reel)
    monkeypatch.setattr(moving_sprites, "load_digits", lambda split: Digits(inks[split], labels))
    yield
    film._legal_starts.cache_clear()


@pytest.mark.usefixtures("_marked")
@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if pair[1] != "plain"])
def test_train_clips_show_train_footage_only_and_test_clips_test_footage_only(name, level):
    for seed in range(20):
        assert (benchmarks.unlabelled(name, level).clip(draw(seed), SPEC) == 0).all()
        assert (benchmarks.load(name, level, "train").clip(seed, SPEC) == 0).all()
        test = benchmarks.load(name, level, "test").clip(seed, SPEC)
        assert (test == 255).any()
        assert (test == 255).all() == (name == "camera-moves")


# Moving sprites


def measured(motion: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroid (complex, y down) and extent in every frame of a rendered clip, as shares of the frame's side."""
    spec = ClipSpec(16, 12.0, 64)
    clip = moving_sprites.render(
        draw(seed), "train", Level("plain"), spec, motion=list(MOTIONS).index(motion), digit=seed % 10
    ).astype(float)
    ground = np.median(clip, axis=(0, 1, 2))
    ink = np.abs(clip - ground).sum(3)
    ink[ink < 12] = 0
    at = (np.arange(64) + 0.5) / 64
    total = ink.sum((1, 2))
    centre = (ink @ at).sum(1) / total + 1j * (at @ ink).sum(1) / total
    return centre, np.sqrt(total) / 64


def close(value: complex, expected: complex, within: float = 0.05) -> bool:
    return abs(value - expected) < within * TRAVEL


CHECKS = {
    "clockwise": lambda step: (np.angle(step[1:] / step[:-1]) > 0).all() and close(step.sum() + step[0], 0, 0.3),
    "anticlockwise": lambda step: (np.angle(step[1:] / step[:-1]) < 0).all() and close(step.sum() + step[0], 0, 0.3),
    "bounce": lambda step: (
        abs(abs(np.angle(step[8:].sum() / step[:7].sum())) - np.pi / 2) < 0.15
        and close(abs(step[8:].sum()), abs(step[:7].sum()))
    ),
    "stop": lambda step: abs(step[:7].sum()) > 0.4 * TRAVEL and close(abs(step[8:]).sum(), 0),
    "speed up": lambda step: (
        close(step[8:].sum(), step[:7].sum() * 1.3 / 0.3, 0.1) and abs(step[:7].sum()) > 0.1 * TRAVEL
    ),
    "turn back": lambda step: close(step[8:].sum(), -step[:7].sum()) and abs(step[:7].sum()) > 0.4 * TRAVEL,
}


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_does_what_its_name_says(motion):
    directions = ["right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right"]
    for seed in range(8):
        centre, extent = measured(motion, seed)
        growth = extent[-1] / extent[0]
        step = np.diff(centre)
        if motion in directions:
            expected = np.exp(0.25j * np.pi * directions.index(motion)) * TRAVEL / 16
            assert np.abs(step - expected).max() < 0.2 * TRAVEL / 16
        elif motion in CHECKS:
            assert CHECKS[motion](step), step
        else:
            assert np.abs(step).max() < 0.02
        assert {"growing": growth > 1.8, "shrinking": growth < 1 / 1.8}.get(motion, 0.9 < growth < 1.1)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 32))
def test_the_middle_frame_has_the_same_place_and_size_whatever_the_motion(seed, frames):
    laid = [moving_sprites.trajectory(draw(seed), motion, frames) for motion in MOTIONS.values()]
    for place, box in laid:
        np.testing.assert_allclose(place[frames // 2], laid[0][0][frames // 2])
        np.testing.assert_allclose(box[frames // 2], laid[0][1][frames // 2])


def test_rendered_middle_frames_do_not_tell_the_motion():
    clips = benchmarks.load("moving-sprites", "plain", "train", length=1280)
    rows, motions = [], []
    for index in range(len(clips)):
        middle = clips.clip(index, ClipSpec(8, 12.0, 32))[4].astype(float)
        ink = np.abs(middle - middle[0, 0]).sum(2)
        at = np.arange(32)
        rows.append([(ink @ at).sum() / ink.sum(), (at @ ink).sum() / ink.sum(), (ink > 0).sum(), middle.mean()])
        motions.append(clips.labels(index)["motion"])
    standard = (np.array(rows) - np.mean(rows, axis=0)) / np.std(rows, axis=0)
    scores = [standard[np.array(motions) == motion].mean(0) * np.sqrt(80) for motion in range(16)]
    assert np.abs(scores).max() < 4
    assert (np.array(scores) ** 2).sum() < 64 + 4 * np.sqrt(2 * 64)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(MOTIONS)), st.integers(2, 16))
def test_the_digit_stays_mostly_inside(seed, motion, frames):
    generator = draw(seed)
    image = load_digits("train").images[generator.integers(4000)]
    place, box = moving_sprites.trajectory(generator, MOTIONS[motion], frames)
    shown = moving_sprites.stamp(image, place, box, 48).sum((1, 2))
    whole = moving_sprites.stamp(image, np.full_like(place, 0.5), box, 48).sum((1, 2))
    assert (shown / whole).min() > 0.6
    assert (shown / whole).mean() > 0.85


def test_a_digit_covers_at_most_everything_and_moves_by_fractions_of_a_pixel():
    image = load_digits("train").images[0]
    place = np.stack([np.linspace(0.4, 0.4 + 1 / 48, 5), np.full(5, 0.5)], axis=1)
    cover = moving_sprites.stamp(image, place, np.full(5, 0.5), 48)
    assert cover.min() >= 0
    assert cover.max() <= 1 + 1e-6
    at = (np.arange(48) + 0.5) / 48
    centre = (cover.sum(1) @ at) / cover.sum((1, 2))
    np.testing.assert_allclose(np.diff(centre), 0.25 / 48, rtol=0.2)


def test_the_colour_of_a_sprite_differs_from_its_background_and_is_not_always_brighter():
    grounds = draw().uniform(0, 255, size=(300, 3)).astype(np.float32)
    colours = np.stack([moving_sprites.sprite_colour(draw(seed), ground) for seed, ground in enumerate(grounds)])
    assert np.abs(colours - grounds).mean(1).min() >= 255 * moving_sprites.COLOUR_GAP
    assert 0.35 < (colours.mean(1) > grounds.mean(1)).mean() < 0.65


def moving_share(level: str) -> float:
    """The share of pixels that change between the first and last frame by more than 2 grey levels, over 20 clips."""
    clips = benchmarks.load("moving-sprites", level, "train")
    pairs = [clips.clip(index, SPEC)[[0, -1]].astype(int) for index in range(20)]
    return float(np.mean([np.abs(last - first).max(2) > 2 for first, last in pairs]))


def test_still_backgrounds_stand_still_and_film_backgrounds_move():
    assert moving_share("plain") < 0.25
    assert moving_share("still") < 0.25
    assert moving_share("film") > 0.5


def test_contrast_multiplies_what_differs_from_the_mean():
    frames = load_film().frames[100:104].astype(np.float32)
    half = flatten(frames, 0.5)
    mean = frames.mean((0, 1, 2))
    np.testing.assert_allclose(half - mean, 0.5 * (frames - mean), atol=0.05)
    assert flatten(frames, 1.0) is frames


# Camera moves


def laid(move: str, seed: int = 0, frames: int = 8) -> np.ndarray:
    return camera_moves.windows(draw(seed), MOVES[move], frames, (90, 160))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(MOVES)), st.integers(1, 64))
def test_the_window_stays_inside_the_picture(seed, move, frames):
    corners = laid(move, seed, frames) @ np.array([[-1, -1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]]).T
    assert (corners >= 0).all()
    assert (corners[:, 0] <= 160).all()
    assert (corners[:, 1] <= 90).all()


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 32))
def test_the_middle_window_is_the_same_and_upright_whatever_the_move(seed, frames):
    middles = [laid(move, seed, frames)[frames // 2] for move in MOVES]
    for middle in middles:
        np.testing.assert_allclose(middle, middles[0], atol=1e-9)
        np.testing.assert_allclose(middle[:, :2], np.eye(2) * middle[0, 0], atol=1e-9)


def test_each_move_does_what_its_name_says():
    directions = ["right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right"]
    for number, direction in enumerate(directions):
        slide = np.diff(laid(f"pan {direction}")[:, :, 2] @ [1, 1j])
        np.testing.assert_allclose(np.angle(slide * np.exp(-0.25j * np.pi * number)), 0, atol=1e-9)
    for name, sign in (("turn clockwise", 1), ("turn anticlockwise", -1)):
        affine = laid(name)
        assert (sign * np.diff(np.angle(affine[:, :, 0] @ [1, 1j])) > 0.05).all()
        assert np.ptp(affine[:, :, 2], axis=0).max() == 0
    for name, sign in (("zoom in", -1), ("zoom out", 1)):
        affine = laid(name)
        assert (sign * np.diff(np.linalg.det(affine[:, :, :2])) > 0).all()
        assert np.ptp(affine[:, :, 2], axis=0).max() == 0


def test_a_window_on_whole_pixels_shows_them():
    picture = load_film().frames[1000]
    affine = np.array([[[24, 0, 30 + 24], [0, 24, 20 + 24]]], dtype=float)
    seen = camera_moves.look(picture, affine, 48)[0]
    np.testing.assert_allclose(seen, picture[20:68, 30:78], atol=0.01)


def test_a_window_that_turns_clockwise_sees_the_picture_turn_anticlockwise():
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[44:46, 80:] = 255
    quarter = np.array([[[0, -20, 80], [20, 0, 45]]], dtype=float)
    seen = camera_moves.look(picture, quarter, 40)[0, :, :, 0]
    assert seen[:19, 19:21].min() > 100
    assert seen[22:].max() == 0
