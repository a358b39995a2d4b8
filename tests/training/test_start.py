"""What a run takes along from where it starts: all of it, or what fits with every other name told, and the moments."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import nano_recipe
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_distributed import HERE, torchrun
from together import shared_recipe

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.files import checksum
from nextvid.objectives import Objective
from nextvid.report import write_report
from nextvid.settings import InitConfig
from nextvid.training import loop
from nextvid.training.checkpoint import OPTIMISER, read_part
from nextvid.training.distributed import World
from nextvid.training.export import export_run
from nextvid.training.optim import moments
from nextvid.training.release import load_objective, start_from, write_release
from nextvid.training.start import InitReport, take_moments
from nextvid.training.trainer import build_objective, build_trainer

QUIET = Console(quiet=True)
DEEPER = {"width": 24, "depth": 2, "heads": 2, "mlp_hidden": 48}
WIDER = {"width": 48, "depth": 1, "heads": 2, "mlp_hidden": 48}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 8 and 12."""
    out = tmp_path_factory.mktemp("runs") / "first"
    loop.pretrain(nano_recipe(), out, console=QUIET)
    return out


def with_objective(**parts: Any) -> Recipe:
    objective = nano_recipe().model_dump(mode="json")["objective"]
    return nano_recipe(objective={**objective, **parts})


def started(recipe: Recipe, origin: Path, **settings: Any) -> tuple[Objective, InitReport]:
    objective = build_objective(recipe)
    return objective, start_from(objective, recipe, InitConfig(origin=str(origin), **settings))


def said(report: InitReport) -> str:
    return "\n".join(report.lines())


def damaged(run: Path, folder: Path, *steps: int) -> Path:
    """A copy of the run in which the checkpoints of some steps are cut short."""
    copy = folder / "damaged"
    shutil.copytree(run, copy)
    for step in steps:
        file = copy / f"checkpoints/step_{step}/__0_0.distcp"
        file.write_bytes(file.read_bytes()[:-1])
    return copy


# Which checkpoint.


def test_the_last_checkpoint_or_that_of_a_step(run: Path) -> None:
    for step, settings in ((12, {}), (8, {"step": 8})):
        objective, report = started(nano_recipe(), run, **settings)
        there = read_part(run / f"checkpoints/step_{step}")
        assert all(torch.equal(value, there[name]) for name, value in objective.state_dict().items())
        assert report.step == step
        assert report.weights.fitting == list(objective.state_dict())
        assert said(report).startswith(f"starting from {run} (step {step}): {len(there)} of {len(there)} tensors")


def test_a_step_that_is_not_there_is_named_with_those_that_are(run: Path) -> None:
    with pytest.raises(UserError, match=r"has no checkpoint of step 4; the steps there are: 8, 12"):
        started(nano_recipe(), run, step=4)


def test_a_damaged_checkpoint_is_passed_over_and_told(run: Path, tmp_path: Path) -> None:
    copy = damaged(run, tmp_path, 12)
    _, report = started(nano_recipe(), copy)
    assert report.step == 8
    assert "passed over" in said(report)
    assert "step_12 is damaged (the checksum of __0_0.distcp is wrong)" in said(report)
    with pytest.raises(UserError, match=r"step_12 is damaged \(the checksum of .*; choose another step"):
        started(nano_recipe(), copy, step=12)
    with pytest.raises(UserError, match=r"holds no whole checkpoint; .*step_8 is damaged"):
        started(nano_recipe(), damaged(copy, tmp_path / "again", 8))


@pytest.mark.parametrize("settings", [{"step": 8}, {"optimiser": True}])
def test_only_a_run_has_steps_and_moments(settings: dict[str, Any]) -> None:
    (key,) = settings
    with pytest.raises(UserError, match=rf"init\.{key} is for a run's folder, and nextvid-tiny is a file of weights"):
        started(nano_recipe(), Path("nextvid-tiny"), **settings)


# What fits.


