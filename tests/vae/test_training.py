"""``nextvid vae train``: it resumes as if it had not been stopped, and leaves what its users need."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_losses import recipe

from nextvid.data.film import load_film
from nextvid.errors import UserError
from nextvid.settings import SourceConfig
from nextvid.targets.vae import VaeConfig
from nextvid.targets.vae_file import read_vae_config
from nextvid.training.checkpoint import read_part
from nextvid.training.footage import SourceOpener
from nextvid.vae.config import VAE_RECIPES, load_vae_recipe
from nextvid.vae.evaluation import Judge
from nextvid.vae.loop import train_vae
from nextvid.vae.trainer import learning_rate, plan_of

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one go: three steps without, three with the adversary."""
    out = tmp_path_factory.mktemp("vae") / "whole"
    train_vae(recipe(), out, console=QUIET)
    return out


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    for steps in (3, 5, None):
        train_vae(recipe(), tmp_path / "parts", steps, QUIET)
    here, there = (read_part(run / "checkpoints" / "step_6", "") for run in (tmp_path / "parts", whole))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    kept = {"psnr"}  # of the checkpoints that this one saved and the other did not
    for one, other in zip(rows(tmp_path / "parts"), rows(whole), strict=True):
        assert {k: v for k, v in one.items() if k not in kept} == {k: v for k, v in other.items() if k not in kept}


def test_the_adversary_comes_in_at_its_step(whole: Path) -> None:
    assert ["adversarial" in row for row in rows(whole)] == [False, True, True]


def test_the_folder_holds_what_is_promised(whole: Path) -> None:
    left = {path.name for path in whole.iterdir()}
    assert left >= {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.json",
        "checkpoints",
        "vae.safetensors",
    }
    assert left >= {"report.html", "reconstructions.png", "tensorboard"}
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["vae"]["steps"] == 6
    assert metrics["reconstruction"].keys() >= {"psnr", "ssim", "frechet", "pictures", "held_out", "sharpness"}
    page = (whole / "report.html").read_text()
    assert "PSNR" in page
    assert "<svg" in page
    assert "data:image/png" in page


def test_its_file_is_a_target_space_whose_latents_are_normalised(whole: Path) -> None:
    config, facts = read_vae_config(whole / "vae.safetensors")
    assert (config.latent_channels, facts["step"]) == (3, 6)
    space = VaeConfig(weights=str(whole)).build(4, 2)
    chosen = recipe()
    opener = SourceOpener(chosen.data, 1, None, QUIET)
    known = Judge.of(chosen, opener, opener.mixture(chosen.data.sources, chosen.seed)).known
    latents = space.encode(known[:, None].expand(-1, 2, -1, -1, -1).float() / 127.5 - 1)
    values = latents[..., :3].flatten(0, 2)
    torch.testing.assert_close(values.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(values.std(0), torch.ones(3), rtol=0, atol=1e-3)


def test_held_out_film_is_its_last_quarter() -> None:
    chosen = recipe(held_out=[{"builtin": "film"}], data={"sources": [{"builtin": "film"}], "workers": 0})
    opener = SourceOpener(chosen.data, 1, None, QUIET)
    held = opener.mixture(chosen.held_out, chosen.seed, "test")
    film = load_film()
    assert all(shot.start >= 0.75 * len(film.frames) for shot in film.shots("test"))
    (source,) = held.sources
    assert getattr(source, "split", None) == "test"
    with pytest.raises(UserError, match="is for probes"):
        opener.mixture([SourceConfig(builtin="moving-sprites")], 0, "test")


def test_figures_say_where_nothing_was_held_out(whole: Path) -> None:
    assert json.loads((whole / "metrics.json").read_text())["reconstruction"]["held_out"] is False
    assert "the recipe holds nothing out" in (whole / "report.html").read_text()


def test_another_recipe_in_the_folder_is_refused(whole: Path) -> None:
    with pytest.raises(UserError, match="belongs to another recipe"):
        train_vae(recipe(seed=5), whole, console=QUIET)


def test_the_rate_rises_and_falls_to_its_end() -> None:
    chosen = recipe(steps=100, training={"lr": 1e-3, "final_lr": 1e-5, "warmup": 10, "checkpoint_every": 50})
    rates = [learning_rate(chosen, step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 2e-5


def test_no_clip_comes_twice() -> None:
    plans = [plan_of(recipe(), step) for step in range(4)]
    assert [plan.first_number for plan in plans] == [0, 4, 8, 12]


@pytest.mark.parametrize("file", sorted(VAE_RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_recipes_are_sound(file: Path) -> None:
    chosen = load_vae_recipe(file.stem)
    assert chosen.name == file.stem


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("losses.perceptul=1", r"unknown key 'losses\.perceptul'.*perceptual"),
        ("size=30", r"size=30 pixels is not a multiple of the 4 pixels of a latent .*try size=32"),
        ("model.groups=7", "width=96 is not a multiple of groups=7"),
        ("model.attention=[3]", r"attention=\[3\]: the levels are 0 to 0"),
        ("losses.alignment.network=nowhere", None),
    ],
)
def test_what_is_wrong_is_said_at_once(override: str, said: str | None, tmp_path: Path) -> None:
    if said is not None:
        with pytest.raises(UserError, match=said):
            load_vae_recipe("film", [override])
        return
    with pytest.raises(UserError, match="nowhere"):
        train_vae(load_vae_recipe("film", [override]), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
