import os
import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import (
    cut_short,
    numbered,
    read_number,
    read_numbers,
    rotate_header,
    write_numbered,
    write_picture,
    write_sound,
    write_video,
)

from nextvid.data import backends as choosing
from nextvid.data.backends import choose_backend
from nextvid.data.clip import BrokenFile
from nextvid.data.decode import decode_clip, probe_file
from nextvid.errors import UserError

FORMATS = {
    "mp4": {},
    "mkv": {},
    "avi": {"codec": "mpeg4"},
    "ts": {},
    "webm": {"codec": "libvpx-vp9"},
    "mov": {"key_frames": 250},
}
UNEVEN = [0.0, 0.1, 0.15, 0.5, 0.52, 0.9, 1.7, 1.75, 2.4, 2.5, 2.6, 3.9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def videos(folder):
    return {suffix: write_numbered(folder / f"even.{suffix}", **how) for suffix, how in FORMATS.items()}


def backends():
    return ["pyav", "torchcodec"] if choose_backend("auto") == "torchcodec" else ["pyav"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("backend", backends())
def test_frames_are_those_shown_at_the_time(videos, suffix, backend):
    draw = np.random.default_rng(0)
    for _ in range(6):
        times = np.sort(draw.uniform(0, 4.0, 5))
        frames = decode_clip(str(videos[suffix]), times, backend=backend)
        assert read_numbers(frames) == [int(time * 10) for time in times]


@pytest.mark.parametrize("suffix", FORMATS)
def test_exact_frame_times_show_their_frame(videos, suffix):
    assert read_numbers(decode_clip(str(videos[suffix]), np.arange(40) / 10)) == list(range(40))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("backend", backends())
def test_variable_frame_rate(folder, suffix, backend):
    pictures = [numbered(number) for number in range(len(UNEVEN))]
    path = write_video(folder / f"uneven.{suffix}", pictures, seconds=UNEVEN, key_frames=4)
    times = np.random.default_rng(1).uniform(0, 3.9, 50)
    shown = read_numbers(decode_clip(str(path), times, backend=backend))
    assert shown == [int(np.searchsorted(UNEVEN, time, side="right")) - 1 for time in times]


@pytest.mark.parametrize("backend", backends())
def test_times_in_any_order_repeated_and_past_the_end(videos, backend):
    times = np.array([2.05, 0.05, 2.05, 99.0, -1.0])
    assert read_numbers(decode_clip(str(videos["mp4"]), times, backend=backend)) == [20, 0, 20, 39, 0]


@pytest.mark.parametrize("backend", backends())
def test_rotation_in_the_header_is_applied(videos, folder, backend):
    path = rotate_header(videos["mp4"], folder / "turned.mp4")
    info = probe_file(str(path))
    assert (info.height, info.width) == (64, 48)
    frames = decode_clip(str(path), np.array([0.5, 3.7]), backend=backend)
    assert frames.shape == (2, 64, 48, 3)
    upright = np.rot90(frames, k=1, axes=(1, 2))
    assert read_numbers(upright) == [5, 37]
    assert decode_clip(str(path), np.array([0.5]), 24, backend).shape == (1, 32, 24, 3)


@pytest.mark.parametrize(
    ("codec", "pixels", "size"),
    [
        ("ffv1", "gray", (48, 64)),
        ("ffv1", "yuv420p10le", (48, 64)),
        ("ffv1", "yuva420p", (48, 64)),
        ("ffv1", "yuv444p", (67, 101)),
        ("libvpx-vp9", "yuv420p", (67, 101)),
        ("ffv1", "bgra", (33, 57)),
    ],
)
@pytest.mark.parametrize("backend", backends())
def test_odd_sizes_grey_ten_bits_and_alpha_come_out_rgb(folder, codec, pixels, size, backend):
    height, width = size
    path = folder / f"{codec}-{pixels}-{height}.mkv"
    write_video(path, [numbered(number, height, width) for number in range(12)], codec=codec, pixels=pixels)
    info = probe_file(str(path))
    assert (info.kind, info.height, info.width) == ("video", height, width)
    frames = decode_clip(str(path), np.array([0.05, 1.05]), backend=backend)
    assert (frames.shape, frames.dtype) == ((2, height, width, 3), np.uint8)
    assert read_numbers(frames) == [0, 10]
    assert abs(frames.astype(int) - [numbered(0, height, width), numbered(10, height, width)]).mean() < 12


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("colour.png", "png", "rgb24"),
        ("alpha.png", "png", "rgba"),
        ("grey.png", "png", "gray"),
        ("photo.jpg", "mjpeg", "yuvj420p"),
        ("photo.webp", "libwebp", "yuv420p"),
        ("flat.bmp", "bmp", "bgr24"),
        ("pattern-%03d.JPG", "mjpeg", "yuvj444p"),
    ],
)
def test_pictures(folder, name, codec, pixels):
    path = write_picture(folder / name, numbered(77, 49, 65), codec, pixels)
    info = probe_file(str(path))
    assert (info.kind, info.height, info.width, info.frames, info.seconds) == ("picture", 49, 65, 1, 0.0)
    frames = decode_clip(str(path), np.array([0.0, 3.0]), backend=backends()[-1])
    assert frames.shape == (2, 49, 65, 3)
    assert read_numbers(frames) == [77, 77]


