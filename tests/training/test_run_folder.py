"""A run's folder: complete, resumable to the bit, and never written over by another run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nano import nano_recipe

import nextvid
from nextvid.config import save_recipe
from nextvid.errors import Stopped, UserError
from nextvid.training import loop
from nextvid.training.checkpoint import damage, each_tensor, list_checkpoints
from nextvid.training.trainer import Trainer


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


def assert_equal_runs(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    last = [dict(each_tensor(list_checkpoints(run / "checkpoints")[-1])) for run in (a, b)]
    assert last[0].keys() == last[1].keys()
    assert all(bool((last[0][key] == last[1][key]).all()) for key in last[0])
    assert (a / "encoder.safetensors").read_bytes() == (b / "encoder.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    loop.pretrain(nano_recipe(), out)
    return out


def test_the_folder_holds_what_is_promised(whole: Path) -> None:
    names = {p.name for p in whole.iterdir()}
    assert names >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "metrics.json", "checkpoints",
        "encoder.safetensors", "config.json", "tensorboard",
    }  # fmt: skip
    assert list((whole / "tensorboard").glob("events.*"))
    versions = {"environment.json": 1, "metrics.json": 1, "config.json": 1, "checkpoints/step_12/state.json": 2}
    for name, version in versions.items():
        assert json.loads((whole / name).read_text())["format_version"] == version
    assert yaml.safe_load((whole / "recipe.yaml").read_text())["version"] == 1
    figures = json.loads((whole / "metrics.json").read_text())["pretrain"]
    assert figures["steps"] == 12
    assert figures["clips"] == 6 * 3 + 6 * 2
    assert figures["clips_per_second"] == pytest.approx(figures["clips"] / figures["seconds"])


def test_rows_name_step_stage_losses_and_rates(whole: Path) -> None:
    found = rows(whole)
    assert [row["step"] for row in found] == [3, 6, 9, 12]
    assert [row["stage"] for row in found] == ["first", "first", "second", "second"]
    expected = {"loss", "flow", "alignment", "grad_norm", "feature_spread", "effective_rank", "alignment_skill"}
    assert all(expected <= row.keys() for row in found)
    assert found[1]["lr"] == {"encoder": 1e-3, "predictor": 1e-3, "decoder": 5e-4}
    assert found[0]["loss"] == pytest.approx(0.5 * found[0]["flow"] + found[0]["alignment"], rel=1e-5)


def test_the_checkpoints_kept_are_the_last_and_whole(whole: Path) -> None:
    kept = list_checkpoints(whole / "checkpoints")
    assert [p.name for p in kept] == ["step_8", "step_12"]
    assert all(damage(p) is None for p in kept)


@pytest.mark.parametrize("at", [1, 4, 7, 11])
def test_stopped_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path, at: int) -> None:
    loop.pretrain(nano_recipe(), tmp_path / "run", until=at)
    loop.pretrain(nano_recipe(), tmp_path / "run")
    assert_equal_runs(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step = loop.train_step

    def interrupted(trainer: Trainer, batch: Any) -> Any:
        if trainer.progress.step == 4:
            os.kill(os.getpid(), number)
        return step(trainer, batch)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(Stopped, match="after step 5"):
        loop.pretrain(nano_recipe(), tmp_path / "run")
    monkeypatch.undo()
    loop.pretrain(nano_recipe(), tmp_path / "run")
    assert_equal_runs(whole, tmp_path / "run")


@pytest.mark.slow
def test_killed_at_any_point_it_finishes_equal(whole: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "nano.yaml", tmp_path / "run"
    recipe.write_text(save_recipe(nano_recipe()))
    command = [sys.executable, "-m", "nextvid", "pretrain", str(recipe), "--out", str(out)]
    for wanted in ("recipe.yaml", "checkpoints/step_4", "checkpoints/step_8"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (out / wanted).exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert_equal_runs(whole, out)


def test_workers_change_nothing(whole: Path, tmp_path: Path) -> None:
    recipe = nano_recipe()
    with_workers = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 2})})
    loop.pretrain(with_workers, tmp_path / "run")
    assert_equal_runs(whole, tmp_path / "run")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    weights = run / "checkpoints" / "step_12" / "__0_0.distcp"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    loop.pretrain(nano_recipe(), run)
    assert "checksum of __0_0.distcp" in " ".join(capsys.readouterr().out.split())
    assert_equal_runs(whole, run)


def test_leftovers_of_a_save_cut_short_are_removed(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    half = run / "checkpoints" / ".step_16.1.tmp"
    half.mkdir()
    loop.pretrain(nano_recipe(), run)
    assert not half.exists()


def test_killed_between_checkpoint_and_export_the_encoder_is_written_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "encoder.safetensors").unlink()
    loop.pretrain(nano_recipe(), run)
    assert_equal_runs(whole, run)


def test_another_recipe_is_refused_and_nothing_written(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"seed: 0 → 7"):
        loop.pretrain(nano_recipe(seed=7), run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("dear diary")
    with pytest.raises(UserError, match="not empty and holds no run"):
        loop.pretrain(nano_recipe(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_checkpoint_of_another_architecture_is_refused(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    recipe = nano_recipe()
    wider = recipe.model_copy(update={"encoder": type(recipe.encoder)(**{**vars(recipe.encoder), "mlp_hidden": 64})})
    (run / "recipe.yaml").write_text(save_recipe(wider))
    with pytest.raises(UserError, match="another architecture"):
        loop.pretrain(wider, run)


def test_a_run_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, refused = loop.train_step, []

    def second_run(trainer: Trainer, batch: Any) -> Any:
        if trainer.progress.step == 0:
            with pytest.raises(UserError, match="in use"):
                loop.pretrain(nano_recipe(), tmp_path / "run")
            refused.append(True)
        return step(trainer, batch)

    monkeypatch.setattr(loop, "train_step", second_run)
    loop.pretrain(nano_recipe(), tmp_path / "run", until=1)
    assert refused


def test_lr_of_an_unknown_part_is_refused(tmp_path: Path) -> None:
    stage = nano_recipe().model_dump()["stages"][0]
    with pytest.raises(UserError, match="needs exactly encoder, predictor, decoder"):
        loop.pretrain(nano_recipe(stages=[{**stage, "lr": {"encoder": 1e-3}}]), tmp_path / "run")


def test_the_encoder_of_a_run_loads(whole: Path) -> None:
    encoder = nextvid.load(whole)
    frames = torch.randint(0, 256, (2, 6, 3, 16, 16), dtype=torch.uint8)
    tokens = encoder(frames)
    assert tokens.shape == (2, 3, 4, 24)
    stream = encoder.stream(window=8)
    pushed = torch.cat([stream.push(frames[:, i : i + 2]) for i in (0, 2, 4)], dim=1)
    torch.testing.assert_close(pushed, tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [({"flow": 0, "alignment": 0}, "nothing to learn from"), ({"flwo": 1}, "did you mean 'flow'")],
)
def test_impossible_loss_weights_are_refused_before_anything_is_written(
    tmp_path: Path, weights: dict[str, float], sentence: str
) -> None:
    stage = nano_recipe().model_dump()["stages"][1]
    with pytest.raises(UserError, match=sentence):
        loop.pretrain(nano_recipe(stages=[{**stage, "weights": weights}]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_footage_leaves_no_folder_behind(tmp_path: Path) -> None:
    data = {"sources": [{"path": str(tmp_path / "nowhere")}]}
    with pytest.raises(UserError, match="no footage at"):
        loop.pretrain(nano_recipe(data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
