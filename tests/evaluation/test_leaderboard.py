"""``nextvid leaderboard``: several encoders, ours and others', on the same clips, in one table, one page and one JSON."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import references
from frozen_clips import Patches, write_encoder

from nextvid.cli import main
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.leaderboard import same_clips, told_apart
from nextvid.evaluation.protocol import USUAL_CLIP, EvalRecipe

SPRITES = ("--benchmark", "moving-sprites", "--level", "plain", "--task", "digit")
CLIPS = ("--train-clips", "60", "--test-clips", "30")
QUICK = ["frames=4", "epochs=2", "lrs=[0.01, 0.001]", "readers=[]"]
ROW = {
    "name",
    "kind",
    "width",
    "layers",
    "parameters",
    "digest",
    "top1",
    "ci95",
    "top5",
    "mean_class",
    "clip",
    "random_init",
}

Nextvid = Callable[..., int]


@pytest.fixture
def nextvid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nextvid:
    """The exit code of ``nextvid leaderboard`` with these arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["nextvid", "leaderboard", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def as_html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def test_two_of_our_encoders(
    nextvid: Nextvid, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_encoder(folder / "one" / "run"), write_encoder(folder / "two" / "run", seed=4)]
    more = [*QUICK, "baselines=[chance, pixels, random_init]"]
    assert nextvid(*runs, *more, *SPRITES, *CLIPS, "-o", "out/board.html", "--json") == 0
    written = capsys.readouterr()
    found = json.loads(written.out)
    assert json.loads(Path("out/board.json").read_text()) == found
    assert {file.name for file in Path("out").iterdir()} == {"board.html", "board.json"}
    assert (found["benchmark"], found["level"], found["task"], found["test_clips"]) == (
        "moving-sprites",
        "plain",
        "digit",
        30,
    )
    assert found["clip"] == {"frames": 4, "fps": 6.0}
    assert {row["name"] for row in found["rows"]} == {"run (1)", "run (2)"}
    assert all(row.keys() >= ROW for row in found["rows"])
    assert found["rows"][0]["top1"] >= found["rows"][1]["top1"]
    assert found["rows"][0]["digest"] != found["rows"][1]["digest"]
    assert list(found["baselines"]) == ["chance", "pixels"]
    assert all(row["random_init"]["top1"] == found["rows"][0]["random_init"]["top1"] for row in found["rows"])
    assert all(word in written.err for word in ("run (1)", "run (2)", "pixels", "chance", "untrained"))
    page = Path("out/board.html").read_text()
    assert "run (2)" in page
    assert not [link for link in references(page) if not link.startswith(("#", "data:"))]


def test_a_row_is_what_probe_says_of_the_same_encoder(
    nextvid: Nextvid, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch
):
    run = write_encoder(tmp_path_factory.mktemp("runs") / "mine")
    more = [*QUICK, "baselines=[pixels, random_init]"]
    assert nextvid("nextvid-tiny", run, *more, "size=16", *SPRITES, *CLIPS, "--json") == 0
    row = next(row for row in json.loads(capsys.readouterr().out)["rows"] if row["name"] == "mine")
    (fps,) = {json.loads(Path("leaderboard.json").read_text())["clip"]["fps"]}
    monkeypatch.setattr(
        sys, "argv", ["nextvid", "probe", str(run), *more, "size=16", f"fps={fps}", *SPRITES, *CLIPS, "--json"]
    )
    with pytest.raises(SystemExit):
        main()
    probe = json.loads(capsys.readouterr().out)
    assert all(row[key] == probe[key] for key in ("top1", "ci95", "top5", "mean_class", "best_lr", "held_out_top1"))
    assert row["random_init"]["top1"] == probe["baselines"]["random_init"]["top1"]


def test_ours_beside_three_models_of_transformers(
    nextvid: Nextvid, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
):
    """Small random ones from their folders: a video model of one number of frames, one of any, and an image model."""
    from encoders.test_hf_encoders import IMAGE, VIDEO, make_model, save  # noqa: PLC0415 (seconds)

    folder = tmp_path_factory.mktemp("models")
    names = {"videomae": VIDEO, "vjepa2": VIDEO, "dinov2": IMAGE}
    for kind, processor in names.items():
        name = "video_preprocessor_config.json" if kind == "vjepa2" else "preprocessor_config.json"
        (folder / kind).mkdir()
        save(make_model(kind), folder / kind, processor, name)
    encoders = ["nextvid-tiny", *(f"hf:{folder / kind}" for kind in names)]
    assert nextvid(*encoders, *QUICK, *SPRITES, *CLIPS, "-o", "board.html", "--json") == 0
    written = capsys.readouterr()
    found = json.loads(written.out)
    assert {row["kind"] for row in found["rows"]} == {"nextvid", "transformers"}
    assert [row["top1"] for row in found["rows"]] == sorted((row["top1"] for row in found["rows"]), reverse=True)
    assert {row["name"] for row in found["rows"]} >= {"nextvid-tiny"}
    assert {row["clip"]["size"] for row in found["rows"]} == {32, 16}
    assert {row["clip"]["frames"] for row in found["rows"]} == {4}
    assert set(found["baselines"]) == {"chance", "middle_frame", "pixels", "optical_flow"}
    page = Path("board.html").read_text()
    for row in found["rows"]:
        assert 0 <= row["ci95"][0] <= row["top1"] <= row["ci95"][1] <= 1
        assert row["name"] in written.err
        assert as_html(row["name"]) in page
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["epochs=2"], "name at least one encoder"),
        ([], "Missing argument"),
        (["nextvid-tiny", "--out", "board.json"], "give it a name such as board.html"),
        (["nextvid-tiny", "epoch=2"], "did you mean 'epochs'"),
        (["nextvid-tiny", "segments=2"], "leave out segments"),
        (["nextvid-tiny", "layers=9"], "layers=9, and nextvid-tiny has 4 layers"),
        (["nextvid-tiny", "copies=2"], "copies=2 without augmentation"),
        (["nextvid-tiny", "nextvid-tine"], "there is no encoder 'nextvid-tine'"),
        (["nextvid-tiny", "size=17"], "the size a multiple of"),
    ],
)
def test_wrong_input_is_said_before_anything_is_measured(
    nextvid: Nextvid, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
):
    assert nextvid(*arguments, *SPRITES, *CLIPS) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(Path().iterdir())


def test_all_are_given_the_same_frames():
    first, second = Patches(), Patches()
    first.clip, second.clip = None, ClipSpec(6, 3.0, 8)
    recipe = same_clips(EvalRecipe(), [first, second])
    assert (recipe.frames, recipe.fps, recipe.size) == (6, 3.0, None)
    assert same_clips(EvalRecipe(frames=2), [second]).frames == 2
    usual = same_clips(EvalRecipe(), [first])
    assert (usual.frames, usual.fps) == (USUAL_CLIP.frames, USUAL_CLIP.fps)


def test_names_that_are_alike_are_numbered():
    one, two, three = Patches(), Patches(), Patches(seed=1)
    assert told_apart([one, three, two]) == ["patches 0 (1)", "patches 1", "patches 0 (2)"]


def test_an_encoder_that_cannot_take_the_clips_stops_all(nextvid: Nextvid, capsys: pytest.CaptureFixture[str]):
    assert nextvid("nextvid-tiny", "frames=3", *SPRITES, *CLIPS) == 2
    assert "frames must be a multiple of" in " ".join(capsys.readouterr().err.split())
