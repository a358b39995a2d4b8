"""What is read of a video, a picture, a folder and a benchmark."""

from pathlib import Path

import numpy as np
import pytest
from media import cut_short, numbered, read_numbers, write_picture, write_sound, write_video

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.generation.material import Cut, find_material, read_material

SPEC = ClipSpec(frames=4, fps=5.0, size=64)


def numbers_of(name: Path | str, cut: Cut) -> list[list[int]]:
    clips = read_material(find_material(str(name)), cut, progress=False).clips
    return [read_numbers(clip) for clip in clips.permute(0, 1, 3, 4, 2).numpy()]


def video(path: Path, count: int = 20) -> Path:
    """Ten frames a second, each with its number."""
    return write_video(path, [numbered(number, 64, 64) for number in range(count)])


def test_frames_are_cut_by_true_time_from_the_start_on(tmp_path: Path) -> None:
    file = video(tmp_path / "a.mp4")
    assert numbers_of(file, Cut(SPEC, 2, 0.0, 1)) == [[0, 2, 4, 6]]
    assert numbers_of(file, Cut(SPEC, 2, 0.5, 1)) == [[5, 7, 9, 11]]


def test_a_video_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    file = video(tmp_path / "a.mp4", 5)
    assert numbers_of(file, Cut(SPEC, 2, 0.0, 1)) == [[0, 2, 4]]
    with pytest.raises(UserError, match=r"lasts 0.50 s, from 0.2 s on 2 frames at 5 a second, and 3 are needed"):
        numbers_of(file, Cut(SPEC, 3, 0.2, 1))


def test_a_wide_picture_is_cropped_in_the_middle_and_stands_still(tmp_path: Path) -> None:
    wide = np.zeros((48, 96, 3), np.uint8)
    wide[:, 24:72] = (200, 100, 0)
    file = write_picture(tmp_path / "still.png", wide)
    material = find_material(str(file))
    clips = read_material(material, Cut(ClipSpec(8, 5.0, 16), 4, 0.0, 1), progress=False).clips
    assert material.kind == "picture"
    assert clips.shape == (1, 4, 3, 16, 16)
    assert (clips.float().mean(dim=(0, 1, 3, 4)) - clips[0, 0, :, 8, 8]).abs().max() < 1
    assert clips[0, 0, 0, 8, 8] > 190


def test_of_a_folder_what_cannot_be_used_is_left_out_by_name(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    video(tmp_path / "b.mp4", 6)
    video(tmp_path / "too_short.mp4", 2)
    write_sound(tmp_path / "sound.mp4")
    footage = read_material(find_material(str(tmp_path)), Cut(SPEC, 2, 0.0, 9), progress=False)
    assert [Path(name).name for name in footage.names] == ["a.mp4", "b.mp4"]
    assert footage.clips.shape[:2] == (2, 3)  # as long as the shortest
    assert {Path(name).name for name in footage.left_out} == {"too_short.mp4", "sound.mp4"}
    assert len(read_material(find_material(str(tmp_path / "*.mp4")), Cut(SPEC, 2, 0.0, 1), progress=False).names) == 1


def test_a_benchmark_is_named_with_its_level_or_takes_its_first() -> None:
    material = find_material("moving-sprites:plain")
    assert (material.kind, material.stem) == ("benchmark", "moving-sprites-plain")
    assert find_material("camera-moves").name == "camera-moves:still"
    clips = read_material(material, Cut(ClipSpec(4, 5.0, 16), 2, 0.0, 3), progress=False).clips
    assert clips.shape == (3, 4, 3, 16, 16)


def test_what_is_not_there_or_broken_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no footage at .*gone.mp4"):
        find_material(str(tmp_path / "gone.mp4"))
    with pytest.raises(UserError, match="did you mean 'moving-sprites'"):
        find_material("moving-sprits:still")
    (tmp_path / "empty.mp4").touch()
    cut_short(video(tmp_path / "whole.mp4"), tmp_path / "cut.mp4", 0.3)
    for name, reason in (("empty.mp4", "it is empty"), ("cut.mp4", "cannot be read as a video")):
        with pytest.raises(UserError, match=reason):
            numbers_of(tmp_path / name, Cut(SPEC, 2, 0.0, 1))
    (tmp_path / "whole.mp4").unlink()
    with pytest.raises(UserError, match="none of the 2 videos"):
        numbers_of(tmp_path, Cut(SPEC, 2, 0.0, 5))
