"""``nextvid plan``: what it says, what it refuses, and that a machine can read it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from nano import nano_recipe
from rich.console import Console

from nextvid.cli import main
from nextvid.config import Recipe, load_recipe, save_recipe
from nextvid.errors import UserError
from nextvid.planning import WIDTH, Offer, plan, tables_of
from nextvid.planning.machines import ASSUMED_UTILISATION, GPUS, cpu_utilisation, machine_of
from nextvid.planning.numbers import amount, lasting, short

QUIET = Console(quiet=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    out = tmp_path / "nano.yaml"
    out.write_text(save_recipe(nano_recipe()))
    return out


def said(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of ``nextvid plan`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["nextvid", "plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_json_stands_alone_and_is_what_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "plan.json", tmp_path / "schedule.png"
    assert said(monkeypatch, file, "--gpu", "cpu", "--json", "--out", out, "--plot", picture) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert found["format_version"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found["total"]["cost"] is None
    assert found["total"]["steps"] == 12
    assert [stage["name"] for stage in found["stages"]] == ["first", "second"]


def test_the_table_fits_and_names_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    assert said(monkeypatch, file, "--gpu", "h100", "--price", "2.5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= WIDTH == 100
    text = " ".join(" ".join(lines).split())
    for words in (
        "trained",
        "moving average",
        "kept for the backward pass",
        "largest that fits",
        "assumed",
        "a checkpoint",
    ):
        assert words in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("size", "devices", "gpu"), [("vit_g", 96, "h100"), ("base", 1, "rtx4090"), ("small", 1, "cpu")]
)
def test_tables_of_packaged_recipes_are_not_cut(size: str, devices: int, gpu: str) -> None:
    """At their full operations; what is followed for the memory is a model of one layer a part."""
    recipe = load_recipe(size, ["encoder.depth=1", "objective.predictor.depth=1", "objective.decoder.depth=1"])
    found = plan(recipe, Offer(devices, gpu), QUIET)
    for stage in found["stages"]:
        stage.update({"hours": 42.7 / 60, "flops": 4.444e17, "step_flops": 7.405e13, "step_seconds": 0.804})
    console = Console(width=WIDTH, record=True, quiet=True)
    console.print(tables_of(found), crop=False)
    assert "…" not in console.export_text()


def test_hours_and_cost_follow_from_operations() -> None:
    recipe = nano_recipe()
    assumed = plan(recipe, Offer(1, "a100", price=2.0), QUIET)
    flops, total = assumed["total"]["flops"], assumed["total"]
    assert total["hours"] == pytest.approx(flops / (19.5e12 * ASSUMED_UTILISATION * 3600))
    assert total["cost"] == pytest.approx(2.0 * total["hours"])
    assert assumed["machine"]["utilisation_source"] == "assumed"
    assert sum(stage["hours"] for stage in assumed["stages"]) == pytest.approx(total["hours"])
    given = plan(recipe, Offer(1, "a100", utilisation=0.7), QUIET)
    assert given["total"]["hours"] == pytest.approx(total["hours"] / 2)
    implied = plan(recipe, Offer(1, "a100", hours=total["hours"]), QUIET)
    assert implied["machine"]["utilisation"] == pytest.approx(ASSUMED_UTILISATION)
    assert implied["machine"]["utilisation_source"].startswith("implied by")


def test_here_is_measured(known_peak: float) -> None:
    found = plan(nano_recipe(), Offer(gpu="cpu"), QUIET)["machine"]
    assert (found["peak_flops_per_second"], found["utilisation"]) == (known_peak, cpu_utilisation())
    assert found["peak_source"] == "measured here"


def test_loaders_have_to_give_what_a_step_takes() -> None:
    for stage in plan(nano_recipe(), Offer(gpu="cpu"), QUIET)["stages"]:
        clips = stage["loader_clips_per_second_and_device"]
        assert clips * stage["step_seconds"] == pytest.approx(stage["batch"])
        assert stage["loader_frames_per_second_and_device"] == pytest.approx(clips * stage["frames"])


@pytest.mark.slow
def test_what_does_not_fit_is_said() -> None:
    recipe = load_recipe("vit_l", ["encoder.depth=2", "objective.predictor.depth=1", "objective.decoder.depth=1"])
    found = plan(recipe, Offer(1, "rtx4090"), QUIET)["stages"][0]["memory"]
    assert not found["fits"]
    assert 0 < found["largest_micro_batch"] < found["micro_batch"] == 64
    asked = recipe.model_copy(
        update={
            "stages": [s.model_copy(update={"micro_batch": found["largest_micro_batch"]}) for s in recipe.stages[:1]]
        }
    )
    assert plan(asked, Offer(1, "rtx4090"), QUIET)["stages"][0]["memory"]["fits"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--gpu", "h1000"], "did you mean 'h100'?"),
        (["--gpu", "t4", "training.precision=bfloat16"], "has no bfloat16; use training.precision=float32"),
        (["--gpus", "5"], "stages[0] ('first'): batch=3 cannot be shared evenly by 5 processes"),
        (["--gpus", "2"], "The nearest --gpus that work: 1"),
        (["--gpu", "h100", "--utilisation", "1.2"], "--utilisation 1.2 must lie above 0 and be 1 at most"),
        (["--gpu", "h100", "--utilisation", "0.3", "--hours", "2"], "leave out --utilisation, or --hours"),
        (["--gpu", "h100", "--hours", "0"], "--hours 0 must be above 0"),
        (["--plot", "schedule.txt"], "a picture ends in .png"),
        (["stages.0.lr={encoder: 1}"], "needs exactly encoder, predictor, decoder"),
    ],
)
def test_wrong_input_is_a_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, options: list[str], sentence: str
) -> None:
    assert said(monkeypatch, file, *options) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_the_nearest_numbers_of_devices_are_named() -> None:
    with pytest.raises(UserError, match="The nearest --gpus that work: 96 and 128"):
        plan(load_recipe("vit_g"), Offer(100, "h100"), QUIET)


def test_machines_are_found_however_they_are_written() -> None:
    for name in ("H100", "nvidia h100", "RTX 4090", "rtx4090", "A100_40GB"):
        assert machine_of(name, "bfloat16").name in GPUS
    assert machine_of("h200", "bfloat16").memory > machine_of("h100", "bfloat16").memory
    for machine in GPUS.values():
        assert machine.peak.get("bfloat16", 1e15) > machine.peak["float32"] > 1e12
        assert 10 * 2**30 < machine.memory < 200 * 2**30


def test_numbers_are_short() -> None:
    assert [short(x) for x in (0.0, 0.5, 16.0, 8e-4, 4.5e-4, 1e-6, 0.99925)] == [
        "0", "0.5", "16", "8e-4", "4.5e-4", "1e-6", "0.99925",
    ]  # fmt: skip
    assert [amount(x) for x in (12.0, 132_000.0, 830.47e9)] == ["12", "132 K", "830.5 B"]
    assert [lasting(x) for x in (0.001, 0.1, 146.0, 24_000.0)] == ["3.6 s", "6 min", "146 h", "1,000 days"]


# The packaged recipes of the paper's sizes.


def paper(size: str) -> tuple[Recipe, dict[str, Any]]:
    path = Path(__file__).parents[2] / "recipes" / f"{size}.yaml"
    return load_recipe(size), yaml.safe_load(path.read_text())


@pytest.mark.parametrize("size", ["vit_l", "vit_h", "vit_g"])
def test_recipes_are_table_8(size: str) -> None:
    recipe, raw = paper(size)
    assert raw["encoder"] == {"size": size}
    stages = recipe.stages
    assert [s.steps for s in stages] == [12_000, 28_000, 80_000, 12_000]
    assert [s.draws for s in stages] == [4, 4, 1, 1]
    assert [(s.frames, s.batch) for s in stages] == [(16, 3072)] * 3 + [(64, 768)]
    assert {(s.fps, s.size, s.ema) for s in stages} == {(4, 256, 0.99925)}
    assert [s.lr["encoder"] for s in stages] == [(1e-4, 5e-4), (5e-4, 4.5e-4), (4.5e-4, 1e-4), (1e-4, 1e-6)]
    assert [s.lr["predictor"] for s in stages] == [s.lr["encoder"] for s in stages]
    assert [s.lr["decoder"] for s in stages] == [(1e-4, 5e-4), (5e-4, 4.5e-4), (8e-4, 8e-4), (3e-4, 3e-4)]
    for stage in stages:
        assert stage.weights == {"flow": (0.5, 0.5), "alignment": (1.0, 1.0)}
        assert stage.masks == load_recipe("vit_l", ["stages.0.masks=null"]).stages[0].masks
    assert sum(s.weight for s in recipe.data.sources) == pytest.approx(1)
    training = recipe.training
    assert (training.betas, training.weight_decay, training.clip_norm) == ((0.9, 0.95), 0.04, 1.0)
    assert (training.parallel, training.precision, training.activation_checkpointing) == ("fsdp", "bfloat16", True)


def test_the_papers_sizes_differ_in_nothing_else() -> None:
    large, *others = (paper(size)[1] for size in ("vit_l", "vit_h", "vit_g"))
    for other in others:
        for stage, theirs in zip(large["stages"], other["stages"], strict=True):
            assert {**stage, "micro_batch": 0} == {**theirs, "micro_batch": 0}
        apart = {"name", "encoder", "stages"}
        assert {k: v for k, v in large.items() if k not in apart} == {k: v for k, v in other.items() if k not in apart}


@pytest.mark.parametrize("name", ["small", "base"])
def test_recipes_for_one_machine_need_no_download(name: str) -> None:
    recipe = load_recipe(name)
    assert [stage.name for stage in recipe.stages] == ["warm-up", "stable-1", "stable-2", "cool-down"]
    assert all(source.builtin for source in recipe.data.sources)
    assert recipe.stages[-1].frames == 2 * recipe.stages[0].frames
    assert all(s.lr["encoder"][1] == n.lr["encoder"][0] for s, n in zip(recipe.stages, recipe.stages[1:], strict=False))
