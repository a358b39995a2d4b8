"""One file re-encoded: the frames, their times, the cuts, and what is refused."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from media import cut_short, numbered, read_numbers, rotate_header, write_numbered, write_picture, write_video
from PIL import Image

from nextvid.data.clip import BrokenFile
from nextvid.data.cuts import cuts, thumbnails
from nextvid.data.decode import decode_clip
from nextvid.data.locations import Place
from nextvid.errors import UserError
from nextvid.footage.encode import Clip, FileEncoder, _Clock, check_encoder
from nextvid.footage.plan import PrepareSettings

EVERY = PrepareSettings(min_seconds=0.0)


def clips_of(path: Path, settings: PrepareSettings = EVERY, kind: str = "video") -> list[Clip]:
    return list(FileEncoder(Place(str(path)), kind, settings).clips())


def frames_of(clip: Clip) -> tuple[np.ndarray, list[float]]:
    with av.open(io.BytesIO(clip.data)) as container:
        assert len(container.streams) == 1
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(clip.seconds, abs=2e-5)
        frames = list(container.decode(stream))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    assert times[0] == 0.0
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), times


def all_frames(clips: list[Clip]) -> tuple[list[int], list[float]]:
    numbers, times = [], []
    for clip in clips:
        frames, clip_times = frames_of(clip)
        numbers += read_numbers(frames)
        times += [clip.start + time for time in clip_times]
    return numbers, times


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of the mean colours of 8 x 8 parts, from 0 to 1."""
    return float(np.abs(thumbnails(one) - thumbnails(other)).max())


