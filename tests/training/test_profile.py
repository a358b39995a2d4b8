"""Where a step's time goes: parts that add up, operations that are the recipe's, and a step that is a step."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import nano_recipe
from rich.console import Console
from torch import nn

from nextvid.errors import UserError
from nextvid.training import profile
from nextvid.training.clock import Clock
from nextvid.training.compute import clip_flops
from nextvid.training.profile import profile_step, table_of

QUIET = Console(quiet=True)
CPU = torch.device("cpu")


class Sleeper(nn.Module):
    def forward(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


def test_a_clock_sums_what_happens_inside_its_parts() -> None:
    clock, model = Clock(CPU), nn.Sequential()
    model.add_module("slow", Sleeper())
    with clock.watching(model), clock.part("both"):
        model.slow(0.02)
        model.slow(0.03)
    before = clock.seconds["slow"]
    model.slow(0.01)
    assert clock.seconds["slow"] == before
    assert 0.05 <= clock.seconds["slow"] <= clock.seconds["both"]


def test_a_part_that_fails_is_counted_too() -> None:
    clock = Clock(CPU)
    with contextlib.suppress(ZeroDivisionError), clock.part("broken"):
        time.sleep(0.01)
        _ = 1 / 0
    assert clock.seconds["broken"] >= 0.01


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("profile") / "step.json"
    profile_step(nano_recipe(), 4, "second", QUIET, file)
    return file


def test_parts_are_the_methods_own_and_add_up(out: Path) -> None:
    found = json.loads(out.read_text())
    own = {"encoder", "reference", "predictor", "decoder"}
    assert set(found["parts"]) == {"data wait", *own, "rest of forward", "backward", "optimiser", "EMA"}
    assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1)
    assert all(part["seconds"] >= 0 for part in found["parts"].values())
    low, _, high = found["step_seconds_quartiles"]
    assert low <= found["step_seconds"] <= high


def test_operations_are_the_recipes(out: Path) -> None:
    found, recipe = json.loads(out.read_text()), nano_recipe()
    flops, batch = clip_flops(recipe)[1], recipe.stages[1].batch
    assert (found["stage"], found["batch"]) == ("second", batch)
    assert found["step_flops"] == flops.step * batch
    forward = {name: part["flops"] for name, part in found["parts"].items() if name in flops.forward}
    assert forward == {name: count * batch for name, count in flops.forward.items()}
    assert found["parts"]["backward"]["flops"] == found["step_flops"] - sum(forward.values())
    assert found["share_of_peak"] == pytest.approx(
        found["step_flops"] / found["step_seconds"] / found["peak_flops_per_second"]
    )
    assert 0 < found["share_of_peak"] < 1
    assert found["clips_per_second"] == pytest.approx(batch / found["step_seconds"])


def test_clips_are_new_in_every_step_and_all_losses_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    step = profile.train_step

    def watched(trainer: Any, batch: Any, clock: Any = None) -> Any:
        seen.append(batch.keys)
        return step(trainer, batch, clock)

    monkeypatch.setattr(profile, "train_step", watched)
    raw = nano_recipe().model_dump(mode="json")
    stages = [{**stage, "weights": {"flow": [0, 1], "alignment": [1, 0]}} for stage in raw["stages"]]
    found = profile_step(nano_recipe(stages=stages), 2, None, QUIET)
    assert len({key for keys in seen for key in keys}) == 3 * (profile.WARM_UP + 2 * 2)
    assert found["parts"]["decoder"]["seconds"] > 0


def test_files_of_another_run_are_not_taken_for_this_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "footage.json").write_text('{"somewhere": {}}')
    monkeypatch.chdir(tmp_path)
    source = {"sources": [{"path": "somewhere"}], "workers": 0}
    with pytest.raises(UserError, match="no footage at somewhere"):
        profile_step(nano_recipe(data=source), 1, None, QUIET)


def test_the_table_has_a_row_a_part(out: Path) -> None:
    found = json.loads(out.read_text())
    assert list(table_of(found).columns[0].cells) == list(found["parts"])


def test_by_default_the_longest_stage_and_an_unknown_one_is_named() -> None:
    assert profile_step(nano_recipe(), 1, None, QUIET)["stage"] == "first"
    with pytest.raises(UserError, match=r"has no stage 'secnd' \(did you mean 'second'\?\); it has first, second"):
        profile_step(nano_recipe(), 1, "secnd", QUIET)
