"""Runs that skipped steps, went back, or went on with another recipe: each is said, and no check is misled by it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextvid.config import load_recipe
from nextvid.doctor import Check, examine_run
from nextvid.errors import UserError
from nextvid.training import loop
from nextvid.training.rollback import Rollback, write_rollbacks

Diagnose = Callable[[Path, str], Check]
EditRows = Callable[[Path, Callable[[int, dict[str, Any]], object]], None]


def test_rates_of_a_run_that_went_back_are_the_recipes_times_what_is_left(
    run: Path, diagnose: Diagnose, edit_rows: EditRows
) -> None:
    def halve(_: int, row: dict[str, Any]) -> None:
        if row["step"] > 16:
            row["lr"] = {part: rate / 2 for part, rate in row["lr"].items()}

    edit_rows(run, halve)
    assert "step 17: encoder 0.0005, not 0.001" in diagnose(run, "learning rates").found
    write_rollbacks(run, [Rollback(step=19, to=16, scale=0.5)])
    check = diagnose(run, "learning rates")
    assert check.state == "ok"
    assert "the recipe's times 0.5" in check.found
    write_rollbacks(run, [Rollback(step=19, to=8, scale=0.5)])
    assert "step 9: encoder 0.001, not 0.0005" in diagnose(run, "learning rates").found


def test_a_list_of_rollbacks_that_cannot_be_read_is_wrong_and_rates_are_not_judged_by_it(
    run: Path, diagnose: Diagnose
) -> None:
    (run / "rollbacks.json").write_text('{"rollbacks": [{"step": 3}]}')
    assert diagnose(run, "stability").state == "wrong"
    assert "rollbacks.json cannot be read" in diagnose(run, "stability").found
    assert diagnose(run, "learning rates").state == "note"


def test_a_change_of_recipe_is_named_and_what_came_before_is_not_measured_by_it(run: Path, diagnose: Diagnose) -> None:
    recipe = load_recipe(run / "recipe.yaml", ["stages.0.lr.encoder=0.002", "training.log_every=2"])
    shutil.rmtree(run / "checkpoints/step_24")
    with pytest.raises(UserError, match="--allow"):
        loop.pretrain(recipe, run)
    loop.pretrain(recipe, run, allow=True)
    check = diagnose(run, "recipe")
    assert check.state == "note"
    assert "changed at step 16: stages[0].lr.encoder[0]: 0.001 → 0.002" in check.found
    rates = diagnose(run, "learning rates")
    assert rates.state == "ok"
    assert "at each of 4 rows" in rates.found
    assert "rows up to step 16 are from before" in rates.found
    assert diagnose(run, "rows").state == "ok"
    (run / "recipe_changes.jsonl").unlink()
    assert diagnose(run, "learning rates").state == "wrong"
    assert "rows of steps 1, 3, 5 and 5 more" in diagnose(run, "rows").found


def test_a_change_of_speed_alone_is_named_and_is_no_reason_to_look_twice(run: Path, diagnose: Diagnose) -> None:
    shutil.rmtree(run / "checkpoints/step_24")
    loop.pretrain(load_recipe(run / "recipe.yaml", ["training.checkpoint_every=12"]), run)
    check = diagnose(run, "recipe")
    assert check.state == "ok"
    assert "changed at step 16: training.checkpoint_every: 8 → 12" in check.found


@pytest.mark.parametrize("line", ["{\n", "[]\n", '{"step": 3}\n'])
def test_changes_that_cannot_be_read_are_wrong(run: Path, diagnose: Diagnose, line: str) -> None:
    (run / "recipe_changes.jsonl").write_text(line)
    assert diagnose(run, "recipe").state == "wrong"


@pytest.mark.parametrize(("skipped", "state"), [({}, "ok"), ({9: 2}, "note"), ({9: 1, 12: 2}, "wrong")])
def test_skipped_steps_are_counted_with_the_rows_that_show_them(
    run: Path, diagnose: Diagnose, edit_rows: EditRows, skipped: dict[int, int], state: str
) -> None:
    edit_rows(
        run, lambda _, row: row.update(skipped=sum(count for step, count in skipped.items() if step <= row["step"]))
    )
    check = diagnose(run, "stability")
    assert check.state == state
    assert all(f"{step}" in check.found for step in skipped)
    assert not skipped or f"{sum(skipped.values())} of 24 steps" in check.found


def test_a_run_that_went_back_says_from_where_and_with_what_rates(run: Path, diagnose: Diagnose) -> None:
    write_rollbacks(run, [Rollback(step=6, to=2, scale=0.5), Rollback(step=19, to=16, scale=0.25)])
    check = diagnose(run, "stability")
    assert check.state == "note"
    assert "went back 2 times (from step 6 to 2, from step 19 to 16)" in check.found
    assert "times 0.125" in check.found


def test_a_run_that_used_up_its_rollbacks_before_its_end_is_wrong(run: Path, diagnose: Diagnose) -> None:
    times = [Rollback(step=19 + number, to=16, scale=0.5) for number in range(3)]
    write_rollbacks(run, times)
    assert diagnose(run, "stability").state == "note"
    shutil.rmtree(run / "checkpoints/step_24")
    check = diagnose(run, "stability")
    assert check.state == "wrong"
    assert "as often as training.rollbacks allows, and it stands at step 16" in check.found
    write_rollbacks(run, times[:2])
    assert diagnose(run, "stability").state == "note"


def test_a_last_row_whose_steps_were_skipped_is_no_lost_loss(
    run: Path, diagnose: Diagnose, edit_rows: EditRows
) -> None:
    def skip(_: int, row: dict[str, Any]) -> None:
        if row["step"] == 24:
            row.update(skipped=1)
            del row["loss"], row["flow"], row["alignment"], row["feature_spread"]

    edit_rows(run, skip)
    assert "the steps of its row were skipped" in diagnose(run, "losses").found
    assert not [check for check in examine_run(run) if check.state == "wrong"]
    edit_rows(run, lambda _, row: row.update(skipped=0))
    assert diagnose(run, "losses").state == "wrong"
