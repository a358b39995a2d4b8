"""A folder of a user's videos, measured without labels; what is in it that cannot be used is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from media import cut_short, footage_of, numbered, write_picture, write_video
from rich.console import Console
from torch import Tensor

from nextvid.data.clip import BrokenFile, ClipSpec
from nextvid.data.film import load_film
from nextvid.errors import UserError
from nextvid.evaluation import baselines
from nextvid.evaluation.encoders.frozen import FrozenEncoder
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers import crossing
from nextvid.evaluation.readers import videos as videos_module
from nextvid.evaluation.readers.encoding import averaged, cell_for, encode_both_ways
from nextvid.evaluation.readers.videos import VideoClips, fitting, spread_times, video_clips, video_of
from nextvid.evaluation.unlabelled import measure_footage, table_of
from nextvid.footage.plan import PrepareSettings
from nextvid.footage.prepare import prepare_footage

SPEC = ClipSpec(frames=4, fps=10.0, size=32)
QUICK = ProbeConfig(epochs=4, lrs=(1e-2, 3e-3))
FPS = 10


class Pixels(FrozenEncoder):
    """The pixels of every two frames, in their order, averaged over squares of eight."""

    name, kind, width, layers, clip, size, digest = "pixels", "function", 96, 1, SPEC, 32, "none"

    @property
    def preprocessing(self):
        return {}

    def check(self, spec):
        if spec.size % 8:
            raise UserError(f"frames of {spec.size} pixels cannot be cut into squares of 8: choose another size")

    def encode(self, frames, layers):
        small = frames.float().div(255).unflatten(-1, (4, -1)).unflatten(-3, (4, -1)).mean((-1, -3))
        return [small.unflatten(1, (-1, 2)).flatten(2)[:, :, None]]


def film_pieces(count: int, frames: int) -> list[np.ndarray]:
    film = load_film().frames
    starts = np.linspace(100, len(film) - frames - 1, count).astype(int)
    return [np.asarray(film[start : start + frames]) for start in starts]


def fading(number: int, frames: int) -> list[np.ndarray]:
    """A picture of its own that gets brighter all along."""
    picture = np.random.default_rng(number).integers(0, 90, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return [picture + np.uint8(12 * place) for place in range(frames)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of the film, one of them twice; one that is cut short, one too short, and a picture."""
    found = tmp_path_factory.mktemp("mine")
    for number, piece in enumerate(film_pieces(10, 30)):
        write_video(found / f"film-{number}.mp4", list(piece), fps=FPS)
    shutil.copy(found / "film-0.mp4", found / "film-again.mp4")
    cut_short(found / "film-1.mp4", found / "cut.mp4")
    write_video(found / "short.mp4", [numbered(n) for n in range(6)], fps=FPS)
    write_picture(found / "still.png", numbered(7))
    return found


@pytest.fixture(scope="module")
def brightening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("fades")
    for number in range(16):
        write_video(found / f"{number}.mp4", fading(number, 13), fps=FPS)
    return found


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """Scans of these folders stay out of the user's cache; the film is where it is."""
    load_film()
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def hasty(monkeypatch):
    """Probes hardly learn: for tests that ask for no figure of theirs."""
    monkeypatch.setattr(crossing, "FEWEST_STEPS", 8)


def test_a_folder_is_measured_and_what_cannot_be_used_is_named(folder, hasty):
    others = {"pixels": baselines.pixels(8, 1), "middle_frame": baselines.middle_frame(8)}
    found = measure_footage(Pixels(), str(folder), others=others, config=QUICK, progress=False)
    assert found == json.loads(json.dumps(found))
    assert found["videos"] == 10
    assert found["clips"] == 30
    assert found["left_out"] == {
        "pictures": 1,
        "duplicates": 1,
        "too_short": 1,
        "further_pieces": 0,
        "broken": {"truncated": 1},
        "not_needed": 0,
    }
    assert found["broken_files"] == [[str(folder / "cut.mp4"), "truncated"]]
    assert found["skipped"] == {}
    assert list(found["tasks"]) == ["retrieval", "arrow", "order"]
    for score in found["tasks"].values():
        assert score["ci95"][0] <= score["top1"] <= score["ci95"][1]
        assert score["videos"] == 10
        assert set(score["baselines"]) == {"pixels", "middle_frame"}
        for baseline in score["baselines"].values():
            assert baseline["ci95"][0] <= baseline["top1"] <= baseline["ci95"][1]
    assert found["tasks"]["retrieval"]["top1"] > 0.4  # three seconds of a film look alike
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table_of(found))
    text = console.export_text()
    for words in ("this encoder", "middle frame", "chance", "arrow of time", "10 videos of", "16.7", "50.0"):
        assert words in text