@pytest.mark.parametrize("backend", backends())
def test_frames_are_scaled_down_and_never_up(videos, backend):
    assert decode_clip(str(videos["mp4"]), np.zeros(1), 24, backend).shape == (1, 24, 32, 3)
    assert decode_clip(str(videos["mp4"]), np.zeros(1), 480, backend).shape == (1, 48, 64, 3)
    assert read_number(decode_clip(str(videos["mp4"]), np.array([2.0]), 24, backend)[0]) == 20


@pytest.mark.skipif(len(backends()) == 1, reason="TorchCodec does not decode on this machine")
def test_both_back_ends_give_nearly_equal_frames(folder):
    y, x = np.mgrid[:180, :320]
    waves = [np.stack([y, x // 2, 128 + 80 * np.sin((x + 9 * n) / 15)], -1).astype(np.uint8) for n in range(20)]
    path = str(write_video(folder / "waves.mp4", waves))
    times = np.linspace(0, 1.9, 9)
    for short_side in (None, 90):
        ours, theirs = (decode_clip(path, times, short_side, backend).astype(int) for backend in backends())
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).mean() < 2


def test_what_a_video_says_of_itself(videos, folder):
    for path in videos.values():
        info = probe_file(str(path))
        assert (info.kind, info.width, info.height, info.frames) == ("video", 64, 48, 40)
        assert info.fps == pytest.approx(10, abs=0.1)
        assert info.seconds == pytest.approx(4.0, abs=0.15)
    assert probe_file(str(write_numbered(folder / "one.mp4", count=1))).frames == 1


def test_a_file_without_a_length_is_counted(folder):
    path = write_numbered(folder / "live.webm", codec="libvpx-vp9", options={"live": "1"})
    info = probe_file(str(path))
    assert info.frames == 40
    assert info.seconds == pytest.approx(4.0, abs=0.15)


def reason_of(path) -> str:
    with pytest.raises(BrokenFile) as broken:
        probe_file(str(path))
    assert broken.value.path == str(path)
    return broken.value.reason


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm", "mov"])
def test_a_video_that_is_cut_short(videos, folder, suffix):
    assert reason_of(cut_short(videos[suffix], folder / f"cut.{suffix}")) == "truncated"


def test_a_video_with_its_index_in_front_that_is_cut_short(folder):
    path = write_numbered(folder / "front.mp4", options={"movflags": "faststart"})
    assert reason_of(cut_short(path, folder / "front-cut.mp4", 0.95)) == "truncated"


@pytest.mark.parametrize(("suffix", "codec", "pixels"), [("png", "png", "rgb24"), ("jpg", "mjpeg", "yuvj420p")])
def test_a_picture_that_is_cut_short(folder, suffix, codec, pixels):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = write_picture(folder / f"whole.{suffix}", noise, codec, pixels)
    assert reason_of(cut_short(path, folder / f"cut.{suffix}")) == "truncated"


def test_files_that_are_no_video(folder):
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video, whatever its name says\n" * 40)
    (folder / "text.jpg").write_text("not a picture\n" * 40)
    (folder / "subtitles.mkv").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 5)
    assert reason_of(folder / "empty.mp4") == "empty"
    assert reason_of(folder / "text.mp4") == "not_media"
    assert reason_of(folder / "text.jpg") == "not_media"
    assert reason_of(folder / "subtitles.mkv") == "not_media"
    assert reason_of(write_sound(folder / "sound.mp4")) == "no_video"
    assert reason_of(folder / "gone.mp4") == "unreadable"


def test_a_playlist_with_a_videos_name_opens_nothing_else(videos, folder):
    playlist = folder / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{videos['ts']}\n#EXT-X-ENDLIST\n")
    assert reason_of(playlist) == "not_media"


def test_a_picture_that_claims_an_absurd_size(folder):
    header = struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 100_000, 100_000, 8, 2, 0, 0, 0, 0)
    (folder / "absurd.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header)
    assert reason_of(folder / "absurd.png") == "too_large"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(videos, folder):
    path = folder / "denied.mp4"
    shutil.copy(videos["mp4"], path)
    path.chmod(0)
    assert reason_of(path) == "denied"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["mp4", "mkv", "avi", "webm"]), st.data())
def test_damage_of_any_kind_is_a_broken_file_or_a_picture(videos, tmp_path, suffix, data):
    content = bytearray(videos[suffix].read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=30)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for attempt in (lambda: probe_file(str(path)), lambda: decode_clip(str(path), np.array([0.3, 2.0]))):
        reason = None
        try:
            attempt()
        except BrokenFile as broken:
            reason = broken.reason
        assert reason in {None, "empty", "not_media", "unreadable", "truncated", "no_video", "too_large"}


def test_a_back_end_that_does_not_work(monkeypatch):
    monkeypatch.setattr(choosing, "_torchcodec_problem", lambda: "no libavutil")
    choose_backend.cache_clear()
    try:
        assert choose_backend("auto") == "pyav"
        with pytest.raises(UserError, match=r"no libavutil.*data\.decoder=auto"):
            choose_backend("torchcodec")
    finally:
        choose_backend.cache_clear()
