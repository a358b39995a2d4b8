"""A session: encoders read by one protocol, wherever their tokens lie, whatever is broken, and when it is stopped."""

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import miniature
import pytest
import torch
from frozen_clips import write_encoder
from rich.console import Console

from nextvid.data.benchmarks.official import OfficialClips
from nextvid.data.clip import ClipSpec
from nextvid.errors import Stopped, UserError
from nextvid.evaluation import session as session_module
from nextvid.evaluation.baseline_encoders import baseline_encoders
from nextvid.evaluation.encoders import FrozenEncoder, open_encoder
from nextvid.evaluation.measuring import measure_encoder
from nextvid.evaluation.protocol import load_protocol
from nextvid.evaluation.session import Reading, Session, Where, kind_of

SPEC = ClipSpec(frames=2, fps=4.0, size=16)
PLAIN = [
    "augmentation=null", "copies=1", "segments=2", "views=2", "epochs=3", "batch=4", "lrs=[0.01]", "weight_decays=[0.1]",
    "held_out=0.25", "workers=0", "standardise=false", "cached_as=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.kinetics400(tmp_path_factory.mktemp("kinetics"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    return open_encoder(str(write_encoder(tmp_path_factory.mktemp("runs") / "run")))


@pytest.fixture
def make(tmp_path: Path, kinetics: Path) -> Callable[..., Session]:
    def session(*overrides: str, root: Path = kinetics, name: str = "work", **settings) -> Session:
        recipe = load_protocol("kinetics400", "", [*PLAIN, *overrides])
        where = Where(f"kinetics400:{root}")
        return Session(where, recipe, SPEC, tmp_path / name, Console(file=io.StringIO()), progress=False, **settings)

    return session


def read(session: Session, *encoders: FrozenEncoder) -> list[Reading]:
    found: list[Reading] = []
    session.read(encoders, found.append)
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded from now on."""
    files: list[str] = []
    windows = OfficialClips.windows

    def count(clips, index, spec, views, draw):
        files.append(clips.path(index))
        return windows(clips, index, spec, views, draw)

    monkeypatch.setattr(OfficialClips, "windows", count)
    return files


def same(a: Reading, b: Reading) -> bool:
    return a.result == b.result and torch.equal(a.probabilities, b.probabilities)


def test_a_reading_does_not_depend_on_where_tokens_lie(make, encoder: FrozenEncoder):
    memory, cached, anew = (read(make(f"features={kind}"), encoder)[0] for kind in ("memory", "cached", "fresh"))
    assert [kind_of(reading.train) for reading in (memory, cached, anew)] == ["memory", "cached", "fresh"]
    assert same(cached, anew)
    assert memory.result.top1 == anew.result.top1
    torch.testing.assert_close(memory.probabilities, anew.probabilities, atol=0.01, rtol=0)
    for reading in (memory, cached, anew):
        assert reading.samples.tolist() == list(range(miniature.TEST))
        assert (reading.result.train_clips, reading.result.test_clips) == (miniature.TRAIN, miniature.TEST)
        assert reading.layers == [1]
        assert reading.probabilities.shape == (miniature.TEST, 400)
    assert (anew.test.views, anew.train.views) == (2, 1)


def test_red_and_blue_are_told_apart(make, encoder: FrozenEncoder):
    (reading,) = read(make("epochs=20"), encoder)
    assert reading.result.top1 == 1.0
    assert reading.result.classes == 400
    assert [one.name for one in reading.result.scores.per_class] == ["abseiling", "zumba"]


def test_fresh_clips_are_read_once_for_all_encoders(make, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch):
    """In two epochs of augmented clips: as many train files as for one encoder, and the same probes as one by one."""
    drawn = ("features=fresh", "augmentation={flip: 0.5}", "epochs=2")
    others = baseline_encoders(encoder, SPEC, ["pixels", "random_init"])
    files = counted(monkeypatch)
    together = read(make(*drawn), encoder, *others)
    trains = [file for file in files if "/train/" in file]
    assert len(files) - len(trains) == 3 * miniature.TEST
    assert len(trains) == 2 * 9 + 3
    for reading, other in zip(together, (encoder, *others), strict=True):
        files.clear()
        (alone,) = read(make(*drawn, name="alone"), other)
        assert len([file for file in files if "/train/" in file]) == len(trains)
        assert same(reading, alone)


def test_where_tokens_go_by_themselves(make, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch):
    """Memory where they fit; what is augmented to the disk where it fits, else nowhere."""
    augmented = ("augmentation={}", "copies=2")
    assert make().kind_of_features(encoder) == "memory"
    assert make(*augmented).kind_of_features(encoder) == "cached"
    monkeypatch.setattr(session_module, "free_memory", lambda: 1000)
    assert make().kind_of_features(encoder) == "cached"
    # 16 tokens of 24 channels, of 2 segments: 12 clips in 2 copies and 6 in 2 views, 4 bytes each.
    needed = 16 * 24 * 2 * (12 * 2 + 6 * 2) * 4
    for free, kind in ((2 * needed, "cached"), (2 * needed - 2, "fresh")):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: type("Usage", (), {"free": free}))
        assert make(*augmented, "disk_share=0.5").kind_of_features(encoder) == kind


def test_a_disk_without_room_is_said_before_anything_is_read(
    make, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    files = counted(monkeypatch)
    with pytest.raises(UserError, match=r"features of run: .* more than disk_share=0\.5 of it: make room"):
        read(make("features=cached"), encoder)
    assert not files


@pytest.mark.parametrize("kind", ["memory", "cached", "fresh"])
def test_broken_files_are_named_and_left_out(
    make, kinetics: Path, tmp_path: Path, encoder: FrozenEncoder, kind: str, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "kinetics"
    shutil.copytree(kinetics, root)
    tests, trains = sorted((root / "val").glob("*.mp4")), sorted((root / "train").glob("*.mp4"))
    broken = [tests[0], tests[3], trains[5]]
    for file in broken:
        file.write_bytes(b"nothing")
    overrides = (f"features={kind}", "epochs=4", "baselines=[]")
    session = make(*overrides, root=root)
    measured = measure_encoder(session, encoder)
    figures = measured.figures
    assert figures["test_clips"] == 4
    assert sum(one["clips"] for one in figures["per_class"]) == 4
    assert figures["broken"] == {"train": 1, "test": 2}
    assert {name: sorted(files) for name, files in figures["broken_files"].items()} == {
        "train": [str(trains[5])],
        "test": [str(tests[0]), str(tests[3])],
    }
    assert f"2 files of the test split could not be read, such as {tests[0]}" in figures["remarks"]
    (reading,) = read(make(*overrides, root=root, name="again"), encoder)
    assert reading.samples.tolist() == [1, 2, 4, 5]
    assert torch.equal(reading.truth, session.labels["test"]["class"][reading.samples])
    assert reading.result.top1 == figures["top1"]


def test_files_that_were_broken_when_features_were_stored_are_still_named(
    make, kinetics: Path, tmp_path: Path, encoder: FrozenEncoder
):
    root = shutil.copytree(kinetics, tmp_path / "kinetics")
    broken = sorted((root / "val").glob("*.mp4"))[2]
    broken.write_bytes(b"nothing")
    keeping = ("features=cached", "keep_features=true", "baselines=[]", "epochs=1")
    first, again = (measure_encoder(make(*keeping, root=root), encoder).figures for _ in range(2))
    assert first == again
    assert list(again["broken_files"]["test"]) == [str(broken)]


def test_nothing_that_can_be_read_is_said(
    make, kinetics: Path, tmp_path: Path, encoder: FrozenEncoder, unchecked: None
):
    """Unchecked: whether stored tokens are a supply cannot be asked where there are none."""
    shutil.copytree(kinetics, tmp_path / "kinetics")
    for file in (tmp_path / "kinetics" / "val").glob("*.mp4"):
        file.write_bytes(b"nothing")
    for kind in ("memory", "cached", "fresh"):
        with pytest.raises(UserError, match=r"not one clip .*could be read[;:] see"):
            read(make(f"features={kind}", "epochs=1", root=tmp_path / "kinetics", name=kind), encoder)


def after(calls: int) -> Callable[[], bool]:
    asked = iter([False] * calls)
    return lambda: next(asked, True)


@pytest.mark.parametrize("kind", ["memory", "cached", "fresh"])
def test_what_is_stopped_goes_on_and_comes_to_the_same(
    make, encoder: FrozenEncoder, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """However often, and wherever, it is stopped; what is encoded into files is not encoded again."""
    overrides = (f"features={kind}", "epochs=4", "baselines=[pixels]")
    whole = measure_encoder(make(*overrides, name="whole"), encoder).figures
    files = counted(monkeypatch)
    stops = 0
    for calls in (0, 0, 1, 3, 1000):
        session = make(*overrides, stop=after(calls))
        try:
            figures = measure_encoder(session, encoder).figures
            break
        except Stopped:
            stops += 1
            assert any(session.folder.iterdir())
    assert stops >= 2
    assert figures == whole
    session.clear()
    assert not list(session.folder.glob("fit-*")) + list(session.folder.glob("features"))
    if kind == "cached":
        assert max(files.count(file) for file in set(files)) <= 3 * (1 + stops)


def test_features_are_kept_where_the_recipe_says_so(make, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch):
    keeping = ("features=cached", "keep_features=true", "baselines=[]", "epochs=1")
    first = measure_encoder(make(*keeping), encoder).figures
    assert len(list((make().folder / "features").iterdir())) == 2
    files = counted(monkeypatch)
    other = measure_encoder(make(*keeping, "lrs=[0.001]"), encoder).figures
    assert other["best_lr"] == 0.001
    assert len(set(files)) == 2  # the first clip of each split, which shows the size
    assert measure_encoder(make(*keeping), encoder).figures == first
    files.clear()
    measure_encoder(make(*keeping, "segments=1"), encoder)
    assert len(set(files)) == 18


def test_figures_beside_baselines(make, encoder: FrozenEncoder):
    figures = measure_encoder(make("readers=[linear, knn, few_shot]", "epochs=1"), encoder).figures
    assert list(figures["baselines"]) == ["chance", "middle_frame", "pixels", "optical_flow", "random_init"]
    assert all({"top1", "ci95"} <= score.keys() for score in figures["baselines"].values())
    assert figures["baselines"]["chance"]["top1"] == 0.5
    assert {"linear", "knn"} <= figures["readers"].keys()
    assert [score["shots"] for score in figures["readers"]["few_shot"]] == [1, 5]
    assert any("only 2 of 400 classes have train clips" in remark for remark in figures["remarks"])
    assert any(
        "of the 19,877 published clips" in r or "published clips of the test split" in r for r in figures["remarks"]
    )
    assert figures["splits"]["train"]["read"] == miniature.TRAIN


def test_an_encoder_that_cannot_be_made_anew_says_so(make, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(encoder), "untrained", lambda encoder: None)
    figures = measure_encoder(make("baselines=[random_init, chance]", "epochs=1"), encoder).figures
    assert list(figures["baselines"]) == ["chance"]
    assert any(remark.startswith("no random initialisation") for remark in figures["remarks"])


# Clips that are made up


def sprites(tmp_path: Path, *overrides: str, task: str | None = None, level: str = "plain", **settings) -> Session:
    recipe = load_protocol(None, "moving-sprites", [*overrides, "train_clips=60", "test_clips=30", "epochs=2"])
    where = Where("moving-sprites", level, task)
    return Session(where, recipe, SPEC, tmp_path / "work", Console(file=io.StringIO()), progress=False, **settings)


def test_made_up_clips_are_made_once_or_whenever_they_are_asked_for(
    tmp_path: Path, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
):
    (memory,) = read(sprites(tmp_path, "features=fresh", task="digit"), encoder)
    monkeypatch.setattr(session_module, "free_memory", lambda: 1000)
    (anew,) = read(sprites(tmp_path, "features=fresh", task="digit"), encoder)
    assert type(memory.test.reader) is not type(anew.test.reader)  # type: ignore[attr-defined]
    assert same(memory, anew)


def test_made_up_clips_may_be_augmented(tmp_path: Path, encoder: FrozenEncoder):
    (reading,) = read(sprites(tmp_path, "features=fresh", "augmentation={flip: 0.5}", task="digit"), encoder)
    assert reading.result.test_clips == 30


@pytest.mark.parametrize(
    ("where", "overrides", "sentence"),
    [
        (Where("moving-sprites", "plain"), ["segments=2"], r"segments=2: the clips of .*leave out segments"),
        (Where("moving-sprites", "plain"), ["views=3"], r"views=3: .*leave out views"),
        (Where("moving-sprites", "plain", "digits"), [], r"has no task 'digits'.*did you mean 'digit'"),
        (Where("moving-sprites", "plane"), [], r"plane.*did you mean 'plain'"),
        (Where("moving-sprite"), [], r"moving-sprite.*did you mean 'moving-sprites'"),
        (Where("kinetics400:/nowhere"), [], "/nowhere"),
        (Where("moving-sprites", "plain"), ["train_clips=2"], "train clips are too few|no probe can name them"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    tmp_path: Path, encoder: FrozenEncoder, where: Where, overrides: Sequence[str], sentence: str
):
    recipe = load_protocol(None, "moving-sprites", ["train_clips=60", "test_clips=30", *overrides])
    session = Session(where, recipe, SPEC, tmp_path, Console(file=io.StringIO()), progress=False)
    with pytest.raises(UserError, match=sentence):
        measure_encoder(session, encoder)
