"""What is read from the curves, on curves of known shape; the columns are whatever a method names them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvid.doctor import Check, curves, gradients
from nextvid.doctor.rows import Row
from nextvid.training import health

COUNT = 100


def make_rows(count: int = COUNT, **columns: Callable[[float], float]) -> list[Row]:
    """A row a step; a column is a function of how much of the run is done (0 to 1), with some noise on top."""
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(count)
    rows: list[Row] = []
    for number in range(count):
        figures = {name: float(noise[number] * curve(number / (count - 1))) for name, curve in columns.items()}
        time = {"seconds": 2.0 * (number + 1), "clips_per_second": 4.0}
        rows.append({"step": number + 1, "stage": "first", **figures, "clips": 8 * (number + 1), "time": time})
    return rows


def falls(done: float) -> float:
    return 2 - done


def test_healthy_curves_are_ok() -> None:
    rows = make_rows(
        loss=falls,
        distillation=falls,
        grad_norm=lambda _: 1.0,
        feature_spread=lambda _: 0.9,
        effective_rank=lambda _: 30.0,
        teacher_skill=lambda done: done,
    )
    checks = [curves.check_losses(rows), curves.check_features(rows), curves.check_skill(rows)]
    checks += [gradients.check_gradients(rows), curves.check_speed(rows)]
    assert [check.state for check in checks] == ["ok"] * 5
    assert curves.loss_terms(rows) == ["distillation"]
    assert "4 clips a second" in checks[-1].found


def test_a_loss_term_that_rises_over_the_run_is_a_note_by_name() -> None:
    rows = make_rows(loss=falls, distillation=lambda done: 1 + done, steady=lambda _: 1.0)
    check = curves.check_losses(rows)
    assert check.state == "note"
    assert "distillation" in check.found
    assert "steady" not in check.found


def test_a_term_that_dips_and_comes_back_below_its_start_has_not_risen() -> None:
    assert curves.check_losses(make_rows(loss=falls, part=lambda done: 2 - 4 * done * (1 - done))).state == "ok"


def test_negative_losses_are_compared_as_numbers() -> None:
    assert curves.check_losses(make_rows(loss=falls, likelihood=lambda done: -1 - done)).state == "ok"
    assert curves.check_losses(make_rows(loss=falls, likelihood=lambda done: -2 + done)).state == "note"


def test_a_loss_that_is_not_finite_at_the_end_is_wrong() -> None:
    rows = make_rows(loss=falls)
    rows[-1]["loss"] = float("nan")
    check = curves.check_losses(rows)
    assert check.state == "wrong"
    assert "step 100" in check.found


@pytest.mark.parametrize(
    ("spread", "state"),
    [
        (lambda done: 0.9 - 0.5 * done, "ok"),
        (lambda done: max(0.04, 0.9 - 2 * done), "wrong"),
        (lambda _: 0.01, "wrong"),
    ],
)
def test_features_that_all_look_alike_are_a_collapse(spread: Callable[[float], float], state: str) -> None:
    check = curves.check_features(make_rows(feature_spread=spread))
    assert check.state == state
    assert ("collapse" in check.found) == (state == "wrong")


@pytest.mark.parametrize(("rank", "state"), [(3.5, "ok"), (2.5, "note"), (1.2, "wrong")])
def test_features_of_few_directions(rank: float, state: str) -> None:
    assert curves.check_features(make_rows(effective_rank=lambda _: rank)).state == state


def test_the_alarms_of_training_are_the_doctors() -> None:
    at_limit = [health.LEAST_SPREAD * share for share in (0.9, 1.1)]
    assert [curves.check_features(make_rows(feature_spread=lambda _, v=v: v)).state for v in at_limit] == [
        "wrong",
        "ok",
    ]
    check = curves.check_features(make_rows(feature_spread=lambda _: at_limit[0]))
    assert "start anew" in check.mend
    assert "start anew" not in check.found


def test_predictions_that_repeat_the_frame_before_are_named_copying_with_what_to_do() -> None:
    rows = make_rows(copying=lambda done: 0.8 + 2.0 * (done > 0.85))
    check = curves.check_copying(rows)
    assert check.state == "note"
    assert check.found.startswith("copying: copying is 2.")
    assert "footage that moves more" in check.mend


def test_a_few_rows_of_copying_are_none() -> None:
    rows = make_rows(copying=lambda _: 0.8)
    for row in rows[-4:]:
        row["copying"] = 3.0
    assert curves.check_copying(rows).state == "ok"
    assert "rows of this run have no copying" in curves.check_copying(make_rows(loss=falls)).found


@pytest.mark.parametrize(("end", "state"), [(0.0, "note"), (0.01, "ok"), (0.45, "ok"), (0.7, "note")])
def test_a_reference_is_neither_the_online_encoder_nor_far_behind(end: float, state: str) -> None:
    check = curves.check_reference(make_rows(ema_distance=lambda done: 0.2 if done < 0.8 else end))
    assert check.state == state
    assert (("far behind" in check.found), ("itself" in check.found)) == (end > 0.5, end == 0)


def with_norms(**parts: Callable[[float], float]) -> list[Row]:
    rows = make_rows(grad_norm=lambda _: 1.0, **parts)
    for row in rows:
        row["grad_norms"] = {part: row.pop(part) for part in parts}
    return rows


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (0.01, None),
        (1e-5, "the gradient of predictor vanished"),
        (0.0, "the gradient of predictor vanished"),
        (25.0, None),
        (100.0, "the gradient of predictor is 70.7 times that of all other parts together"),
    ],
)
def test_a_part_that_no_longer_learns_or_drowns_the_others_is_named(end: float, found: str | None) -> None:
    rows = with_norms(encoder=lambda _: 1.0, predictor=lambda done: 1.0 if done < 0.8 else end, decoder=lambda _: 1.0)
    check = gradients.check_gradients(rows)
    assert check.state == ("note" if found else "ok")
    assert (found or "now encoder") in check.found
    assert "gradient of encoder" not in check.found


def test_a_part_that_never_had_a_gradient_is_named() -> None:
    check = gradients.check_gradients(with_norms(encoder=lambda _: 1.0, decoder=lambda _: 0.0))
    assert check.state == "note"
    assert "decoder has no gradient in any row" in check.found


def test_one_part_alone_neither_vanishes_nor_dominates() -> None:
    assert gradients.check_gradients(with_norms(encoder=lambda _: 1.0)).state == "ok"


@pytest.mark.parametrize(("end", "state"), [(0.2, "ok"), (-0.2, "note")])
def test_any_skill_that_ends_at_nothing_is_a_note_by_name(end: float, state: str) -> None:
    check = curves.check_skill(
        make_rows(alignment_skill=lambda _: 0.5, teacher_skill=lambda done: 0.5 + (end - 0.5) * done)
    )
    assert check.state == state
    assert "teacher_skill" in check.found


def test_spikes_of_the_gradient_are_named_by_step_and_those_at_the_start_are_not() -> None:
    rows = make_rows(grad_norm=lambda _: 1.0)
    rows[2]["grad_norm"] = 900.0
    assert gradients.check_gradients(rows).state == "ok"
    rows[41]["grad_norm"] = 80.0
    check = gradients.check_gradients(rows)
    assert check.state == "note"
    assert "at step 42" in check.found


def test_a_run_that_slows_down_is_a_note_although_its_mean_speed_hardly_changes() -> None:
    rows = make_rows()
    for number, row in enumerate(rows[90:], 1):
        row["time"]["seconds"] = 2.0 * 90 + 5.0 * number
    check = curves.check_speed(rows)
    assert check.state == "note"
    assert check.found == "1.6 clips a second, 4 before in this stage"


def test_a_slower_stage_is_not_compared_with_a_faster_one() -> None:
    rows = make_rows()
    for number, row in enumerate(rows[50:], 1):
        row["stage"], row["time"]["seconds"] = "second", 2.0 * 50 + 9.0 * number
    assert curves.check_speed(rows).state == "ok"


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_rows_are_not_judged(count: int) -> None:
    rows = (
        make_rows(count, loss=lambda _: 1.0, grad_norm=lambda _: 1.0)
        if count > 1
        else [{"step": 1, "loss": 1.0}][:count]
    )
    for check in (curves.check_losses, curves.check_features, curves.check_skill, gradients.check_gradients):
        assert check(rows).state == "ok"
        assert "too few" in check(rows).found
    assert curves.check_speed(rows).state == "ok"


def test_collapse_and_a_rising_loss_are_seen_in_a_real_run(
    run: Path,
    diagnose: Callable[[Path, str], Check],
    edit_rows: Callable[[Path, Callable[[int, dict[str, Any]], object]], None],
) -> None:
    assert diagnose(run, "features").state == "ok"
    edit_rows(run, lambda number, row: row.update(feature_spread=0.9 * 0.6**number, flow=1.0 + number))
    assert "collapse" in diagnose(run, "features").found
    assert diagnose(run, "losses").state == "note"
    assert "flow" in diagnose(run, "losses").found
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["flow"] == 1.0