def test_what_fits_is_taken_and_everything_else_is_named(run: Path, tmp_path: Path) -> None:
    recipe = with_objective(predictor=DEEPER, decoder=WIDER)
    with pytest.raises(UserError, match="another model"):
        started(recipe, run)
    init = {"origin": str(run), "strict": False}
    console = Console(record=True, width=1000)
    loop.pretrain(recipe.model_copy(update={"init": InitConfig(**init)}), tmp_path / "run", until=1, console=console)
    fresh, there = build_objective(recipe).state_dict(), read_part(run / "checkpoints/step_12")
    objective, report = started(recipe, run, strict=False)
    told = json.loads((tmp_path / "run/init.json").read_text())
    weights = told["weights"]
    for name, value in objective.state_dict().items():
        wanted = there[name] if name in weights["loaded"] else fresh[name]
        assert torch.equal(value, wanted)
    assert {*weights["loaded"], *weights["missing"], *weights["misfitting"]} == set(fresh)
    assert {*weights["loaded"], *weights["unknown"], *weights["misfitting"]} == set(there)
    assert {name.split(".")[0] for name in weights["loaded"]} >= {"encoder", "reference", "predictor", "target"}
    assert weights["missing"]
    assert all(name.startswith("predictor.blocks.1.") for name in weights["missing"])
    assert weights["misfitting"]["decoder.output.weight"] == {"there": [96, 24], "here": [96, 48]}
    assert {"format_version": 1, **init, "step": 12, "moments": None, "recipe_known": True}.items() <= told.items()
    assert "objective.predictor.depth: 1 → 2" in told["other_settings"]
    text = console.export_text()
    assert f"{len(weights['missing'])} missing there ({', '.join(weights['missing'][:3])}, …)" in text
    assert f"{len(weights['misfitting'])} of another shape" in text
    assert "it was trained as another model: objective.predictor.depth: 1 → 2" in text
    assert not report.measures


def test_it_is_refused_where_nothing_of_the_encoder_fits(run: Path, tmp_path: Path) -> None:
    other = nano_recipe().model_dump(mode="json")
    save_file({"predictor.norm.weight": torch.ones(24)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"nothing of it fits this recipe's encoder: encoder\..* is missing"):
        started(nano_recipe(), tmp_path / "part.safetensors", strict=False)
    wide = nano_recipe(encoder={**other["encoder"], "width": 48, "mlp_hidden": 96, "patch": 4})
    with pytest.raises(UserError, match=r"nothing of it fits .*is \(24,.*not \(48,"):
        started(wide, run, strict=False)


def test_encoders_alone_start_a_run_that_measures_its_target_anew(run: Path, tmp_path: Path) -> None:
    init = {"origin": str(run / "encoder.safetensors"), "strict": False}
    console = Console(record=True, width=1000)
    loop.pretrain(nano_recipe(init=init), tmp_path / "run", until=1, console=console)
    loop.pretrain(nano_recipe(), tmp_path / "fresh", until=1, console=QUIET)
    ours, fresh, there = (read_part(p / "checkpoints" / s) for p, s in (
        (tmp_path / "run", "step_1"), (tmp_path / "fresh", "step_1"), (run, "step_12"),
    ))  # fmt: skip
    # The encoder's rate is 0 at the first step.
    assert torch.equal(ours["encoder.patch_embed.weight"], there["encoder.patch_embed.weight"])
    assert torch.equal(ours["target.std"], fresh["target.std"])
    assert not torch.equal(ours["target.std"], torch.full_like(ours["target.std"], 0.5))
    told = json.loads((tmp_path / "run/init.json").read_text())
    assert told["measured_anew"]
    assert not told["recipe_known"]
    assert "it carries no recipe" in console.export_text()


def test_converted_weights_start_a_run_by_their_names(run: Path, tmp_path: Path) -> None:
    """What torch.load(weights_only=True) and save_file make of somebody's state dict."""
    state = load_objective(run)[0].state_dict()
    torch.save(state, tmp_path / "state.pt")
    save_file(torch.load(tmp_path / "state.pt", weights_only=True), tmp_path / "state.safetensors")
    with pytest.raises(UserError, match="carries no recipe"):
        started(nano_recipe(), tmp_path / "state.safetensors")
    objective, report = started(nano_recipe(), tmp_path / "state.safetensors", strict=False)
    assert report.weights.complete
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())


