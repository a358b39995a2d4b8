"""A run that draws in an autoencoder's latents: what it saves, what it relies on, and what it costs."""

import json
from pathlib import Path

import pytest
import torch
from nano import nano_recipe
from rich.console import Console

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.evaluation.generation import draw_next_frames, load_drawing
from nextvid.models.autoencoder import Autoencoder, AutoencoderConfig
from nextvid.planning.live import trace_of
from nextvid.planning.work import parts_of, skeleton
from nextvid.settings import InitConfig, StageConfig
from nextvid.targets.vae_file import latent_statistics, write_vae
from nextvid.training.checkpoint import tensor_shapes
from nextvid.training.compute import clip_flops
from nextvid.training.loop import pretrain
from nextvid.training.release import start_from
from nextvid.training.trainer import build_objective

QUIET = Console(quiet=True)
SMALL = AutoencoderConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), latent_channels=2, groups=4, fold=2)


def write_autoencoder(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = Autoencoder(SMALL)
    mean, std = latent_statistics(network, torch.rand(16, 3, 16, 16) * 2 - 1)
    write_vae(network.state_dict(), mean, std, SMALL, {"recipe": "small", "step": 0, "size": 16}, file)


def recipe_in(file: Path) -> Recipe:
    part = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}
    target = {"name": "vae", "weights": str(file)}
    return nano_recipe(objective={"name": "nextvid", "predictor": part, "decoder": part, "target": target})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, and beside it the autoencoder that it draws with."""
    path = tmp_path_factory.mktemp("target")
    write_autoencoder(path / "vae.safetensors", seed=0)
    pretrain(recipe_in(path / "vae.safetensors"), path / "run", 4, QUIET)
    return path


def test_checkpoints_hold_the_statistics_and_nothing_else_of_the_space(folder: Path) -> None:
    names = tensor_shapes(folder / "run/checkpoints/step_4")
    assert sorted(name for name in names if "target" in name) == ["model.target.mean", "model.target.std"]


def test_a_run_goes_on_with_the_weights_that_it_began_with_only(folder: Path) -> None:
    file = folder / "vae.safetensors"
    before = file.read_bytes()
    known = json.loads((folder / "run/relies_on.json").read_text())["checksums"]["objective.target"]
    write_autoencoder(file, seed=1)
    try:
        with pytest.raises(UserError, match=rf"objective\.target is not what .* began with: .* {known}"):
            pretrain(recipe_in(file), folder / "run", 5, QUIET)
    finally:
        file.write_bytes(before)
    pretrain(recipe_in(file), folder / "run", 5, QUIET)


def test_what_it_draws_has_the_frames_own_resolution(folder: Path) -> None:
    objective, recipe = load_drawing(folder / "run")
    assert (
        objective.target.channels == 2 * 2 * 2 * 2
    )  # two frames, two channels, a latent every 4 pixels of patches of 8
    clips = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    drawn = draw_next_frames(objective, clips, samples=2, progress=False)
    assert drawn.samples.shape == (2, 2, 2, 3, 16, 16)
    torch.testing.assert_close(drawn.truth, clips[:, 2:].float() / 255, rtol=0, atol=1e-2)
    assert recipe.objective.name == "nextvid"


def test_a_missing_file_is_named_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no autoencoder at .*nowhere"):
        pretrain(recipe_in(tmp_path / "nowhere.safetensors"), tmp_path / "run", 1, QUIET)
    assert not (tmp_path / "run").exists()


def test_plans_count_the_space(folder: Path) -> None:
    recipe = recipe_in(folder / "vae.safetensors")
    parts = parts_of(skeleton(recipe))
    assert parts["target"].trained == 0
    assert parts["target"].parameters == sum(p.numel() for p in Autoencoder(SMALL).parameters())
    assert parts["target"].bytes > 4 * parts["target"].parameters
    stage: StageConfig = recipe.stages[0]
    assert trace_of(recipe, stage, gradients=False, cpu=True).forward > 0
    (first, second) = clip_flops(recipe)
    assert (
        second.frozen["target"] == 2 * first.frozen["target"] > 0
    )  # 4 and 2 frames are encoded: the first two never are


def test_another_run_starts_from_it_wherever_the_same_autoencoder_lies(folder: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    moved.write_bytes((folder / "vae.safetensors").read_bytes())
    write_autoencoder(other, seed=2)
    for file in (moved, other):
        recipe = recipe_in(file).model_copy(update={"init": InitConfig(origin=str(folder / "run")), "seed": 1})
        objective = build_objective(recipe)
        if file == moved:
            assert start_from(objective, recipe, recipe.init).weights.complete
            continue
        with pytest.raises(UserError, match=r"was trained as another model than this recipe's: objective\.target: "):
            start_from(objective, recipe, recipe.init)
