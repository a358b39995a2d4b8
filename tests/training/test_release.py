"""A released objective: small, loadable by name, and something to go on from."""

from pathlib import Path

import pytest
import torch
from nano import nano_recipe
from safetensors.torch import load_file

import nextvid
from nextvid.errors import UserError
from nextvid.inference import released
from nextvid.training import loop
from nextvid.training.release import load_objective, released_tensors, start_from, write_release


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    loop.pretrain(nano_recipe(), out)
    return out


@pytest.fixture
def release(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run under the name ``nano``."""
    objective, recipe = load_objective(run)
    folder = tmp_path / "releases" / "nano"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    write_release(objective, recipe, 12, folder / released.WEIGHTS)
    monkeypatch.setattr(released, "RELEASES", tmp_path / "releases")
    return folder


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize("weights", ["ema", "online"])
def test_a_released_encoder_is_loaded_by_name(run: Path, weights: str) -> None:
    frames = torch.rand(1, 4, 3, 16, 16)
    by_name, by_path = (nextvid.load(origin, weights=weights) for origin in ("nano", run))
    torch.testing.assert_close(by_name(frames), by_path(frames), rtol=0.02, atol=0.02)
    assert by_name.settings["step"] == 12


def test_a_release_holds_every_part_in_half_precision(run: Path, release: Path) -> None:
    objective, _ = load_objective(run)
    saved = load_file(release / released.WEIGHTS)
    assert {key.split(".")[0] for key in saved} == {"ema", "online", "predictor", "decoder", "target"}
    assert sum(t.numel() for t in saved.values()) == sum(t.numel() for t in objective.state_dict().values())
    assert all(t.dtype == torch.float16 for t in saved.values())


def test_a_run_starts_from_a_release_with_all_of_its_parts(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapted"
    loop.pretrain(nano_recipe(init="nano"), out, until=1)
    start, _ = load_objective("nano")
    trainer = loop.build_trainer(nano_recipe(init="nano"))
    start_from(trainer.objective, "nano")
    for key, value in start.state_dict().items():
        assert torch.equal(trainer.objective.state_dict()[key], value)
    moved = load_file(out / "checkpoints" / "step_1" / "model.safetensors")
    assert torch.equal(moved["target.mean"], start.state_dict()["target.mean"])
    assert (moved["encoder.norm.weight"] - start.state_dict()["encoder.norm.weight"]).abs().max() < 0.01


def test_a_run_starts_from_another_runs_folder_to_the_bit(run: Path, tmp_path: Path) -> None:
    trainer = loop.build_trainer(nano_recipe(seed=5))
    start_from(trainer.objective, str(run))
    there, _ = load_objective(run)
    assert all(torch.equal(there.state_dict()[key], value) for key, value in trainer.objective.state_dict().items())


def test_a_resumed_run_does_not_start_again(run: Path, tmp_path: Path) -> None:
    recipe = nano_recipe(init=str(run))
    loop.pretrain(recipe, tmp_path / "whole")
    loop.pretrain(recipe, tmp_path / "parts", until=7)
    loop.pretrain(recipe, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "checkpoints/step_12/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.usefixtures("release")
def test_what_cannot_be_a_start_is_named(run: Path, tmp_path: Path) -> None:
    objective = loop.build_trainer(nano_recipe()).objective
    with pytest.raises(UserError, match="no such run or file; released encoders: nano"):
        start_from(objective, "nanno")
    with pytest.raises(UserError, match="encoders only"):
        start_from(objective, str(run / "encoder.safetensors"))
    with pytest.raises(UserError, match="no whole checkpoint"):
        start_from(objective, str(tmp_path))
    wider = nano_recipe(encoder={"width": 48, "depth": 1, "heads": 2, "mlp_hidden": 48, "patch": 8})
    with pytest.raises(UserError, match="another architecture"):
        start_from(loop.build_trainer(wider).objective, "nano")
    with pytest.raises(UserError, match=r"no released encoder 'nanoo' \(did you mean 'nano'\?\)"):
        released.find_released("nanoo")


def test_a_wrong_init_stops_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run or file"):
        loop.pretrain(nano_recipe(init="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_tensors_of_a_release_are_the_objectives_own(run: Path) -> None:
    objective, _ = load_objective(run)
    tensors = released_tensors(objective)
    state = objective.state_dict()
    assert torch.equal(tensors["online.norm.weight"], state["encoder.norm.weight"])
    assert torch.equal(tensors["ema.norm.weight"], state["reference.norm.weight"])
    assert len(tensors) == len(state)