def test_strictly_a_single_tensor_too_few_is_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "release.safetensors"
    objective, recipe = load_objective(run)
    write_release(objective, recipe, 12, copy, "float32")
    metadata = {"recipe": (run / "recipe.yaml").read_text()}
    tensors = load_file(copy)
    del tensors["predictor.norm.bias"]
    save_file({**tensors, "predictor.extra": torch.ones(1)}, copy, metadata=metadata)
    with pytest.raises(UserError, match=r"predictor\.norm\.bias is missing; predictor\.extra is unknown"):
        started(nano_recipe(), copy)
    _, report = started(nano_recipe(), copy, strict=False)
    assert (report.weights.missing, report.weights.unknown) == (["predictor.norm.bias"], ["predictor.extra"])


# Moments.


def test_moments_are_taken_along_to_the_bit(run: Path) -> None:
    recipe = nano_recipe(seed=1)
    objective, report = started(recipe, run, optimiser=True)
    trainer = build_trainer(recipe, objective=objective)
    take_moments(trainer.optimiser, report, World())
    there, here = read_part(run / "checkpoints/step_12", OPTIMISER), moments(trainer.optimiser)
    assert there.keys() == here.keys()
    assert all(torch.equal(value, there[name]) for name, value in here.items())
    assert here["encoder.norm.weight/step"] == 12
    assert f"with AdamW's moments of {len(there) // 3} of {len(there) // 3} parameters" in said(report)


def test_a_run_goes_on_from_the_moments(run: Path, tmp_path: Path) -> None:
    for name, optimiser in (("with", True), ("without", False)):
        init = {"origin": str(run), "optimiser": optimiser}
        loop.pretrain(nano_recipe(init=init), tmp_path / name, until=1, console=QUIET)
    both = [read_part(tmp_path / name / "checkpoints/step_1", OPTIMISER) for name in ("with", "without")]
    assert [saved["decoder.output.weight/step"].item() for saved in both] == [13, 1]
    assert f"from the weights of <strong>{run}</strong>" in write_report(tmp_path / "with").read_text()
    told = json.loads((tmp_path / "with/init.json").read_text())
    assert 3 * len(told["moments"]["loaded"]) == len(both[0])
    assert told["moments"]["missing"] == told["moments"]["unknown"] == []


def test_moments_of_a_checkpoint_of_format_1(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "old")
    old = tmp_path / "old/checkpoints/step_12"
    parts = {"model.safetensors": read_part(old), "optimiser.safetensors": read_part(old, OPTIMISER)}
    kept = json.loads((old / "state.json").read_text())
    shutil.rmtree(old)
    old.mkdir()
    for name, tensors in parts.items():
        save_file(tensors, old / name)
    sums = {name: checksum(old / name) for name in parts}
    (old / "state.json").write_text(json.dumps({**kept, "format_version": 1, "sha256": sums}))
    objective, report = started(nano_recipe(), tmp_path / "old", optimiser=True)
    trainer = build_trainer(nano_recipe(), objective=objective)
    take_moments(trainer.optimiser, report, World())
    there, here = parts["optimiser.safetensors"], moments(trainer.optimiser)
    assert there.keys() == here.keys()
    assert all(torch.equal(value, there[name]) for name, value in here.items())


def test_moments_of_what_does_not_fit_begin_at_nothing(run: Path) -> None:
    recipe = with_objective(decoder=WIDER)
    objective, report = started(recipe, run, strict=False, optimiser=True)
    assert report.moments is not None
    assert "decoder.output.weight" in report.moments.misfitting
    trainer = build_trainer(recipe, objective=objective)
    take_moments(trainer.optimiser, report, World())
    here = moments(trainer.optimiser)
    assert {name.rpartition("/")[0] for name in here} == set(report.moments.fitting)
    assert set(report.moments.fitting) <= set(report.weights.fitting)


