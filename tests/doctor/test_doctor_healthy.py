"""Runs beside healthy runs: what lies in the band, what leaves it, and what is not compared."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import recipe_mapping, small_recipe
from typer.testing import CliRunner

from nextvid.cli import app
from nextvid.config import Recipe, save_recipe
from nextvid.doctor import Check, examine_run, healthy, report
from nextvid.doctor.healthy import SMOOTHED_ROWS, Band, healthy_file, healthy_of, settings_of, smoothed
from nextvid.doctor.likeness import A_FEW, check_healthy, compare
from nextvid.doctor.rows import Row, read_log
from nextvid.doctor.subject import open_subject
from nextvid.errors import UserError

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 400, 10


def recipe_of(seed: int = 0, **changes: Any) -> Recipe:
    stage = {**recipe_mapping()["stages"][0], "steps": STEPS, **changes.pop("stage", {})}
    return small_recipe(
        seed=seed, stages=[stage], training={"log_every": EVERY, **changes.pop("training", {})}, **changes
    )


def rows_of(seed: int, every: int = EVERY, until: int = STEPS) -> list[Row]:
    """A loss that falls and a skill that rises, each with noise of this seed."""
    noise = np.random.default_rng(seed)
    rows: list[Row] = []
    for step in range(every, until + 1, every):
        done = step / STEPS
        flow, skill = 2 * 0.2**done + 0.05 * noise.standard_normal(), done - 0.3 + 0.05 * noise.standard_normal()
        health = {"alignment_skill": skill, "grad_norm": float(np.exp(0.2 * noise.standard_normal()))}
        rows.append(
            {"step": step, "stage": "only", "loss": flow + 1, "flow": flow, "skipped": 0, "probe": 0.1, **health}
        )
    return rows


def write_run(path: Path, rows: list[Row], recipe: Recipe) -> Path:
    path.mkdir()
    (path / "recipe.yaml").write_text(save_recipe(recipe))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "environment.json").write_text(json.dumps({"packages": {"nextvid": "0.1", "torch": "2.12"}}))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three finished runs of one recipe."""
    return [write_run(tmp_path / f"seed-{seed}", rows_of(seed), recipe_of(seed)) for seed in range(3)]


