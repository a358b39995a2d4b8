"""The encoder that comes with the project: what a fresh clone promises of it."""

import json

import pytest
import torch

import nextvid
from nextvid.config import load_recipe
from nextvid.inference.released import find_released
from nextvid.settings import InitConfig
from nextvid.training.release import start_from
from nextvid.training.trainer import build_trainer

NAME = "nextvid-tiny"
FOLDER = find_released(NAME).parent


def test_it_encodes_streams_and_was_trained_to_its_end() -> None:
    encoder = nextvid.load(NAME)
    frames = torch.randint(0, 256, (1, 8, 3, 32, 32), dtype=torch.uint8)
    tokens = encoder(frames)
    assert tokens.shape == (1, 4, (32 // encoder.encoder.config.patch) ** 2, encoder.width)
    stream = encoder.stream()
    pushed = torch.cat([stream.push(frames[:, i : i + 2]) for i in range(0, 8, 2)], dim=1)
    torch.testing.assert_close(pushed, tokens, rtol=1e-4, atol=1e-4)
    assert encoder.settings["step"] == load_recipe(NAME).steps


def test_its_recipe_is_the_one_in_the_project() -> None:
    assert load_recipe(FOLDER / "recipe.yaml") == load_recipe(NAME)


def test_its_log_reaches_the_last_step() -> None:
    rows = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == load_recipe(NAME).steps


@pytest.mark.parametrize("recipe", ["tiny", "adapt", NAME])
def test_packaged_recipes_of_its_shape_start_from_it(recipe: str) -> None:
    chosen = load_recipe(recipe)
    objective = build_trainer(chosen).objective
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    start_from(objective, chosen, InitConfig(origin=NAME))
    changed = [key for key, value in objective.state_dict().items() if not torch.equal(value, before[key])]
    assert {key.split(".")[0] for key in changed} == {"encoder", "reference", "predictor", "decoder", "target"}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("probe_*.json")), ids=lambda file: file.stem)
def test_its_committed_scores_stand_apart_from_an_untrained_encoder(file) -> None:
    found = json.loads(file.read_text())
    assert found["step"] == load_recipe(NAME).steps
    assert found["ci95"][0] > found["baselines"]["random_init"]["ci95"][1]


def test_its_committed_drawings_beat_copying_the_last_frame() -> None:
    found = json.loads((FOLDER / "generation.json").read_text())
    assert found["step"] == load_recipe(NAME).steps
    assert found["next_frame"]["psnr"] > found["copy_last"]["psnr"]
