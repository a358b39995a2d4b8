"""Runs side by side: the same compute is the same, what differs is named, and nothing that is missing is passed over."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import recipe_mapping, references
from rich.console import Console

from nextvid.comparison import compare_runs, table_of
from nextvid.comparison.command import recipe_differences
from nextvid.config import Recipe, parse_recipe
from nextvid.errors import UserError
from nextvid.training.compute import total_flops, with_flops
from nextvid.training.loop import pretrain

QUIET = Console(quiet=True)
CLIPS = (40, 30)


def recipe(objective: str, **changes: Any) -> Recipe:
    part = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}
    parts = {"predictor": part, "decoder": part} if objective == "nextvid" else {"decoder": part}
    stage = {**recipe_mapping()["stages"][0], "steps": 6, "lr": dict.fromkeys(("encoder", *parts), 1e-3)}
    return parse_recipe(
        {
            "name": objective,
            "encoder": {**part, "patch": 8},
            "objective": {"name": objective, **parts},
            "data": {"sources": [{"builtin": "moving-sprites", "level": "plain"}], "workers": 0},
            "stages": [stage],
            "training": {"log_every": 2, "threads": 1, "checkpoint_every": 3},
            **changes,
        },
        objective,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A NExT-Vid run, and a VideoMAE run of the same compute."""
    folder = tmp_path_factory.mktemp("runs")
    ours = recipe("nextvid")
    control = with_flops(recipe("videomae"), total_flops(ours))
    for name, chosen in (("ours", ours), ("control", control)):
        pretrain(chosen, folder / name, console=QUIET)
    return [str(folder / "ours"), str(folder / "control")]


@pytest.fixture
def copies(runs: list[str], tmp_path: Path) -> list[str]:
    return [str(shutil.copytree(run, tmp_path / Path(run).name)) for run in runs]


def compare(runs: list[str], out: Path, benchmark: str | None = None) -> dict[str, Any]:
    level, clips = ("plain", CLIPS) if benchmark else (None, (None, None))
    return compare_runs(runs, benchmark, level, *clips, out, QUIET)


def test_the_same_compute_is_said_to_be_the_same(runs: list[str], tmp_path: Path) -> None:
    found = compare(runs, tmp_path / "page.html")
    ours, control = found["runs"]
    assert found["same_compute"]
    assert abs(control["compute"] - 1) < 0.5 / control["steps"]
    assert control["steps"] > ours["steps"] == 6
    assert (ours["objective"], control["objective"]) == ("nextvid", "videomae")
    assert ours["clips"] == 2 * ours["steps"]
    assert all(run["seconds"] > 0 and run["clips_per_second"] > 0 for run in (ours, control))
    assert found == json.loads((tmp_path / "page.json").read_text())


def test_unequal_compute_is_said_with_the_remedy(runs: list[str], tmp_path: Path) -> None:
    pretrain(recipe("nextvid"), tmp_path / "shorter", until=3, console=QUIET)
    found = compare([runs[0], str(tmp_path / "shorter")], tmp_path / "page.html")
    assert not found["same_compute"]
    assert found["runs"][1]["compute"] == pytest.approx(0.5)
    said = " ".join(found["remarks"])
    assert "shorter 0.50 times that of ours" in said
    assert "--flops-of" not in said
    assert "shorter is at step 3 of 6" in said
    pretrain(recipe("videomae"), tmp_path / "cheaper", console=QUIET)
    ended = " ".join(compare([runs[0], str(tmp_path / "cheaper")], tmp_path / "page.html")["remarks"])
    assert "times that of ours; nextvid pretrain RECIPE --flops-of RUN makes it so" in ended


@pytest.mark.slow
def test_a_run_that_was_killed_between_two_rows(copies: list[str], tmp_path: Path) -> None:
    """Without final figures, its exported encoder says how far it is."""
    ours = Path(copies[0])
    (ours / "metrics.json").unlink()
    rows = (ours / "metrics.jsonl").read_text().splitlines(True)
    (ours / "metrics.jsonl").write_text("".join(rows[:2]))
    found = compare(copies, tmp_path / "page.html", "moving-sprites")
    assert (found["runs"][0]["steps"], found["runs"][0]["clips"]) == (6, 12)
    assert not any("another step" in remark for remark in found["remarks"])


