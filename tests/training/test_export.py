"""One file out of a run's checkpoint: nothing of it is lost, whoever wrote the checkpoint and whoever reads the file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import nano_recipe
from rich.console import Console
from safetensors.torch import load_file, save_file

import nextvid
from nextvid.cli import main
from nextvid.errors import UserError
from nextvid.settings import InitConfig
from nextvid.training import loop, release
from nextvid.training.checkpoint import read_part
from nextvid.training.export import export_run
from nextvid.training.release import load_objective, start_from
from nextvid.training.trainer import build_objective

QUIET = Console(quiet=True)
PARTS = {"online", "ema", "predictor", "decoder"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 8 and 12; the patches are read as cosines."""
    out = tmp_path_factory.mktemp("runs") / "first"
    encoder = {**nano_recipe().model_dump(mode="json")["encoder"], "input": "cosine"}
    loop.pretrain(nano_recipe(encoder=encoder), out, console=QUIET)
    return out


def exported(run: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return export_run(
        run, out, **{"step": None, "precision": "float32", "encoder_only": False, "console": QUIET, **changes}
    )


def test_there_and_back_to_the_bit(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "all.safetensors"
    found = exported(run, file)
    there, recipe = load_objective(run)
    objective = build_objective(recipe)
    report = start_from(objective, recipe, InitConfig(origin=str(file)))
    assert all(torch.equal(value, there.state_dict()[name]) for name, value in objective.state_dict().items())
    assert report.step == 12
    assert report.recipe_known
    assert load_objective(file)[1] == recipe
    assert found["bytes"] == file.stat().st_size
    assert found["parameters"].keys() == PARTS
    assert found["parameters"]["online"] == sum(p.numel() for p in there.encoder.parameters())
    assert sum(found["parameters"].values()) == sum(p.numel() for p in there.parameters())
    assert found["tensors"] == len(there.state_dict())


@pytest.mark.parametrize("encoder_only", [False, True])
@pytest.mark.parametrize("weights", ["ema", "online"])
def test_tokens_are_the_runs_own(run: Path, tmp_path: Path, weights: Any, encoder_only: bool) -> None:
    exported(run, tmp_path / "a.safetensors", encoder_only=encoder_only)
    frames = torch.rand(2, 4, 3, 16, 16)
    there, here = (nextvid.load(path, weights)(frames) for path in (run, tmp_path / "a.safetensors"))
    assert torch.equal(there, here)


def test_encoders_alone(run: Path, tmp_path: Path) -> None:
    whole, alone = (exported(run, tmp_path / "a.safetensors", encoder_only=only) for only in (False, True))
    assert alone["parameters"] == {part: whole["parameters"][part] for part in ("online", "ema")}
    assert {name.split(".")[0] for name in load_file(tmp_path / "a.safetensors")} == {"online", "ema"}
    recipe = load_objective(run)[1]
    with pytest.raises(UserError, match=r"it holds encoders only.*strict: false"):
        start_from(build_objective(recipe), recipe, InitConfig(origin=str(tmp_path / "a.safetensors")))
    report = start_from(
        build_objective(recipe), recipe, InitConfig(origin=str(tmp_path / "a.safetensors"), strict=False)
    )
    assert {name.split(".")[0] for name in report.weights.fitting} == {"encoder", "reference"}
    assert report.recipe_known
    assert report.measures


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_of_it(run: Path, tmp_path: Path, precision: Any) -> None:
    whole = exported(run, tmp_path / "whole.safetensors")
    half = exported(run, tmp_path / "half.safetensors", precision=precision)
    saved, there = load_file(tmp_path / "half.safetensors"), load_file(tmp_path / "whole.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {release.PRECISIONS[precision]}
    assert all(torch.equal(saved[name], there[name].to(saved[name].dtype)) for name in there)
    assert half["bytes"] < 0.7 * whole["bytes"]


def test_another_step(run: Path, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "a.safetensors", step=8)["step"] == 8
    saved, there = load_file(tmp_path / "a.safetensors"), read_part(run / "checkpoints/step_8")
    assert torch.equal(saved["online.norm.weight"], there["encoder.norm.weight"])
    assert nextvid.load(tmp_path / "a.safetensors").settings["step"] == 8
    with pytest.raises(UserError, match="no checkpoint of step 3; the steps there are: 8, 12"):
        exported(run, tmp_path / "a.safetensors", step=3)


def test_a_file_that_cannot_be_read_back_never_takes_its_place(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        save_file({name: tensors[name] for name in list(tensors)[1:]}, file, metadata=metadata)

    file = tmp_path / "a.safetensors"
    file.write_bytes(b"what was there")
    monkeypatch.setattr(release, "save_file", forgetful)
    with pytest.raises(UserError, match=r"was written and cannot be read back \(.* is missing\)"):
        exported(run, file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert file.read_bytes() == b"what was there"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"out": "a.pt"}, "the file is a safetensors file; call it .*a.safetensors"),
        ({"precision": "float61"}, r"--precision is one of float32, float16, bfloat16, not 'float61' \(did you mean"),
        ({"run": "nowhere"}, "there is no run's folder at .*nowhere"),
        ({"run": "empty"}, r"empty holds no recipe\.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_input(run: Path, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    where = tmp_path / changes.pop("run") if "run" in changes else run
    out = tmp_path / changes.pop("out", "a.safetensors")
    with pytest.raises(UserError, match=sentence):
        exported(where, out, **changes)
    assert not out.exists()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["nextvid", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_export_and_cool_down_on_the_command_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "a.safetensors", tmp_path / "cooled"
    assert command(monkeypatch, "export", run, "-o", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"].keys() == PARTS
    assert command(monkeypatch, "export", run, "-o", file) == 0
    printed = capsys.readouterr().out
    assert f"{file}:step12of{run}infloat32," in "".join(printed.split())
    assert all(part in printed for part in PARTS)
    cooling = ["pretrain", run / "recipe.yaml", "--stage", "second", f"init={file}", "--out", out, "stages.1.steps=1"]
    assert command(monkeypatch, *cooling, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["pretrain"] | {"steps": 1, "clips": 2} == json.loads(said.out)["pretrain"]
    assert f"startingfrom{file}(step12):" in "".join(said.err.split())
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert (row["step"], row["stage"]) == (1, "second")
    assert command(monkeypatch, *cooling[:3], "secnd", *cooling[4:]) == 2
    assert "no stage 'secnd' (did you mean 'second'?)" in " ".join(capsys.readouterr().err.split())
    assert command(monkeypatch, "export", "--help") == 0
    assert "Example: nextvid export" in " ".join(capsys.readouterr().out.split())
