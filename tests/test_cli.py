"""The command line: exit codes, sentences, and JSON that stands alone on standard output."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nextvid.cli import main

PART = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}
RECIPE: dict[str, Any] = {
    "encoder": {**PART, "patch": 8},
    "objective": {"name": "nextvid", "predictor": PART, "decoder": PART},
    "data": {"sources": [{"builtin": "moving-sprites", "level": "plain"}], "workers": 0},
    "stages": [
        {
            "name": "only", "steps": 2, "batch": 2, "frames": 4, "fps": 6, "size": 16,
            "lr": {"encoder": 1e-3, "predictor": 1e-3, "decoder": 1e-3},
        }
    ],
    "training": {"threads": 1},
}  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of ``nextvid`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["nextvid", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "nano.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


def test_pretrain_then_probe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(monkeypatch, "pretrain", recipe, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pretrain"]["steps"] == 2
    assert (out / "report.html").read_text().count("data:image/png") > 6
    clips = ["--level", "plain", "--train-clips", 160, "--test-clips", 80]
    options = ["--benchmark", "moving-sprites", *clips, "epochs=3", "readers=[linear]", "--json"]
    assert run(monkeypatch, "probe", out, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"benchmark": "moving-sprites", "level": "plain", "task": "motion", "classes": 16}.items() <= found.items()
    assert found["test_clips"] == 80
    scores = [found, *found["baselines"].values()]
    assert all(low <= score["top1"] <= high for score in scores for low, high in [score["ci95"]])
    assert {"random_init", "pixels", "middle_frame"} <= found["baselines"].keys()
    assert json.loads((out / "probe_moving-sprites_plain_motion_ema.json").read_text()) == found


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("encoder.widht=32", "did you mean 'width'?"),
        ("stages.0.frames=5", "frames=5 is not a multiple of the tubelet of 2 frames; try frames=4"),
        ("stages.0.size=20", "size=20 pixels is not a multiple of the patch of 8 pixels"),
        ("data.sources=[{path: nowhere_at_all}]", "no footage at nowhere_at_all"),
        ("data.sources=[{builtin: filn}]", "did you mean 'film'?"),
        ("training.device=cuda:x", "training.device"),
    ],
)
def test_wrong_input_is_a_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: Path,
    tmp_path: Path,
    override: str,
    sentence: str,
) -> None:
    assert run(monkeypatch, "pretrain", recipe, override, "--out", tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_folder_without_footage_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    source = f"data.sources=[{{path: '{empty}'}}]"
    assert run(monkeypatch, "pretrain", recipe, source, "--out", tmp_path / "run") == 2
    assert "empty" in capsys.readouterr().err


def test_two_runs_of_one_cost_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    other = tmp_path / "control.yaml"
    stage = {**RECIPE["stages"][0], "lr": {"encoder": 1e-3, "decoder": 1e-3}}
    other.write_text(yaml.safe_dump({**RECIPE, "objective": {"name": "videomae", "decoder": PART}, "stages": [stage]}))
    runs = [tmp_path / "ours", tmp_path / "control"]
    assert run(monkeypatch, "pretrain", recipe, "--out", runs[0]) == 0
    assert run(monkeypatch, "pretrain", other, "--flops-of", runs[0], "--out", runs[1]) == 0
    capsys.readouterr()
    assert run(monkeypatch, "compare", *runs, "--out", tmp_path / "page.html", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["runs"]] == ["ours", "control"]
    assert found["runs"][1]["compute"] == pytest.approx(1, abs=0.3)
    assert found["runs"][1]["steps"] > 2
    assert (tmp_path / "page.html").is_file()
    assert run(monkeypatch, "compare", runs[0]) == 2


@pytest.mark.slow
def test_doctor_ends_with_1_where_a_run_is_unsound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(monkeypatch, "pretrain", recipe, "--out", out) == 0
    assert run(monkeypatch, "doctor", out) == 0
    (out / "encoder.safetensors").write_bytes(b"nonsense")
    capsys.readouterr()
    assert run(monkeypatch, "doctor", out, "--json") == 1
    checks = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["encoder"] == "wrong"
    assert run(monkeypatch, "doctor", tmp_path / "nowhere") == 2


def test_a_step_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "step.json"
    assert run(monkeypatch, "bench", "step", recipe, "--steps", 1, "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert {"encoder", "reference", "predictor", "decoder", "backward"} <= found["parts"].keys()


@pytest.mark.parametrize("verb", ["pretrain", "probe", "demo", "generate", "compare", "doctor", "bench step"])
def test_every_verb_helps_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert run(monkeypatch, *verb.split(), "--help") == 0
    assert f"Example: nextvid {verb}" in " ".join(capsys.readouterr().out.split())
