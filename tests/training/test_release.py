"""A released objective: small, loadable by name, and something to go on from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nano import nano_recipe
from safetensors.torch import load_file, save_file

import nextvid
from nextvid.config import parse_recipe
from nextvid.errors import UserError
from nextvid.inference import released
from nextvid.settings import InitConfig
from nextvid.training import loop
from nextvid.training.checkpoint import read_part
from nextvid.training.release import load_objective, released_tensors, start_from, write_release
from nextvid.training.trainer import build_trainer


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
    fresh = build_trainer(nano_recipe()).objective.state_dict()
    recipe = nano_recipe(init="nano")
    trainer = build_trainer(recipe)
    start_from(trainer.objective, recipe, InitConfig(origin="nano"))
    for key, value in start.state_dict().items():
        assert torch.equal(trainer.objective.state_dict()[key], value)
    # The encoder's rate is 0 at the first step, so a run that started from these weights still has them to the bit.
    moved = read_part(out / "checkpoints" / "step_1")
    unmoved = [key for key in moved if key.startswith(("encoder.", "target."))]
    assert all(torch.equal(moved[key], start.state_dict()[key]) for key in unmoved)
    assert not torch.equal(moved["encoder.patch_embed.weight"], fresh["encoder.patch_embed.weight"])


def test_a_released_file_can_be_moved_and_still_be_a_start(release: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((release / released.WEIGHTS).read_bytes())
    recipe = nano_recipe()
    objective = build_trainer(recipe).objective
    start_from(objective, recipe, InitConfig(origin=str(alone)))
    assert torch.equal(objective.state_dict()["target.std"], load_objective("nano")[0].state_dict()["target.std"])


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": {"input": "cosine"}}, "encoder.input: pixels → cosine"),
        ({"encoder": {"heads": 4}}, "encoder.heads: 2 → 4"),
        ({"encoder": {"attention": "full"}}, "encoder.attention: frame_causal → full"),
        ({"objective": {"prediction": "clean"}}, "objective.prediction: velocity → clean"),
        ({"objective": {"generation": "regression"}}, "objective.generation: flow → regression"),
        ({"objective": {"target": {"downsample": 2, "basis": "dct"}}}, "objective.target.whiten: 0.5 → 1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_of_another_computation_are_refused_though_they_fit(change: dict[str, Any], named: str) -> None:
    raw = nano_recipe().model_dump(mode="json")
    other = parse_recipe({**raw, **{part: {**raw[part], **keys} for part, keys in change.items()}}, "other")
    with pytest.raises(UserError, match="trained as another model") as caught:
        start_from(build_trainer(other).objective, other, InitConfig(origin="nano"))
    assert named in str(caught.value)


def test_a_run_starts_from_another_runs_folder_to_the_bit(run: Path, tmp_path: Path) -> None:
    recipe = nano_recipe(seed=5)
    trainer = build_trainer(recipe)
    start_from(trainer.objective, recipe, InitConfig(origin=str(run)))
    there, _ = load_objective(run)
    assert all(torch.equal(there.state_dict()[key], value) for key, value in trainer.objective.state_dict().items())


def test_a_resumed_run_does_not_start_again(run: Path, tmp_path: Path) -> None:
    recipe = nano_recipe(init=str(run))
    loop.pretrain(recipe, tmp_path / "whole")
    loop.pretrain(recipe, tmp_path / "parts", until=7)
    loop.pretrain(recipe, tmp_path / "parts")
    whole, parts = (read_part(tmp_path / name / "checkpoints/step_12") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.usefixtures("release")
def test_what_cannot_be_a_start_is_named(run: Path, tmp_path: Path) -> None:
    recipe = nano_recipe()
    objective = build_trainer(recipe).objective
    with pytest.raises(UserError, match="no such run or file; released encoders: nano"):
        start_from(objective, recipe, InitConfig(origin="nanno"))
    with pytest.raises(UserError, match="encoders only"):
        start_from(objective, recipe, InitConfig(origin=str(run / "encoder.safetensors")))
    with pytest.raises(UserError, match="no whole checkpoint"):
        start_from(objective, recipe, InitConfig(origin=str(tmp_path)))
    wider = nano_recipe(encoder={"width": 48, "depth": 1, "heads": 2, "mlp_hidden": 48, "patch": 8})
    with pytest.raises(UserError, match=r"another model .*encoder\.width: 24 → 48"):
        start_from(build_trainer(wider).objective, wider, InitConfig(origin="nano"))
    with pytest.raises(UserError, match=r"no released encoder 'nanoo' \(did you mean 'nano'\?\)"):
        released.find_released("nanoo")


def test_a_released_file_is_an_objective(run: Path, release: Path) -> None:
    objective, recipe = load_objective(release / released.WEIGHTS)
    assert recipe == load_objective(run)[1]
    assert torch.equal(objective.state_dict()["target.std"], load_objective("nano")[0].state_dict()["target.std"])


def test_numbers_that_half_precision_has_not_are_refused(run: Path, tmp_path: Path) -> None:
    objective, recipe = load_objective(run)
    with torch.no_grad():
        objective.encoder.norm.weight[3] = 1e6
    with pytest.raises(
        UserError, match=r"online\.norm\.weight has numbers that are too large for float16; use bfloat16"
    ):
        write_release(objective, recipe, 12, tmp_path / "weights.safetensors")
    write_release(objective, recipe, 12, tmp_path / "weights.safetensors", "bfloat16")
    there, _ = load_objective(tmp_path / "weights.safetensors")
    assert there.encoder.norm.weight[3].item() == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"recipe": "[1, 2"}, "is not valid YAML"),
        ({"recipe": "just words"}, "is no mapping"),
        ({"recipe": "name: only"}, "the key 'encoder' is missing"),
        ({"config": "{"}, "the configuration in .* cannot be read"),
        ({"config": "[]"}, "the configuration in .* cannot be read"),
    ],
)
def test_what_somebodys_file_says_of_itself_is_checked(
    run: Path, tmp_path: Path, metadata: dict[str, str], sentence: str
) -> None:
    objective, recipe = load_objective(run)
    save_file(objective.state_dict(), tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=sentence):
        start_from(objective, recipe, InitConfig(origin=str(tmp_path / "other.safetensors")))


def test_a_wrong_init_stops_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run or file"):
        loop.pretrain(nano_recipe(init="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_tensors_of_a_release_are_the_objectives_own(run: Path) -> None:
    objective, _ = load_objective(run)
    state = objective.state_dict()
    tensors = released_tensors(objective, state)
    assert torch.equal(tensors["online.norm.weight"], state["encoder.norm.weight"])
    assert torch.equal(tensors["ema.norm.weight"], state["reference.norm.weight"])
    assert len(tensors) == len(state)
