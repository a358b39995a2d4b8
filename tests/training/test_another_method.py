"""A run of another method is as safe as one of NExT-Vid: resumable to the bit, loadable, releasable, never mistaken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import nano_recipe
from rich.console import Console
from test_run_folder import assert_equal_runs

import nextvid
from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.evaluation.show import report_run
from nextvid.settings import InitConfig
from nextvid.training.loop import pretrain
from nextvid.training.release import load_objective, start_from, write_release

QUIET = Console(quiet=True)
PART = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}


def videomae_recipe(**changes: Any) -> Recipe:
    stage = {"frames": 4, "batch": 3, "fps": 6, "size": 16, "steps": 6, "masks": [{"ratio": 0.5}]}
    stages = [{"name": name, **stage, "lr": {"encoder": 1e-3, "decoder": [1e-3, 0]}} for name in ("first", "second")]
    encoder = {**PART, "patch": 4, "attention": "full", "positions": "sincos"}
    return nano_recipe(encoder=encoder, objective={"name": "videomae", "decoder": PART}, stages=stages, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(videomae_recipe(), out, console=QUIET)
    return out


@pytest.mark.parametrize("stop", [1, 7])
def test_stopped_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path, stop: int) -> None:
    pretrain(videomae_recipe(), tmp_path / "run", until=stop, console=QUIET)
    pretrain(videomae_recipe(), tmp_path / "run", console=QUIET)
    assert_equal_runs(whole, tmp_path / "run")


def test_the_encoder_that_there_is_is_loaded(whole: Path) -> None:
    encoder = nextvid.load(whole)
    assert (encoder.settings["weights"], encoder.settings["loaded"]) == (["online"], "online")
    assert encoder(torch.rand(2, 6, 3, 24, 24)).shape == (2, 3, 36, 24)
    with pytest.raises(UserError, match="has no 'ema' weights; it has online"):
        nextvid.load(whole, weights="ema")


def test_its_rows_have_its_own_losses(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    own = {"reconstruction", "reconstruction_skill", "feature_spread", "effective_rank", "grad_norm", "lr"}
    assert all(own <= set(row) and "alignment" not in row for row in rows)
    assert set(rows[0]["lr"]) == {"encoder", "decoder"}


def test_its_page_shows_what_it_fills_in(whole: Path) -> None:
    page = report_run(whole, QUIET).read_text()
    assert "what it fills in" in page
    assert page.count("data:image/png") == 12
    assert "Roll-out" not in page


def test_a_release_and_back(whole: Path, tmp_path: Path) -> None:
    objective, recipe = load_objective(whole)
    write_release(objective, recipe, 12, tmp_path / "weights.safetensors")
    again = recipe.objective.build(recipe.encoder)
    start_from(again, recipe, InitConfig(origin=str(tmp_path / "weights.safetensors")))
    for key, value in again.state_dict().items():
        torch.testing.assert_close(value, objective.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_weights_of_one_method_do_not_start_another(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.name: videomae → nextvid"):
        pretrain(nano_recipe(init=str(whole)), tmp_path / "run", console=QUIET)


def test_keys_of_another_method_are_refused() -> None:
    stages = [{**stage.model_dump(mode="json"), "ema": 0.99} for stage in videomae_recipe().stages]
    with pytest.raises(UserError, match=r"stages\[0\] \('first'\): objective 'videomae' has no ema; leave it out"):
        videomae_recipe_with(stages)


def videomae_recipe_with(stages: list[dict[str, Any]]) -> Recipe:
    raw = videomae_recipe().model_dump(mode="json")
    return nano_recipe(encoder=raw["encoder"], objective=raw["objective"], stages=stages)


@pytest.mark.parametrize("mask", [{"blocks": 0}, {"ratio": 0}, {"ratio": 0.05}])
def test_a_mask_that_hides_nothing_leaves_nothing_to_learn(mask: dict[str, Any]) -> None:
    stages = [{**stage.model_dump(mode="json"), "masks": [mask]} for stage in videomae_recipe().stages]
    with pytest.raises(UserError, match=r"masks\[0\] hides none of the 4x4 places, so there is nothing to fill in"):
        videomae_recipe_with(stages)


@pytest.mark.slow
def test_a_run_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    """Its stored recipe does not say what there was no setting for."""
    pretrain(nano_recipe(), tmp_path / "old", until=4, console=QUIET)
    stored = tmp_path / "old" / "recipe.yaml"
    lines = [line for line in stored.read_text().splitlines(True) if "positions:" not in line]
    assert len(lines) < len(stored.read_text().splitlines())
    stored.write_text("".join(lines))
    pretrain(nano_recipe(), tmp_path / "old", console=QUIET)
    pretrain(nano_recipe(), tmp_path / "new", console=QUIET)
    assert_equal_runs(tmp_path / "old", tmp_path / "new")
    encoder = {**nano_recipe().model_dump(mode="json")["encoder"], "positions": "sincos"}
    with pytest.raises(UserError, match=r"belongs to another recipe \(encoder\.positions: rope → sincos\)"):
        pretrain(nano_recipe(encoder=encoder), tmp_path / "old", console=QUIET)