@pytest.fixture
def ship(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Healthy curves of the recipe, as if nextvid came with them."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "small.json").write_text(json.dumps(healthy_file(runs)))
    monkeypatch.setattr(healthy, "FOLDER", folder)
    return folder / "small.json"


def judge(run: Path) -> Check:
    return check_healthy(open_subject(run), read_log(run).rows)


def test_a_file_says_what_it_was_made_of(runs: list[Path]) -> None:
    found = healthy_file(runs)
    assert (found["format_version"], found["name"], found["seeds"]) == (1, "small", [0, 1, 2])
    assert found["versions"] == [{"nextvid": "0.1", "torch": "2.12"}] * 3
    assert found["steps"] == list(range(EVERY, STEPS + 1, EVERY))
    assert set(found["columns"]) == {"loss", "flow", "alignment_skill", "grad_norm"}
    assert set(found["margin"]) == {"of_range", "of_value", "smoothed_rows"}
    assert found["recipe"]["stages"][0]["steps"] == STEPS


def test_what_is_written_is_read_again(runs: list[Path], ship: Path) -> None:
    made, stored = healthy_of(runs), healthy_of([ship])
    assert stored.recipe == made.recipe
    for name, band in made.bands.items():
        assert np.allclose(stored.bands[name].low, band.low, rtol=1e-4)
        assert np.allclose(stored.bands[name].high, band.high, rtol=1e-4)


def test_the_band_holds_its_own_runs_with_room_to_spare(runs: list[Path]) -> None:
    band = healthy_of(runs).bands["flow"]
    for run in runs:
        steps, values = healthy.series(read_log(run).rows, "flow")
        curve = smoothed(steps, values, float(SMOOTHED_ROWS * EVERY))
        assert (band.low < curve - 0.05 * curve).all()
        assert (curve + 0.05 * curve < band.high).all()


def test_a_column_that_some_rows_lack_is_a_band_where_all_runs_have_it(tmp_path: Path) -> None:
    first, second = rows_of(0), rows_of(1)
    del first[3]["flow"], second[5]["flow"]
    runs = [write_run(tmp_path / "a", first, recipe_of(0)), write_run(tmp_path / "b", second, recipe_of(1))]
    stored = healthy_file(runs)
    assert [stored["columns"]["flow"]["low"][number] is None for number in range(8)] == [
        number in (3, 5) for number in range(8)
    ]
    (tmp_path / "file.json").write_text(json.dumps(stored))
    assert len(healthy_of([tmp_path / "file.json"]).bands["flow"].steps) == STEPS // EVERY - 2


def test_one_jump_does_not_move_a_curve() -> None:
    steps, values = np.arange(10.0, 500, 10), np.ones(49)
    values[20] = 1000.0
    assert (smoothed(steps, values, 90.0) == 1).all()
    values[20:26] = 1000.0
    assert smoothed(steps, values, 90.0)[23] == 1000


def test_another_seed_is_within_and_its_figures_are_for_a_machine_too(ship: Path, tmp_path: Path) -> None:
    for seed in range(3, 9):
        check = judge(write_run(tmp_path / f"run-{seed}", rows_of(seed), recipe_of(seed)))
        assert check.state == "ok"
    assert "within 3 runs of small (seeds 0, 1, 2) up to step 400: loss 1.4" in check.found
    figures = report([check])["checks"][0]["figures"]
    assert set(figures) == {"loss", "flow", "alignment_skill", "grad_norm"}
    assert figures["flow"]["left"] is None
    assert figures["flow"]["last"]["low"] < figures["flow"]["last"]["value"] < figures["flow"]["last"]["high"]
    json.dumps(figures, allow_nan=False)


def test_a_curve_that_leaves_is_named_with_step_value_and_band(ship: Path, tmp_path: Path) -> None:
    rows = rows_of(3)
    for row in rows[20:]:
        row["flow"] = 2.0
    check = judge(write_run(tmp_path / "run", rows, recipe_of(3)))
    assert check.state == "note"
    assert check.found.count("leaves the band") == 1
    left = check.figures["flow"]["left"]
    assert abs(left["step"] - 210) <= SMOOTHED_ROWS // 2 * EVERY
    assert not left["low"] <= left["value"] <= left["high"]
    assert f"flow leaves the band at step {left['step']}: {left['value']:.3g} (" in check.found
    assert abs(check.figures["flow"]["rows_outside"] - 20) <= SMOOTHED_ROWS // 2


def test_a_curve_below_its_band_has_left_it_too(ship: Path, tmp_path: Path) -> None:
    rows = [{**row, "loss": 0.1} for row in rows_of(3)]
    assert "loss leaves the band at step 10" in judge(write_run(tmp_path / "run", rows, recipe_of(3))).found


@pytest.mark.parametrize(("count", "state"), [(A_FEW - 3, "ok"), (A_FEW + 3, "note")])
def test_a_few_rows_outside_are_none(ship: Path, tmp_path: Path, count: int, state: str) -> None:
    rows = rows_of(3)
    for row in rows[10 : 10 + count]:
        row["grad_norm"] = 30.0
    assert judge(write_run(tmp_path / "run", rows, recipe_of(3))).state == state


def test_a_run_under_way_with_rows_at_other_steps_is_compared_as_far_as_it_is(ship: Path, tmp_path: Path) -> None:
    recipe = recipe_of(3, training={"log_every": 4})
    check = judge(write_run(tmp_path / "run", rows_of(3, every=4, until=200), recipe))
    assert check.state == "ok"
    assert "up to step 200" in check.found
    early = judge(write_run(tmp_path / "early", rows_of(3, until=20), recipe_of(3)))
    assert (early.state, early.figures) == ("ok", {})
    assert "too few rows" in early.found


def test_rows_that_were_skipped_do_not_stop_the_comparison(ship: Path, tmp_path: Path) -> None:
    rows = rows_of(3)
    for row in rows[7:10]:
        del row["loss"], row["flow"], row["grad_norm"], row["alignment_skill"]
    assert judge(write_run(tmp_path / "run", rows, recipe_of(3))).state == "ok"


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": {"lr": {"encoder": 5e-3, "predictor": 1e-3, "decoder": 1e-3}}},
        {"stage": {"batch": 4}},
        {"encoder": {"width": 48, "depth": 2, "heads": 2, "mlp_hidden": 48, "patch": 4}},
        {"training": {"clip_norm": 0.1}},
        {"data": {"sources": [{"path": "videos"}]}},
    ],
)
def test_other_settings_are_named_and_not_compared(ship: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    rows = [{**row, "flow": 50.0} for row in rows_of(3)]
    check = judge(write_run(tmp_path / "run", rows, recipe_of(3, **changes)))
    assert check.state == "ok"
    assert "not compared with 3 runs of small (seeds 0, 1, 2): settings differ in" in check.found
    assert "→" in check.found
    assert "--against" in check.mend


def test_seed_paths_and_speed_are_no_other_settings() -> None:
    one = recipe_of(0, data={"sources": [{"path": "here"}]})
    speed = {"threads": 2, "precision": "bfloat16", "checkpoint_every": 7, "log_every": 3}
    other = recipe_of(5, data={"sources": [{"path": "there"}], "workers": 3}, training=speed, stage={"micro_batch": 1})
    assert settings_of(one) == settings_of(other)
    assert settings_of(one) != settings_of(recipe_of(0))


def test_without_healthy_curves_it_says_how_to_compare(runs: list[Path]) -> None:
    check = judge(runs[0])
    assert check.state == "ok"
    assert check.found == "none are shipped for the recipe small"
    assert "--against OTHER_RUN" in check.mend


def test_a_run_against_others_of_ones_own(runs: list[Path], tmp_path: Path) -> None:
    def found(run: Path, *against: Path) -> Check:
        return next(check for check in examine_run(run, against) if check.name == "healthy curves")

    good = write_run(tmp_path / "good", rows_of(3), recipe_of(3))
    bad = write_run(tmp_path / "bad", [{**row, "flow": 50.0} for row in rows_of(4)], recipe_of(4, stage={"batch": 4}))
    assert found(good, runs[0]).state == "ok"
    assert f"within {runs[0]} (small)" in found(good, runs[0]).found
    check = found(bad, runs[0], runs[1])
    assert check.state == "note"
    assert "flow leaves the band at step 10: 50" in check.found
    assert "settings differ in stages[0].batch: 2 → 4" in check.found


def test_one_run_alone_makes_a_wider_band_than_several(runs: list[Path]) -> None:
    def width(band: Band) -> float:
        return float(np.median(band.high - band.low))

    alike = [runs[0], runs[0]]
    assert width(healthy_of(runs[:1]).bands["flow"]) > 2 * width(healthy_of(alike).bands["flow"])


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 2}', '{"format_version": 1}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=r"holds no healthy curves|has format version 2"):
        healthy_of([tmp_path / "file.json"])


