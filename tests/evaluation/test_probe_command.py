"""``nextvid probe`` on the four official benchmarks in miniature: its files, its figures, and its sentences for wrong input."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pyarrow.parquet as pq
import pytest
from builders import references
from frozen_clips import write_encoder
from safetensors import safe_open

from nextvid.cli import main

QUICK = [
    "frames=2",
    "size=16",
    "epochs=2",
    "batch=6",
    "lrs=[0.01]",
    "weight_decays=[0.1]",
    "held_out=0.25",
    "workers=0",
]
FILES = {"probe.json", "probe.html", "probe.safetensors", "answers.parquet", "confusion.csv"}
PROMISED = {"benchmark", "level", "top1", "ci95", "classes", "test_clips", "baselines"}
CLASSES = {"kinetics400": 400, "ssv2": 174, "diving48": 48, "imagenet1k": 1000}
FAST = ["baselines=[pixels]", "segments=1", "views=1", "layers=1"]

Nextvid = Callable[..., int]


@pytest.fixture
def nextvid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nextvid:
    """The exit code of ``nextvid`` with these arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["nextvid", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def root(name: str) -> Path:
        if name not in made:
            made[name] = miniature.TREES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return root


@pytest.mark.parametrize("name", CLASSES)
def test_a_probe_of_an_official_benchmark_runs_to_its_end(
    nextvid: Nextvid, tree: Callable[[str], Path], run_folder: Path, capsys: pytest.CaptureFixture[str], name: str
):
    """By its own protocol, made smaller: views and augmentation are the benchmark's."""
    smaller = {"diving48": ["layers=2", "copies=1"], "kinetics400": ["segments=2", "copies=2"], "ssv2": ["copies=1"]}
    more = ["baselines=[middle_frame, pixels, random_init]", *smaller.get(name, [])]
    assert (
        nextvid("probe", run_folder, *QUICK, *more, "--benchmark", f"{name}:{tree(name)}", "-o", "out", "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= PROMISED
    assert (found["benchmark"], found["classes"], found["test_clips"]) == (name, CLASSES[name], miniature.TEST)
    assert (found["train_clips"], found["depth"], found["step"], found["weights"]) == (miniature.TRAIN, 1, 7, "ema")
    assert list(found["baselines"]) == ["middle_frame", "pixels", "random_init"]
    for score in (found, *found["baselines"].values()):
        assert 0 <= score["ci95"][0] <= score["top1"] <= score["ci95"][1] <= 1
    assert found["protocol"]["features"] == "cached"
    assert found["protocol"]["recipe"] == name
    assert found["protocol"]["layers"] == ([0, 1] if name == "diving48" else [1])
    out = Path("out")
    assert {file.name for file in out.iterdir()} == FILES
    assert json.loads((out / "probe.json").read_text()) == found
    beside = json.loads((run_folder / f"probe_{name}_{found['level']}_class_ema.json").read_text())
    assert (beside["top1"], beside["baselines"]) == (found["top1"], found["baselines"])
    page = (out / "probe.html").read_text()
    assert not [link for link in references(page) if not link.startswith(("#", "data:"))]
    assert page.count("data:image/") > 3


def answers(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "answers.parquet").to_pylist()


def test_answers_and_confusion_are_those_of_the_figure(
    nextvid: Nextvid, tree: Callable[[str], Path], run_folder: Path, capsys: pytest.CaptureFixture[str]
):
    where = ("--benchmark", f"diving48:{tree('diving48')}")
    assert nextvid("probe", run_folder, *QUICK, *FAST, *where, "-o", "out", "--json") == 0
    found, rows = json.loads(capsys.readouterr().out), answers(Path("out"))
    assert [row["clip"] for row in rows] == list(range(6))
    assert [Path(row["file"]).name for row in rows] == [f"dive{n}.mp4" for n in range(100, 106)]
    assert sum(row["truth"] == row["answer"] for row in rows) / 6 == found["top1"]
    assert all(row["best"][0] == row["answer"] and len(set(row["best"])) == 5 for row in rows)
    assert all(0 < row["probability"] <= 1 for row in rows)
    assert sum(row["truth"] in row["best"] for row in rows) / 6 == found["top5"]
    with Path("out/confusion.csv").open() as handle:
        (_, *names), *body = csv.reader(handle)
    counts = {(row[0], name): int(cell) for row in body for name, cell in zip(names, row[1:], strict=True)}
    assert len(names) == len(body) == 48
    for row in rows:
        counts[row["truth"], row["answer"]] -= 1
    assert not any(counts.values())
    with safe_open("out/probe.safetensors", "pt") as file:
        about = json.loads(file.metadata()["probe"])
    assert (about["benchmark"], about["task"], about["layers"]) == ("diving48", "class", [1])
    assert about["classes"] == names


def test_a_kept_probe_scores_the_same_again(
    nextvid: Nextvid, tree: Callable[[str], Path], run_folder: Path, capsys: pytest.CaptureFixture[str]
):
    where = ("--benchmark", f"kinetics400:{tree('kinetics400')}")
    several = [*QUICK, "segments=2", "views=3", "baselines=[]"]
    assert nextvid("probe", run_folder, *several, *where, "-o", "out", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    again = ("--probe", "out/probe.safetensors", "-o", "again", "--json")
    assert nextvid("probe", run_folder, *several, *where, *again) == 0
    second = json.loads(capsys.readouterr().out)
    for key in ("top1", "ci95", "top5", "mean_class", "per_class", "test_clips", "best_lr", "train_clips"):
        assert second[key] == first[key], key
    assert {file.name for file in Path("again").iterdir()} == {"scored-again.json"}
    assert nextvid("probe", "nextvid-tiny", *several, *where, *again) == 2
    assert "was trained on the features of run" in capsys.readouterr().err
    assert nextvid("probe", run_folder, *several, "--benchmark", f"ssv2:{tree('ssv2')}", *again) == 2
    assert "tells other classes apart" in capsys.readouterr().err
    assert nextvid("probe", run_folder, *QUICK, "segments=1", *where, *again) == 2
    assert "was trained on clips of another form" in capsys.readouterr().err.replace("\n", " ")


def test_a_broken_test_video_is_named_and_left_out(
    nextvid: Nextvid, tree: Callable[[str], Path], run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    root = shutil.copytree(tree("ssv2"), tmp_path / "ssv2")
    broken = root / "20bn-something-something-v2" / "102.webm"
    broken.write_bytes(broken.read_bytes()[:100])
    more = ["augmentation=null", "copies=1", *FAST]
    assert nextvid("probe", run_folder, *QUICK, *more, "--benchmark", f"ssv2:{root}", "-o", "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["test_clips"], found["broken"]) == (5, {"train": 0, "test": 1})
    assert list(found["broken_files"]["test"]) == [str(broken)]
    numbers = {row["clip"]: Path(row["file"]).stem for row in answers(Path("out"))}
    assert numbers == {clip: str(100 + clip) for clip in (0, 1, 3, 4, 5)}
    assert "102.webm" in Path("out/probe.html").read_text()
    assert nextvid("probe", run_folder, *QUICK, *more, "--benchmark", f"ssv2:{root}") == 0
    shown = capsys.readouterr().out
    assert "1 files of the test split could not be read" in shown


def test_a_made_up_benchmark_and_where_its_files_go(
    nextvid: Nextvid, run_folder: Path, capsys: pytest.CaptureFixture[str]
):
    where = ("--benchmark", "moving-sprites", "--level", "plain", "--task", "digit")
    clips = ("--train-clips", 60, "--test-clips", 30)
    quick = [*QUICK, "baselines=[chance]", "readers=[]"]
    assert nextvid("probe", run_folder, *quick, *where, *clips, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["classes"], found["test_clips"]) == ("digit", 10, 30)
    assert {file.name for file in (run_folder / "probes" / "moving-sprites_plain_digit_ema").iterdir()} == FILES
    assert nextvid("probe", "nextvid-tiny", *quick, *where, *clips, "--no-standardise") == 0
    assert Path("probes/nextvid-tiny/moving-sprites_plain_digit_ema/probe.json").is_file()
    shown = capsys.readouterr().out
    assert "attentive probe of depth 1" in shown
    assert "this encoder" in shown
    kept = json.loads(Path("probes/nextvid-tiny/moving-sprites_plain_digit_ema/probe.json").read_text())
    assert (kept["standardised"], kept["encoder"]["parameters"] > 100_000) == (False, True)


def test_two_commands_alike_give_figures_alike(
    nextvid: Nextvid, tree: Callable[[str], Path], run_folder: Path, capsys: pytest.CaptureFixture[str]
):
    where = ("--benchmark", f"imagenet1k:{tree('imagenet1k')}", "-o", "out", "--json")
    found = []
    for workers in ("workers=0", "workers=2"):
        assert nextvid("probe", run_folder, *QUICK, *FAST, "copies=1", "baselines=[]", workers, *where) == 0
        found.append(json.loads(capsys.readouterr().out))
        del found[-1]["command"]
    assert found[0] == found[1]


SPRITES = ("--benchmark", "moving-sprites", "--level", "plain", "--train-clips", "40", "--test-clips", "20")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nextvid-tiny"], "say what to probe on: --benchmark NAME, or --on FOLDER"),
        (["nextvid-tiny", *SPRITES, "--on", "folder"], "say what to probe on: --benchmark NAME, or --on FOLDER"),
        (["nextvid-tiny", "epoch=2", *SPRITES], "did you mean 'epochs'"),
        (["nextvid-tiny", "segments=2", *SPRITES], "leave out segments"),
        (["nextvid-tiny", "layers=9", *SPRITES], "layers=9, and nextvid-tiny has 4 layers"),
        (["nextvid-tiny", "copies=2", *SPRITES], "copies=2 without augmentation"),
        (["nextvid-tiny", "size=17", *SPRITES], "the size a multiple of"),
        (["nextvid-tiny", "--weights", "best", *SPRITES], "--weights is ema or online, not 'best'"),
        (["nextvid-tiny", "--task", "digits", *SPRITES], "did you mean 'digit'"),
        (["nextvid-tiny", "--recipe", "kinetics", *SPRITES], "kinetics400"),
        (["nextvid-tiny", "--probe", "no.safetensors", *SPRITES], "there is no probe at no.safetensors"),
        (["no-such-run", *SPRITES], "there is no encoder 'no-such-run'"),
        (["nextvid-tiny", "--benchmark", "kinetics400:nowhere"], "nowhere"),
        (["nextvid-tiny", "--benchmark", "kinetics400"], "kinetics400"),
        (["nextvid-tiny", "--on", "folder", "--task", "digit"], "with --on leave them out"),
    ],
)
def test_wrong_input_is_said_and_nothing_is_written(
    nextvid: Nextvid, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
):
    assert nextvid("probe", *arguments) == 2
    said = capsys.readouterr()
    assert sentence in " ".join((said.err + said.out).split())
    assert not list(Path().iterdir())