def test_the_same_seed_measures_the_same_and_leaves_no_clips_behind(folder, hasty, tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path))
    found = [
        measure_footage(Pixels(), str(folder / "film*.mp4"), config=QUICK, videos=8, seed=seed, progress=False)
        for seed in (1, 1)
    ]
    assert found[0] == found[1]
    assert found[0]["left_out"]["not_needed"] == 2
    assert not list(tmp_path.glob("clips-*"))


@pytest.mark.slow
def test_what_changes_one_way_is_seen_by_who_sees_frames_in_order(brightening):
    """Brightening is read from frames in order; frames added up tell no arrow, though they tell the order of clips."""

    def added_up(frames: UInt8[Tensor, "batch frames 3 height width"]) -> Tensor:
        small = frames.double().unflatten(-1, (4, -1)).unflatten(-3, (4, -1)).mean((-1, -3)).sum(1)
        return small.round(decimals=3).float().flatten(1)[:, None, None] / 255

    found = measure_footage(
        Pixels(), str(brightening), others={"added_up": added_up}, config=QUICK, seed=1, progress=False
    )
    assert found["tasks"]["retrieval"]["top1"] == 1.0
    assert found["tasks"]["arrow"]["top1"] > 0.9
    assert found["tasks"]["arrow"]["baselines"]["added_up"]["top1"] == 0.5
    assert found["tasks"]["order"]["top1"] > 0.6


def test_too_few_videos_are_counted_and_said(folder):
    few = folder.parent / "few"
    few.mkdir()
    for number, piece in enumerate(film_pieces(10, 30)):
        write_video(few / f"{number}.mp4", list(piece[: 30 if number < 7 else 10]), fps=FPS)
    spec = ClipSpec(6, 10.0, 32)
    with pytest.raises(UserError, match=r"holds 7 usable videos of at least 1.2 s .* 8 are needed .*3 too short"):
        measure_footage(Pixels(), str(few), spec=spec, config=QUICK, progress=False)
    with pytest.raises(UserError, match="no footage at"):
        measure_footage(Pixels(), str(folder / "nowhere"), progress=False)
    with pytest.raises(UserError, match="squares of 8"):
        measure_footage(Pixels(), str(folder), spec=ClipSpec(4, 10.0, 30), progress=False)
    with pytest.raises(UserError, match="clips is 1"):
        measure_footage(Pixels(), str(folder), clips=1, progress=False)


def test_videos_of_two_clips_have_no_order_of_three(folder, hasty):
    found = measure_footage(Pixels(), str(folder), spec=ClipSpec(12, 10.0, 32), config=QUICK, progress=False)
    assert found["clips"] == 20
    assert list(found["tasks"]) == ["retrieval", "arrow"]
    assert "0 videos give 3 clips" in found["skipped"]["order"]


def test_a_video_that_cannot_be_decoded_after_all_is_counted_and_another_stands_in(folder, monkeypatch):
    inner = videos_module.decode_clip

    def failing(place, *rest):
        if str(place).endswith("film-3.mp4"):
            raise BrokenFile(str(place), "unreadable")
        return inner(place, *rest)

    monkeypatch.setattr(videos_module, "decode_clip", failing)
    with video_clips(str(folder), SPEC, clips=3, videos=9, progress=False) as found:
        assert len(found.names) == 9
        assert not any("film-3" in name for name in found.names)
        tried = found.left_out["broken"].get("unreadable", 0)
        assert found.left_out["not_needed"] == 1 - tried
        assert found.left_out["broken"]["truncated"] == 1
    with video_clips(str(folder), SPEC, clips=3, videos=10, progress=False) as found:
        assert len(found.names) == 9
        assert found.left_out["broken"] == {"truncated": 1, "unreadable": 1}
        assert (str(folder / "film-3.mp4"), "unreadable") in found.broken_files