def test_weights_that_never_moved_have_no_moments(tmp_path: Path) -> None:
    stages = [{**s.model_dump(mode="json"), "weights": {"flow": 0, "alignment": 1}} for s in nano_recipe().stages]
    loop.pretrain(nano_recipe(stages=stages), tmp_path / "run", until=1, console=QUIET)
    _, report = started(nano_recipe(), tmp_path / "run", optimiser=True)
    assert report.moments is not None
    assert report.moments.missing
    assert all(name.startswith("decoder.") for name in report.moments.missing)
    assert f"had none of, as of weights that never moved: {report.moments.missing[0]}" in said(report)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``first``: a run; ``alone`` and ``fsdp``: a step from its weights and moments, by one process and by two."""
    out = tmp_path_factory.mktemp("runs")
    loop.pretrain(shared_recipe(), out / "first", until=3, console=QUIET)
    init = InitConfig(origin=str(out / "first"), optimiser=True)
    loop.pretrain(shared_recipe().model_copy(update={"init": init}), out / "alone", 1, QUIET)
    done = torchrun(str(HERE / "started_together.py"), str(out / "first"), str(out / "fsdp"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starting from") == 1
    return out


@pytest.mark.slow
def test_sharded_moments_are_those_of_one_process(sharded: Path) -> None:
    for prefix in ("model.", OPTIMISER):
        alone, fsdp = (read_part(sharded / name / "checkpoints/step_1", prefix) for name in ("alone", "fsdp"))
        assert alone.keys() == fsdp.keys()
        for name, value in alone.items():
            torch.testing.assert_close(fsdp[name], value, rtol=2e-3, atol=1e-7 if prefix == OPTIMISER else 2e-5)
    assert fsdp["encoder.norm.weight/step"] == 4
    assert json.loads((sharded / "fsdp/init.json").read_text()) == json.loads((sharded / "alone/init.json").read_text())


@pytest.mark.slow
def test_what_two_processes_saved_is_one_file(sharded: Path, tmp_path: Path) -> None:
    export_run(sharded / "fsdp", tmp_path / "a.safetensors", None, "float32", False, QUIET)
    saved, there = load_file(tmp_path / "a.safetensors"), read_part(sharded / "fsdp/checkpoints/step_1")
    assert len(list((sharded / "fsdp/checkpoints/step_1").glob("*.distcp"))) == 2
    for part, own in (("online", "encoder"), ("ema", "reference"), ("predictor", "predictor"), ("decoder", "decoder")):
        named = {name: value for name, value in there.items() if name.startswith(f"{own}.")}
        assert named
        assert all(torch.equal(saved[part + name.removeprefix(own)], value) for name, value in named.items())


# The clips, and starting again.


def test_clips_that_come_again_are_told(run: Path) -> None:
    other = nano_recipe(data={"sources": [{"builtin": "film"}], "workers": 0})
    again = [started(recipe, run)[1] for recipe in (nano_recipe(), nano_recipe(seed=1), other)]
    assert [report.same_clips for report in again] == [True, False, False]
    assert ["another seed (--seed) gives others" in said(report) for report in again] == [True, False, False]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_at_random(run: Path, tmp_path: Path) -> None:
    recipe = nano_recipe(init=str(run))
    loop.pretrain(recipe, tmp_path / "run", console=QUIET)
    copy = damaged(tmp_path / "run", tmp_path, 8, 12)
    rows = (copy / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=rf"all checkpoints of .* are damaged, and it began from {run}; remove"):
        loop.pretrain(recipe, copy, console=QUIET)
    assert (copy / "metrics.jsonl").read_text() == rows
    shutil.rmtree(copy / "checkpoints")
    loop.pretrain(recipe, copy, console=QUIET)
    whole, again = (read_part(path / "checkpoints/step_12") for path in (tmp_path / "run", copy))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