def steady(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Pictures that differ little from one to the next, and all of them."""
    return [np.full((height, width, 3), 40 + 2 * number, np.uint8) for number in range(count)]


def test_every_frame_survives_at_its_time(tmp_path: Path):
    numbers, times = all_frames(clips_of(write_numbered(tmp_path / "a.mp4")))
    assert numbers == list(range(40))
    assert times == pytest.approx(np.arange(40) / 10)


def test_times_that_are_not_even_stay_so(tmp_path: Path):
    seconds = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.4, 40)).round(3)
    clips = clips_of(write_numbered(tmp_path / "a.mkv", seconds=seconds.tolist()))
    numbers, times = all_frames(clips)
    assert numbers == list(range(40))
    assert times == pytest.approx(seconds - seconds[0], abs=2e-3)
    assert [clip.start for clip in clips[1:]] == pytest.approx([clip.end for clip in clips[:-1]])


def test_the_last_frame_is_shown_as_long_as_it_was(tmp_path: Path):
    (clip,) = clips_of(write_video(tmp_path / "a.mp4", steady(12)))
    assert (clip.frames, clip.fps) == (12, pytest.approx(10))
    assert clip.seconds == pytest.approx(1.2)


def test_clips_are_cut_where_shots_begin(tmp_path: Path):
    path = write_numbered(tmp_path / "a.mp4")
    shown = decode_clip(str(path), np.arange(40) / 10)
    starts = [0, *cuts(thumbnails(shown))]
    assert len(starts) > 2
    clips = clips_of(path)
    assert [round(clip.start * 10) for clip in clips] == starts
    assert [clip.shot for clip in clips] == list(range(len(starts)))


def test_short_shots_are_left_out_and_counted_but_never_the_only_one(tmp_path: Path):
    pictures = [*steady(10), numbered(0b10101010), *reversed(steady(10))]
    path = write_video(tmp_path / "a.mp4", pictures)
    encoder = FileEncoder(Place(str(path)), "video", PrepareSettings(min_seconds=0.5))
    assert [round(clip.start * 10) for clip in encoder.clips()] == [0, 11]
    assert encoder.left_out == 1
    encoder = FileEncoder(Place(str(path)), "video", PrepareSettings(min_seconds=3.0))
    assert [clip.frames for clip in encoder.clips()] == [10]
    assert encoder.left_out == 2


def test_a_long_shot_is_split_evenly(tmp_path: Path):
    clips = clips_of(write_video(tmp_path / "a.mp4", steady(30)), PrepareSettings(seconds=2.0))
    assert [clip.seconds for clip in clips] == pytest.approx([1.5, 1.5])
    assert {clip.shot for clip in clips} == {0}


def test_a_shot_of_one_frame_gives_no_clip(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", [*steady(10), numbered(0b10101010), *reversed(steady(10))])
    encoder = FileEncoder(Place(str(path)), "video", EVERY)
    assert [clip.frames for clip in encoder.clips()] == [10, 10]
    assert encoder.left_out == 1
    encoder = FileEncoder(Place(str(path)), "video", PrepareSettings(fps=0.1))
    assert list(encoder.clips()) == []
    assert encoder.left_out == 1


@pytest.mark.parametrize("gap", [3000.0, 4000.0, 3e6])
def test_a_gap_of_hours_is_damage(tmp_path: Path, gap: float):
    seconds = [number / 10 + gap * (number >= 10) for number in range(20)]
    path = write_video(tmp_path / "a.mkv", steady(20), seconds=seconds)
    if gap > 3600:
        with pytest.raises(BrokenFile, match="unreadable"):
            clips_of(path)
        return
    clips = clips_of(path)
    assert sum(clip.frames for clip in clips) == 20
    assert max(clip.seconds for clip in clips) <= 10.001


def test_recordings_that_are_joined_go_on_in_time_with_a_cut_between(tmp_path: Path):
    path = tmp_path / "joined.ts"
    parts = [write_video(tmp_path / f"{number}.ts", steady(count)) for number, count in enumerate((40, 20, 30))]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clips = clips_of(path)
    assert [clip.frames for clip in clips] == [40, 20, 30]
    assert [clip.shot for clip in clips] == [0, 1, 2]
    assert [clip.start for clip in clips] == pytest.approx([0, 4, 6], abs=1e-3)
    assert [clip.end for clip in clips] == pytest.approx([4, 6, 9], abs=1e-3)
    assert frames_of(clips[1])[1] == pytest.approx(np.arange(20) / 10, abs=1e-3)
    fewer = clips_of(path, PrepareSettings(fps=5.0))
    assert [clip.frames for clip in fewer] == [20, 10, 15]
    assert [clip.shot for clip in fewer] == [0, 1, 2]


def test_a_frame_out_of_order_begins_nothing():
    clock = _Clock(0.1)
    assert [clock.at(time) for time in (0.0, 0.1, 0.3, 0.2, None)] == [
        (time, False) for time in (0.0, 0.1, 0.3, 0.2, pytest.approx(0.4))
    ]


def test_frames_above_the_rate_are_left_out(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", steady(40))
    (clip,) = clips_of(path, PrepareSettings(fps=5.0))
    assert frames_of(clip)[1] == pytest.approx(np.arange(20) / 5)
    assert clip.seconds == pytest.approx(3.9, abs=0.11)
    (clip,) = clips_of(path, PrepareSettings(fps=30.0))
    assert clip.frames == 40


def test_the_short_side_is_brought_down_and_never_up(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", steady(5, height=48, width=96))
    assert [(clip.height, clip.width) for clip in clips_of(path, PrepareSettings(short_side=24))] == [(24, 48)]
    assert [(clip.height, clip.width) for clip in clips_of(path, PrepareSettings(short_side=64))] == [(48, 96)]


def test_key_frames_are_as_far_apart_as_asked(tmp_path: Path):
    (clip,) = clips_of(write_video(tmp_path / "a.mp4", steady(40), key_frames=250), PrepareSettings(keyframes=8))
    with av.open(io.BytesIO(clip.data)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 8, 16, 24, 32]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ten-bit.mkv", {"codec": "ffv1", "pixels": "yuv420p10le"}),
        ("grey.mkv", {"codec": "ffv1", "pixels": "gray"}),
        ("full.mp4", {"pixels": "yuv444p"}),
        ("alpha.mkv", {"codec": "ffv1", "pixels": "bgra"}),
        ("old.avi", {"codec": "mpeg4"}),
        ("few.gif", {"codec": "gif", "pixels": "rgb8"}),
    ],
)
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_pictures_look_as_they_did(tmp_path: Path, name: str, settings: dict, size: tuple[int, int]):
    if size[0] % 2 and settings.get("pixels", "yuv420p") == "yuv444p":
        settings = {**settings, "codec": "ffv1"}
        name = "full.mkv"
    colours = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).transpose(1, 0, 2)
    pictures = [np.roll(colours, number, axis=1).astype(np.uint8) for number in range(4)]
    path = write_video(tmp_path / name, pictures, **settings)
    (clip,) = clips_of(path)
    shown = decode_clip(str(path), np.arange(4) / 10)[:, : clip.height, : clip.width]
    assert (clip.height, clip.width) == tuple(side - side % 2 for side in size)
    assert difference(frames_of(clip)[0], shown) < 0.06


def test_rotation_goes_into_the_pixels(tmp_path: Path):
    path = rotate_header(write_numbered(tmp_path / "a.mp4", 5), tmp_path / "turned.mp4")
    clips = clips_of(path)
    assert {(clip.height, clip.width) for clip in clips} == {(64, 48)}
    made = np.concatenate([frames_of(clip)[0] for clip in clips])
    assert difference(made, decode_clip(str(path), np.arange(5) / 10)) < 0.06


def test_pictures_become_small_jpegs(tmp_path: Path):
    picture = np.linspace(0, 255, 61 * 83 * 3).reshape(61, 83, 3).astype(np.uint8)
    Image.fromarray(np.dstack([picture, np.full((61, 83), 90, np.uint8)])).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(np.dstack([picture, np.full((61, 83), 90, np.uint8)])).save(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", picture[..., :1].repeat(3, -1), pixels="gray")
    for name in ("a.webp", "a.png", "b.png"):
        (clip,) = clips_of(tmp_path / name, PrepareSettings(short_side=32), "picture")
        shown = decode_clip(str(tmp_path / name), np.zeros(1), 32)[0]
        made = np.asarray(Image.open(io.BytesIO(clip.data)))
        assert made.shape == shown.shape == (32, 44, 3)
        assert np.abs(made.astype(int) - shown).mean() < 6


def test_the_same_file_gives_the_same_bytes(tmp_path: Path):
    path = write_numbered(tmp_path / "a.mp4")
    assert clips_of(path) == clips_of(path)


def test_a_file_that_ends_early_is_broken(tmp_path: Path):
    whole = write_numbered(tmp_path / "a.mp4", options={"movflags": "faststart"})
    with pytest.raises(BrokenFile, match="truncated"):
        clips_of(cut_short(whole, tmp_path / "b.mp4"))
    with pytest.raises(BrokenFile, match="unreadable"):
        clips_of(tmp_path / "gone.mp4")


def test_a_file_damaged_deep_inside_is_broken(tmp_path: Path):
    data = bytearray(write_numbered(tmp_path / "a.mkv", 60, codec="mpeg4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "b.mkv").write_bytes(data)
    with pytest.raises(BrokenFile, match="unreadable"):
        clips_of(tmp_path / "b.mkv")


def test_an_encoder_that_is_not_there_is_named():
    check_encoder(PrepareSettings())
    with pytest.raises(UserError, match="libx265000"):
        check_encoder(PrepareSettings(codec="libx265000"))


@pytest.mark.parametrize(
    "wrong", [{"short_side": 0}, {"seconds": 0.0}, {"min_seconds": 6.0}, {"crf": 60}, {"fps": 0.0}, {"quality": 0}]
)
def test_impossible_settings_are_refused(wrong: dict):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PrepareSettings(**wrong)