def test_clips_are_the_frames_that_are_shown_and_do_not_overlap(tmp_path):
    """Frames say which they are: of 30 at 10 a second three clips of four frames lie in the middle of thirds."""
    folder = tmp_path / "numbered"
    folder.mkdir()
    for number in range(8):
        pictures = [numbered(place + 40 * (number % 5), 64, 64) for place in range(30)]
        pictures[0] = numbered(200 + number, 64, 64)
        write_video(folder / f"{number}.mp4", pictures, fps=FPS)
    spec = ClipSpec(4, 10.0, 64)
    with video_clips(str(folder), spec, clips=3, videos=8, progress=False) as found:
        place = next(i for i, name in enumerate(found.names) if name.endswith("0.mp4"))
        rows = found.clips_of(3)[place]
        bits = found.frames[rows][:, :, :, 32, 4::8].mean(2) > 127
        numbers = (bits * 2 ** np.arange(8)).sum(-1)
    assert numbers.tolist() == [[3, 4, 5, 6], [13, 14, 15, 16], [23, 24, 25, 26]]


def test_as_many_clips_as_fit_are_spread_evenly():
    spec = ClipSpec(8, 8.0, 32)
    assert fitting(np.array([0.9, 1.0, 2.99, 3.0, 100.0]), spec, 3).tolist() == [0, 1, 2, 3, 3]
    times = spread_times(30.0, spec, 3)
    assert times[:, 0].tolist() == [4.5, 14.5, 24.5]
    assert times[0].tolist() == [4.5 + k / 8 for k in range(8)]
    tight = spread_times(3.0, spec, 3)
    assert (np.diff(tight.flatten()) > 0.124).all()


@pytest.mark.slow
def test_pieces_of_one_file_in_prepared_shards_are_one_video(tmp_path, folder):
    source = tmp_path / "long"
    source.mkdir()
    for number, piece in enumerate(film_pieces(9, 70)):
        write_video(source / f"{number}.mp4", list(piece), fps=FPS)
    footage_of(source, tmp_path / "long.parquet")
    settings = PrepareSettings(short_side=32, seconds=3.0, min_seconds=1.0)
    quiet = Console(quiet=True)
    made = prepare_footage(tmp_path / "long.parquet", tmp_path / "shards", settings, workers=1, console=quiet)
    assert made["clips"] > 9
    with video_clips(str(tmp_path / "shards"), SPEC, clips=3, videos=100, progress=False) as found:
        assert len(found.names) == 9
        assert len({Path(name).name[:9] for name in found.names}) == 9
        left = found.left_out
        assert left["further_pieces"] + left["too_short"] + left["duplicates"] + 9 == made["clips"]
    assert video_of("a/shard-000000.tar", "shard-000000.tar/000000012_00003.mp4", 99) == "a/000000012"
    assert video_of("a/000000012_00003.mp4", None, None) is None


class Flat:
    """Eight clips of noise, kept as clips on disk are."""

    def __init__(self, frames: int = 2, size: int = 16) -> None:
        draw = np.random.default_rng(0)
        noise = draw.integers(0, 255, (8, frames, 3, size, size), dtype=np.uint8)
        self.clips = VideoClips(noise, torch.arange(4).repeat_interleave(2), list("abcd"), {}, [])


def test_clips_are_encoded_forwards_and_backwards_and_fit_the_memory_allowed():
    clips = Flat().clips
    encode = baselines.pixels(4, tubelet=1)
    tokens = encode_both_ways(encode, clips, batch=3, progress=False)
    whole = encode(torch.from_numpy(clips.frames))
    torch.testing.assert_close(tokens[:, 0], whole)
    torch.testing.assert_close(tokens[:, 1], whole.flip(1))
    small = encode_both_ways(encode, clips, batch=3, most_bytes=tokens.nbytes // 3, progress=False)
    assert small.shape[3] == 4
    torch.testing.assert_close(small[:, 0, :, 0], whole[:, :, [0, 1, 4, 5]].mean(2))
    with pytest.raises(UserError, match="fewer videos"):
        encode_both_ways(encode, clips, most_bytes=100, progress=False)


def test_squares_of_places_are_no_larger_than_they_must_be():
    shape = torch.Size([1, 8, 196, 10])
    everything = 2 * 5 * 8 * 196 * 10 * 4
    assert cell_for(5, shape, everything) == 1
    assert cell_for(5, shape, everything - 1) == 2
    assert cell_for(5, shape, everything // 49) == 7
    assert cell_for(5, torch.Size([1, 8, 15, 10]), everything) == 1
    tokens = torch.arange(16.0).view(1, 1, 16, 1)
    assert averaged(tokens, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