def test_a_folder_that_is_no_run_is_refused_by_name(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no run's folder"):
        examine_run(runs[0], [tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tmp: write_run(tmp / "x", rows_of(7), recipe_of(1)), "more than one run has the seed 1"),
        (lambda tmp: write_run(tmp / "x", rows_of(7, until=300), recipe_of(7)), "last row is of step 300 of 400"),
        (lambda tmp: write_run(tmp / "x", rows_of(7), recipe_of(7, name="other")), "is of recipe other"),
        (lambda tmp: write_run(tmp / "x", rows_of(7), recipe_of(7, stage={"batch": 4})), "batch: 2 → 4"),
        (lambda tmp: write_run(tmp / "x", rows_of(7)[:1], recipe_of(7)), "has 1 rows"),
    ],
)
def test_only_finished_runs_of_one_recipe_and_several_seeds_make_healthy_curves(
    runs: list[Path], tmp_path: Path, change: Callable[[Path], Path], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        healthy_file([*runs, change(tmp_path)])
    with pytest.raises(UserError, match="2 runs or more"):
        healthy_file(runs[:1])


def test_the_script_makes_a_file_that_the_doctor_reads(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "made/small.json"
    command = [sys.executable, str(ROOT / "scripts/healthy_curves.py"), *map(str, runs), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    assert compare(rows_of(3), healthy_of([out]))["flow"].left is None


def test_a_setting_that_came_later_is_none_that_differs(ship: Path, tmp_path: Path) -> None:
    stored = json.loads(ship.read_text())
    del stored["recipe"]["encoder"]["input"]
    ship.write_text(json.dumps(stored))
    run = write_run(tmp_path / "run", rows_of(3), recipe_of(3))
    assert yaml.safe_load((run / "recipe.yaml").read_text())["encoder"]["input"]
    assert judge(run).found.startswith("within")


def test_the_command_compares_and_says_so_to_a_machine(runs: list[Path], tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", rows_of(3), recipe_of(3))
    said = CliRunner().invoke(
        app, ["doctor", str(good), "--against", str(runs[0]), "--against", str(runs[1]), "--json"]
    )
    (check,) = [check for check in json.loads(said.stdout)["checks"] if check["name"] == "healthy curves"]
    assert check["state"] == "ok"
    assert check["figures"]["flow"]["left"] is None
    alone = CliRunner().invoke(app, ["doctor", "--against", str(runs[0])])
    assert isinstance(alone.exception, UserError)


def test_what_nextvid_comes_with_can_be_read_and_is_named_after_its_recipe() -> None:
    for file in healthy.FOLDER.glob("*.json"):
        assert healthy_of([file]).recipe.name == file.stem