def test_a_figure_that_is_no_number_does_not_stop_it(copies: list[str], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (Path(copies[0]) / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["feature_spread"] = float("nan")
    (Path(copies[0]) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(copies, tmp_path / "page.html")
    assert found["runs"][0]["last_row"]["feature_spread"] is None


def test_probes_of_different_kinds_are_not_taken_for_one(copies: list[str], tmp_path: Path) -> None:
    compare(copies, tmp_path / "page.html", "moving-sprites")
    for folder, change in zip(copies, ({"standardised": False}, {"clip": {"frames": 8}}), strict=True):
        (file,) = Path(folder).glob("probe_*_motion_*.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    said = " ".join(compare(copies, tmp_path / "page.html")["remarks"])
    assert "motion was read on clips of different shapes" in said
    assert "motion was read with and without standardised features" in said
    again = compare(copies, tmp_path / "page.html", "moving-sprites")
    assert all(run["probes"]["moving-sprites/plain/motion"]["standardised"] for run in again["runs"])


def test_what_differs_in_the_recipes_is_named_and_nothing_else() -> None:
    a, b = recipe("nextvid"), recipe("nextvid", seed=3)
    assert recipe_differences([a, a]) == {}
    assert recipe_differences([a, b, a]) == {"seed": [0, 3, 0]}
    found = recipe_differences([a, recipe("videomae")])
    assert found["objective.name"] == ["nextvid", "videomae"]
    assert found["objective.predictor.depth"] == [1, None]
    assert found["stages[only].ema"] == [0.99925, None]
    twice = [{"builtin": "film", "weight": weight} for weight in (1, 2)]
    once = [{**source, "weight": 3} if source["weight"] == 1 else source for source in twice]
    data = [{"sources": sources, "workers": 0} for sources in (twice, once)]
    assert recipe_differences([recipe("nextvid", data=d) for d in data]) == {"data.sources[film #1].weight": [1.0, 3.0]}
    assert not any(key.startswith(("encoder", "data", "training")) for key in found)


def test_missing_probes_are_measured_once_and_kept_beside_the_runs(copies: list[str], tmp_path: Path) -> None:
    before = compare(copies, tmp_path / "page.html")
    assert "no run was probed yet" in " ".join(before["remarks"])
    found = compare(copies, tmp_path / "page.html", "moving-sprites")
    for run, folder in zip(found["runs"], copies, strict=True):
        assert set(run["probes"]) == {"moving-sprites/plain/motion", "moving-sprites/plain/digit"}
        weights = "ema" if run["objective"] == "nextvid" else "online"
        kept = json.loads((Path(folder) / f"probe_moving-sprites_plain_motion_{weights}.json").read_text())
        assert kept == run["probes"]["moving-sprites/plain/motion"]
        assert (kept["train_clips"], kept["test_clips"], kept["step"]) == (*CLIPS, run["steps"])
        assert {"random_init", "pixels", "middle_frame"} <= set(kept["baselines"])
    times = [file.stat().st_mtime_ns for folder in copies for file in sorted(Path(folder).glob("probe_*"))]
    assert compare(copies, tmp_path / "page.html", "moving-sprites")["runs"] == found["runs"]
    assert times == [file.stat().st_mtime_ns for folder in copies for file in sorted(Path(folder).glob("probe_*"))]


def test_a_probe_of_an_earlier_step_is_not_passed_off_as_the_last(copies: list[str], tmp_path: Path) -> None:
    probe = {
        "benchmark": "moving-sprites", "level": "plain", "task": "motion", "top1": 0.5, "ci95": [0.4, 0.6], "classes": 16,
        "train_clips": 40, "test_clips": 30, "step": 3, "weights": "ema", "baselines": {},
    }  # fmt: skip
    (Path(copies[0]) / "probe_moving-sprites_plain_motion_ema.json").write_text(json.dumps(probe))
    said = " ".join(compare(copies, tmp_path / "page.html")["remarks"])
    assert "ours was probed at another step than its last: moving-sprites/plain/motion" in said
    assert "not every run was probed on moving-sprites, plain: add --benchmark moving-sprites --level plain" in said


@pytest.mark.slow
def test_the_page_holds_the_table_the_curves_and_the_differences_and_needs_nothing(
    copies: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "page.html"
    found = compare(copies, out, "moving-sprites")
    page = out.read_text()
    score = found["runs"][1]["probes"]["moving-sprites/plain/motion"]
    assert f"{100 * score['top1']:.1f} ({100 * score['ci95'][0]:.1f}–{100 * score['ci95'][1]:.1f})" in page
    assert page.count("<svg") == 11
    for words in ("reconstruction: skill", "alignment: skill", "objective.predictor.depth", "ours", "control"):
        assert words in page
    found_in_page = references(page)
    assert found_in_page
    assert all(text.startswith(("data:image/", "#")) for text in found_in_page)


def test_the_table_has_a_column_a_run(runs: list[str], tmp_path: Path) -> None:
    table = table_of(compare(runs, tmp_path / "page.html"))
    assert [str(column.header) for column in table.columns] == ["", "ours", "control"]
    rows = dict(zip(table.columns[0].cells, table.columns[2].cells, strict=True))
    assert rows["objective"] == "videomae"
    assert {"steps", "clips", "operations", "seconds"} <= set(rows)


@pytest.mark.parametrize(
    ("origins", "sentence"),
    [
        (["{run}"], "takes two runs or more"),
        (["{run}", "{run}"], "the same run is named twice"),
        (["{run}", "nowhere"], "nowhere is no run: it holds no recipe.yaml"),
    ],
)
def test_what_cannot_be_compared(runs: list[str], tmp_path: Path, origins: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compare([origin.format(run=runs[0]) for origin in origins], tmp_path / "page.html")


def test_options_that_would_say_nothing_are_refused(runs: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="they need --benchmark"):
        compare_runs(runs, None, "plain", None, None, tmp_path / "page.html", QUIET)
    with pytest.raises(UserError, match=r"--out .*page\.json is the page"):
        compare_runs(runs, None, None, None, None, tmp_path / "page.json", QUIET)


def test_a_run_that_has_not_begun(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(Path(runs[0]) / "recipe.yaml", tmp_path / "new")
    with pytest.raises(UserError, match=r"no row in metrics\.jsonl yet"):
        compare([runs[0], str(tmp_path / "new")], tmp_path / "page.html")


def test_a_released_encoder_stands_beside_a_run(runs: list[str], tmp_path: Path) -> None:
    found = compare([runs[0], "nextvid-tiny"], tmp_path / "page.html")
    assert found["runs"][1]["steps"] == 7600
    assert "moving-sprites/film/motion" in found["runs"][1]["probes"]
