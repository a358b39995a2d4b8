"""Segments along time, squares across the picture, and what is drawn for training: worked by hand, and on files that count."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import numbered, read_numbers, write_picture, write_video

from nextvid.data.benchmarks.official.clips import OfficialClips
from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.clip import BrokenFile, ClipSpec
from nextvid.data.transforms import Crop
from nextvid.data.views import ViewAugmentation, Views, check_views, erased, segment_times, view_crops, views_of
from nextvid.errors import UserError

FPS = 10
SPEC = ClipSpec(frames=4, fps=5.0, size=32)
RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)
WHOLE = ViewAugmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0, erase=0.0)


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def official(*entries: Listed) -> OfficialClips:
    return OfficialClips(OfficialSplit("kinetics400", "test", ("a", "b"), list(entries), len(entries), len(entries)))


def video(path: Path, count: int = 40, **settings) -> str:
    return str(write_video(path, [numbered(n, 64, 64) for n in range(count)], fps=FPS, **settings))


def colours(picture: np.ndarray) -> list[int]:
    """For every column of the middle row, which of red, green and blue it is."""
    return picture[len(picture) // 2].argmax(-1).tolist()


def thirds(height: int, width: int) -> np.ndarray:
    """Red, green and blue along the longer side."""
    long = max(height, width)
    row = np.array([RED, GREEN, BLUE], np.uint8)[np.arange(long) * 3 // long]
    return np.broadcast_to(row[None], (height, width, 3)) if width >= height else row[:, None].repeat(width, 1)


# Segments


@pytest.mark.parametrize(
    ("first", "last", "segments", "shifts", "starts"),
    [
        (0.0, 9.0, 1, None, [3.75]),
        (0.0, 9.0, 3, None, [0.0, 3.75, 7.5]),
        (2.0, 5.0, 2, None, [2.0, 3.5]),
        (0.0, 9.0, 3, [0.0, 0.5, 1.0], [0.0, 3.75, 7.5]),
        (1.0, 7.5, 2, [0.2, 0.6], [1.5, 5.0]),
        (0.0, 9.0, 1, [0.1], [0.75]),
        (0.0, 1.5, 2, None, [0.0, 0.0]),
    ],
)
def test_segments_start_where_they_were_worked_out_by_hand(first, last, segments, shifts, starts):
    """Four frames at 2 a second last 1.5 seconds."""
    given_shifts = None if shifts is None else np.array(shifts)
    times = segment_times(first, last, ClipSpec(4, 2.0, 8), segments, given_shifts)
    assert times == pytest.approx(np.array(starts)[:, None] + [0.0, 0.5, 1.0, 1.5])


@pytest.mark.parametrize("shifts", [None, np.array([0.3, 0.9])])
def test_a_video_that_is_too_short_holds_its_last_frame(shifts):
    times = segment_times(0.5, 1.5, ClipSpec(4, 2.0, 8), 2, shifts)
    assert times.tolist() == [[0.5, 1.0, 1.5, 1.5]] * 2


@given(
    first=st.floats(0, 50),
    length=st.floats(0, 30),
    frames=st.integers(1, 16),
    fps=st.floats(0.5, 30),
    segments=st.integers(1, 8),
    data=st.data(),
)
def test_segments_lie_in_the_video_and_random_ones_in_their_own_part(first, length, frames, fps, segments, data):
    spec, last = ClipSpec(frames, fps, 8), first + length
    shifts = np.array(data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=segments, max_size=segments)))
    room = max(0.0, length - (frames - 1) / fps)
    for drawn_shifts in (None, shifts):
        times = segment_times(first, last, spec, segments, drawn_shifts)
        assert times.shape == (segments, frames)
        assert times.min() >= first - 1e-9
        assert times.max() <= last + 1e-9
        assert (np.diff(times[:, 0]) >= -1e-9).all()
        steps = np.diff(times, axis=1)
        assert ((np.abs(steps - 1 / fps) < 1e-6) | (times[:, 1:] == last)).all()
    parts = first + room * np.arange(segments + 1) / segments
    assert (times[:, 0] >= parts[:-1] - 1e-9).all()
    assert (times[:, 0] <= parts[1:] + 1e-9).all()


# Squares


@pytest.mark.parametrize(
    ("height", "width", "views", "squares"),
    [
        (60, 100, Views(views=3), [(0, 0, 60), (0, 20, 60), (0, 40, 60)]),
        (100, 60, Views(views=3), [(0, 0, 60), (20, 0, 60), (40, 0, 60)]),
        (60, 100, Views(), [(0, 20, 60)]),
        (60, 100, Views(views=3, crop_share=0.5), [(15, 0, 30), (15, 35, 30), (15, 70, 30)]),
        (64, 64, Views(views=2), [(0, 0, 64), (0, 0, 64)]),
        (256, 320, Views(crop_share=0.875), [(16, 48, 224)]),
    ],
)
def test_squares_lie_where_they_were_worked_out_by_hand(height, width, views, squares):
    assert view_crops(height, width, views) == [Crop(top, left, side, side) for top, left, side in squares]


@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_three_squares_cover_both_ends_and_the_middle(height, width):
    first, middle, last = view_crops(height, width, Views(views=3))
    side, long = min(height, width), max(height, width)
    begins = [crop.top if height > width else crop.left for crop in (first, middle, last)]
    across = [crop.left if height > width else crop.top for crop in (first, middle, last)]
    assert all((crop.height, crop.width) == (side, side) for crop in (first, middle, last))
    assert across == [0, 0, 0]
    assert begins[0] == 0
    assert begins[2] + side == long
    assert abs(2 * begins[1] + side - long) <= 1


# Erasing


def test_erasing_never_and_always():
    frames = np.full((3, 40, 40, 3), 128, np.uint8)
    for seed in range(20):
        assert np.array_equal(erased(frames, 0.0, drawn(seed)), frames)
        assert not np.array_equal(erased(frames, 1.0, drawn(seed)), frames)
    assert (frames == 128).all()


def test_erasing_happens_as_often_as_it_should():
    frames, draw = np.full((1, 24, 24, 3), 128, np.uint8), drawn()
    found = sum(bool((erased(frames, 0.25, draw) != frames).any()) for _ in range(1000))
    assert 200 < found < 300


@given(seed=st.integers(0, 10_000), height=st.integers(24, 80), width=st.integers(24, 80))
def test_what_is_erased_is_one_rectangle_of_noise_the_same_in_all_frames(seed, height, width):
    frames = drawn(seed + 1).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    covered = erased(frames, 1.0, drawn(seed))
    where = (covered != frames).any((0, 3))
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert where[box[1:]].mean() > 0.99
    assert (covered[box] == covered[box][:1]).all()
    tall, wide = len(range(height)[box[1]]), len(range(width)[box[2]])
    assert 0.02 - 0.01 < tall * wide / (height * width) < 1 / 3 + 0.03
    assert 0.3 * 0.7 < tall / wide < 1 / 0.3 / 0.7
    assert len(np.unique(covered[0][box[1:]])) > 10


# Files that count


def test_segments_show_the_frames_of_their_times(tmp_path: Path):
    """40 frames at 10 a second, the last shown at 3.9 s: clips of 0.6 s start at 0, 1.1, 2.2 and 3.3 s."""
    clips = official(Listed(video(tmp_path / "a.mp4"), 0))
    found = clips.windows(0, SPEC, Views(segments=4), drawn())
    assert found.shape == (1, 4, 4, 32, 32, 3)
    assert [read_numbers(segment) for segment in found[0]] == [
        [0, 2, 4, 6],
        [11, 13, 15, 17],
        [22, 24, 26, 28],
        [33, 35, 37, 39],
    ]


def test_segments_stay_within_a_listed_part(tmp_path: Path):
    """Frames 10 to 29, so from 1.0 to 2.9 s."""
    clips = official(Listed(video(tmp_path / "a.mp4"), 0, start=10, end=30))
    found = clips.windows(0, SPEC, Views(segments=2), drawn())
    assert [read_numbers(segment) for segment in found[0]] == [[10, 12, 14, 16], [23, 25, 27, 29]]
    for seed in range(5):
        random = clips.windows(0, SPEC, Views(segments=2, augmentation=WHOLE), drawn(seed))
        numbers = [read_numbers(segment) for segment in random[0]]
        assert all(10 <= number <= 29 for segment in numbers for number in segment)
        assert numbers[0][0] <= 16 + 1 <= numbers[1][0] + 1


def test_a_short_file_holds_its_last_frame(tmp_path: Path):
    clips = official(Listed(video(tmp_path / "a.mp4", count=3), 0))
    for views in (Views(segments=2), Views(segments=2, augmentation=WHOLE)):
        found = clips.windows(0, ClipSpec(5, 10.0, 32), views, drawn())
        assert [read_numbers(segment) for segment in found[0]] == [[0, 1, 2, 2, 2]] * 2


@pytest.mark.parametrize(("height", "width"), [(48, 144), (144, 48)])
def test_three_views_of_a_file_see_both_ends_and_the_middle(tmp_path: Path, height: int, width: int):
    pictures = [thirds(height, width)] * 8
    clips = official(Listed(str(write_video(tmp_path / "a.mp4", pictures, fps=FPS)), 0))
    found = clips.windows(0, ClipSpec(2, 5.0, 24), Views(segments=2, views=3), drawn())
    assert found.shape == (3, 2, 2, 24, 24, 3)
    for colour, view in enumerate(found):
        inside = view[:, :, 4:-4, 4:-4]
        assert (inside.argmax(-1) == colour).all()


def test_the_size_of_the_square_is_a_share_of_the_shorter_side(tmp_path: Path):
    """A green square of half the side inside a red one."""
    picture = np.full((64, 96, 3), RED, np.uint8)
    picture[16:48, 32:64] = GREEN
    write_picture(tmp_path / "a.png", picture)
    clips = official(Listed(str(tmp_path / "a.png"), 0))
    (half,), (whole,) = (
        clips.windows(0, ClipSpec(1, 1.0, 32), Views(crop_share=share), drawn())[0] for share in (0.5, 1.0)
    )
    assert (half[0, 2:-2, 2:-2].argmax(-1) == 1).all()
    assert colours(whole[0])[:7] == [0] * 7
    assert colours(whole[0])[9:23] == [1] * 14
    assert colours(whole[0])[25:] == [0] * 7


@pytest.mark.parametrize("augmentation", [None, ViewAugmentation(flip=0.5, erase=1.0)])
def test_a_picture_stands_still(tmp_path: Path, augmentation: ViewAugmentation | None):
    write_picture(tmp_path / "a.png", drawn().integers(0, 256, (40, 60, 3), dtype=np.uint8))
    clips = official(Listed(str(tmp_path / "a.png"), 0))
    views = Views(segments=2, views=3, augmentation=augmentation)
    found = clips.windows(0, ClipSpec(3, 5.0, 16), views, drawn())
    assert found.shape == (1 if augmentation else 3, 2, 3, 16, 16, 3)
    assert (found == found[:, :1, :1]).all()


def test_one_crop_and_one_erased_rectangle_for_all_frames_of_all_segments(tmp_path: Path):
    pictures = [drawn().integers(0, 256, (48, 64, 3), dtype=np.uint8)] * 20
    clips = official(Listed(str(write_video(tmp_path / "a.mp4", pictures, fps=FPS, key_frames=40)), 0))
    found = clips.windows(0, SPEC, Views(segments=3, augmentation=ViewAugmentation(erase=1.0)), drawn(2)).astype(int)
    assert np.abs(found - found[:, :1, :1]).mean() < 3
    other = clips.windows(0, SPEC, Views(segments=3, augmentation=ViewAugmentation(erase=1.0)), drawn(3)).astype(int)
    assert np.abs(found - other).mean() > 20


def test_a_random_view_is_a_function_of_what_is_drawn(tmp_path: Path):
    clips = official(Listed(video(tmp_path / "a.mp4"), 0))
    views = Views(segments=2, views=3, augmentation=ViewAugmentation(flip=0.5))
    first, again, other = (clips.windows(0, SPEC, views, drawn(seed)) for seed in (1, 1, 2))
    assert first.shape == (1, 2, 4, 32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_mirror_images_are_drawn_as_often_as_said(tmp_path: Path):
    write_picture(tmp_path / "a.png", np.ascontiguousarray(thirds(48, 48)))
    clips = official(Listed(str(tmp_path / "a.png"), 0))
    for flip, mirrored in ((0.0, 0), (1.0, 10)):
        views = Views(augmentation=ViewAugmentation((0.9, 1.0), (1.0, 1.0), flip, 0.0))
        found = [clips.windows(0, ClipSpec(1, 1.0, 24), views, drawn(seed))[0, 0, 0] for seed in range(10)]
        assert sum(colours(picture)[-3] == 0 for picture in found) == mirrored


def test_a_file_that_is_broken_says_so(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(BrokenFile, match=r"a\.mp4"):
        official(Listed(str(tmp_path / "a.mp4"), 0)).windows(0, SPEC, Views(), drawn())


# Clips that are made up


class MadeUpClips:
    name = "made up"
    tasks = {"kind": ("a",)}  # noqa: RUF012

    def __len__(self) -> int:
        return 3

    def labels(self, index: int) -> dict[str, int]:
        return {"kind": 0}

    def clip(self, index: int, spec: ClipSpec) -> np.ndarray:
        return drawn(index).integers(0, 256, (spec.frames, spec.size, spec.size, 3), dtype=np.uint8)


def test_made_up_clips_are_one_view_of_one_segment():
    clips = MadeUpClips()
    found = views_of(clips, 1, SPEC, Views(), drawn())
    assert np.array_equal(found, clips.clip(1, SPEC)[None, None])
    augmented = [views_of(clips, 1, SPEC, Views(augmentation=ViewAugmentation()), drawn(seed)) for seed in (1, 1, 2)]
    assert augmented[0].shape == found.shape
    assert np.array_equal(augmented[0], augmented[1])
    assert not np.array_equal(augmented[0], augmented[2])


@pytest.mark.parametrize(
    ("views", "word"),
    [(Views(segments=2), "segments=2"), (Views(views=3), "views=3"), (Views(crop_share=0.5), r"crop_share=0\.5")],
)
def test_made_up_clips_have_nothing_else_to_cut(views: Views, word: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"{word}: the clips of made up .*leave out {word.split('=', maxsplit=1)[0]}"):
        check_views(MadeUpClips(), views)
    check_views(MadeUpClips(), Views(augmentation=ViewAugmentation()))
    check_views(official(Listed(str(tmp_path), 0)), views)
