"""What goes wrong in a run loses nothing beyond the last complete checkpoint, and says what it was."""

import json
import math
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import nano_recipe
from safetensors.torch import save_file
from test_run_folder import assert_equal_runs, rows

from nextvid.config import Recipe, save_recipe
from nextvid.data.clip import MadeUp
from nextvid.errors import UserError
from nextvid.files import checksum
from nextvid.objectives.nextvid import NextVid
from nextvid.objectives.protocol import Losses
from nextvid.training import loop
from nextvid.training.checkpoint import (
    MODEL,
    OPTIMISER,
    Retention,
    damage,
    each_tensor,
    list_checkpoints,
    read_part,
    tidy,
)
from nextvid.training.rollback import Rollback, read_rollbacks, scale_at


def recipe_with(**training: Any) -> Recipe:
    recipe = nano_recipe()
    return recipe.model_copy(update={"training": type(recipe.training)(**{**recipe.training.model_dump(), **training})})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    loop.pretrain(nano_recipe(), out)
    return out


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], times: int = 1) -> None:
    """The loss of these steps, counted over the whole process, is not a number; each of them so many times."""
    forward, seen = NextVid.forward, {"steps": 0}

    def poisoned(self: NextVid, batch: Any, weights: dict[str, float]) -> Losses:
        losses = forward(self, batch, weights)
        number, seen["steps"] = seen["steps"], seen["steps"] + 1
        return replace(losses, total=losses.total * math.nan) if number in steps else losses

    monkeypatch.setattr(NextVid, "forward", poisoned)


def test_a_bad_step_is_skipped_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {4})
    figures = loop.pretrain(nano_recipe(), tmp_path / "run")
    assert figures["pretrain"]["skipped"] == 1
    assert "step 5 is skipped: loss, grad_norm not finite (1 skipped in all)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert [row["skipped"] for row in rows(tmp_path / "run")] == [0, 1, 1, 1]
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "run"))
    assert all(bool(torch.isfinite(t).all()) for _, t in each_tensor(tmp_path / "run/checkpoints/step_12"))


def test_a_skipped_step_changes_neither_weights_nor_moments_nor_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.pretrain(recipe_with(checkpoint_every=1, keep_checkpoints=9), tmp_path / "run", until=3)
    poison(monkeypatch, {0})
    loop.pretrain(recipe_with(checkpoint_every=1, keep_checkpoints=9), tmp_path / "run", until=4)
    before, after = (dict(each_tensor(tmp_path / f"run/checkpoints/step_{step}")) for step in (3, 4))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_many_bad_steps_go_back_to_the_last_good_checkpoint_with_smaller_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {6, 7, 8})
    recipe = recipe_with(bad_steps=3, lr_after_rollback=0.25)
    figures = loop.pretrain(recipe, tmp_path / "run")
    assert figures["pretrain"]["rollbacks"] == 1
    assert read_rollbacks(tmp_path / "run") == [Rollback(step=9, to=4, scale=0.25)]
    assert "going back to" in " ".join(capsys.readouterr().out.split())
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [3, 6, 9, 12]
    assert found[0]["lr"]["predictor"] == 1e-3
    assert found[1]["lr"]["predictor"] == found[3]["lr"]["predictor"] == 0.25e-3
    assert [row["skipped"] for row in found] == [0, 0, 0, 0]  # those of the steps that count


def test_killed_after_going_back_it_goes_on_with_the_smaller_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with(bad_steps=3)
    poison(monkeypatch, {6, 7, 8})
    loop.pretrain(recipe, tmp_path / "run")
    monkeypatch.undo()
    # As a kill leaves it that comes right after going back: the checkpoint, the rows up to it, and the list of rollbacks.
    shutil.copytree(tmp_path / "run", tmp_path / "killed", ignore=shutil.ignore_patterns("step_12"))
    loop.pretrain(recipe, tmp_path / "killed")
    assert_equal_runs(tmp_path / "run", tmp_path / "killed")


def test_killed_before_the_rollback_was_written_it_diverges_and_goes_back_again_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with(bad_steps=3, keep_checkpoints=3)
    poison(monkeypatch, {6, 7, 8})
    loop.pretrain(recipe, tmp_path / "run")
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "killed", ignore=shutil.ignore_patterns("step_12", "rollbacks.json"))
    shutil.rmtree(tmp_path / "killed/checkpoints/step_8")
    poison(monkeypatch, {2, 3, 4})  # the same steps: it goes on from step 4
    loop.pretrain(recipe, tmp_path / "killed")
    assert_equal_runs(tmp_path / "run", tmp_path / "killed")


def test_saves_among_bad_steps_do_not_push_out_the_good_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {6, 7, 8})
    recipe = recipe_with(bad_steps=3, checkpoint_every=1, keep_checkpoints=1)
    loop.pretrain(recipe, tmp_path / "run")
    (back,) = read_rollbacks(tmp_path / "run")
    assert back.to == 6  # nothing before it was kept


def test_a_run_goes_back_to_before_the_step_that_led_to_the_first_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From right before it, it would be the same again."""
    poison(monkeypatch, {8, 9, 10})
    loop.pretrain(recipe_with(bad_steps=3), tmp_path / "run")
    (back,) = read_rollbacks(tmp_path / "run")
    assert back == Rollback(step=11, to=4, scale=0.5)


def test_going_back_again_and_again_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(6, 1000)))
    with pytest.raises(UserError, match=r"after 2 times of going back .* lower the learning rates.*step_4 is good"):
        loop.pretrain(recipe_with(bad_steps=2, rollbacks=2), tmp_path / "run")
    assert damage(tmp_path / "run/checkpoints/step_4") is None


def test_without_a_good_checkpoint_it_stops_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(1000)))
    with pytest.raises(UserError, match="no good checkpoint to go back to"):
        loop.pretrain(recipe_with(bad_steps=2), tmp_path / "run")


def test_rates_fall_from_where_a_run_went_back_to() -> None:
    rollbacks = [Rollback(step=90, to=50, scale=0.5), Rollback(step=120, to=100, scale=0.1)]
    assert [scale_at(rollbacks, step) for step in (49, 50, 99, 100)] == [1.0, 0.5, 0.5, 0.05]


def test_a_source_that_raises_stops_the_run_and_it_goes_on_equal(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [kind for kind in _subclasses(MadeUp) if "clip" in vars(kind)]
    made = {"clips": 0}

    def failing(clip: Any) -> Any:
        def inner(self: Any, *arguments: Any) -> Any:
            made["clips"] += 1
            if made["clips"] > 150:
                raise RuntimeError("the renderer is out of order")
            return clip(self, *arguments)

        return inner

    for kind in kinds:
        monkeypatch.setattr(kind, "clip", failing(kind.clip))
    with pytest.raises(RuntimeError, match="out of order"):
        loop.pretrain(nano_recipe(), tmp_path / "run")
    monkeypatch.undo()
    loop.pretrain(nano_recipe(), tmp_path / "run")
    assert_equal_runs(whole, tmp_path / "run")


def _subclasses(kind: type) -> list[type]:
    return [kind, *(found for child in kind.__subclasses__() for found in _subclasses(child))]


def test_an_edited_recipe_is_named_and_refused_and_allowed_if_told(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("step_12"))
    edited = recipe_with(weight_decay=0.1)
    with pytest.raises(UserError, match=r"training.weight_decay: 0.04 → 0.1.*--allow"):
        loop.pretrain(edited, run)
    loop.pretrain(edited, run, allow=True)
    assert "training.weight_decay: 0.04 → 0.1" in " ".join(capsys.readouterr().out.split())
    (change,) = [json.loads(line) for line in (run / "recipe_changes.jsonl").read_text().splitlines()]
    assert change == {"format_version": 1, "step": 8, "changes": ["training.weight_decay: 0.04 → 0.1"]}
    loop.pretrain(edited, run)  # it is the run's recipe now


def test_what_changes_speed_alone_may_change(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("step_12"))
    recipe = recipe_with(checkpoint_every=2, keep_checkpoints=1)
    data = recipe.data.model_copy(update={"workers": 1})
    loop.pretrain(recipe.model_copy(update={"data": data}), run)
    assert_equal_runs(whole, run)


def test_damaged_checkpoints_do_not_push_out_what_is_saved_after(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("step_8", "step_12"):
        (run / "checkpoints" / name / "__0_0.distcp").write_bytes(b"")
    loop.pretrain(nano_recipe(), run, until=5)
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == ["step_4", "step_5"]
    assert (run / "checkpoints/damaged_step_12").is_dir()
    loop.pretrain(nano_recipe(), run)
    assert_equal_runs(whole, run)


def test_a_recipe_with_fewer_steps_than_are_done_is_refused(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    recipe = nano_recipe()
    with pytest.raises(UserError, match="12 steps behind it, and the recipe has 6 in all"):
        loop.pretrain(recipe.model_copy(update={"stages": recipe.stages[:1]}), run, allow=True)
    loop.pretrain(recipe, run)  # nothing has changed


def test_killed_while_the_first_file_was_written_the_folder_is_still_a_runs(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".recipe.yaml.17.tmp").write_text("version: ")
    loop.pretrain(nano_recipe(), run)
    assert_equal_runs(whole, run)
    assert not list(run.glob(".*.tmp"))


def test_a_checkpoint_of_format_1_is_gone_on_with_and_the_next_has_the_present_one(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("step_12"))
    old = run / "checkpoints" / "step_8"
    state = json.loads((old / "state.json").read_text())
    parts = {"model.safetensors": read_part(old, MODEL), "optimiser.safetensors": read_part(old, OPTIMISER)}
    shutil.rmtree(old)
    old.mkdir()
    for name, tensors in parts.items():
        save_file(tensors, old / name)
    sums = {name: checksum(old / name) for name in parts}
    kept = {name: state[name] for name in ("step", "seconds", "window")}
    (old / "state.json").write_text(json.dumps({"format_version": 1, "sha256": sums, **kept}))
    loop.pretrain(nano_recipe(), run)
    assert_equal_runs(whole, run)
    assert json.loads((run / "checkpoints/step_12/state.json").read_text())["format_version"] == 2


def test_a_checkpoint_complete_but_not_in_its_place_is_put_there(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / "step_12").rename(run / "checkpoints" / ".step_12.tmp")
    tidy(run / "checkpoints")
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == ["step_8", "step_12"]


def test_the_last_the_regular_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {10: 0.2, 20: 0.9, 30: None, 40: 0.5, 50: 0.9, 60: 0.1, 70: None}
    for step, score in scores.items():
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"format_version": 2, "score": score}))
    found = Retention(last=2, every=40).superfluous(list_checkpoints(tmp_path))
    assert [path.name for path in found] == ["step_10", "step_20", "step_30"]
    found = Retention(last=1).superfluous(list_checkpoints(tmp_path))
    assert [path.name for path in found] == [f"step_{step}" for step in (10, 20, 30, 40, 60)]


def test_a_run_probes_itself_and_keeps_what_reads_best(tmp_path: Path) -> None:
    probe = {"benchmark": "moving-sprites", "every": 4, "clips": 40}
    recipe = recipe_with(log_every=2, checkpoint_every=4, keep_checkpoints=1, probe=probe)
    loop.pretrain(recipe, tmp_path / "whole")
    probed = {row["step"]: row["probe"] for row in rows(tmp_path / "whole") if "probe" in row}
    assert list(probed) == [4, 8, 12]
    best = max(probed, key=lambda step: (probed[step], step))
    assert {best, 12} == {int(p.name[5:]) for p in list_checkpoints(tmp_path / "whole/checkpoints")}
    loop.pretrain(recipe, tmp_path / "parts", until=5)
    loop.pretrain(recipe, tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_an_unknown_probe_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="moving-sprits"):
        loop.pretrain(
            recipe_with(checkpoint_every=4, log_every=4, probe={"benchmark": "moving-sprits", "every": 4}),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def pretrain_command(recipe: Recipe, folder: Path) -> list[str]:
    file = folder / "nano.yaml"
    file.write_text(save_recipe(recipe))
    return [sys.executable, "-m", "nextvid", "pretrain", str(file), "--out"]


@pytest.mark.slow
def test_a_file_that_cannot_grow_stops_the_run_and_leaves_the_checkpoint_before(whole: Path, tmp_path: Path) -> None:
    """A quota, as one process sees it."""
    size = (whole / "checkpoints/step_12/__0_0.distcp").stat().st_size
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("step_12"))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    command = [*pretrain_command(nano_recipe(), tmp_path), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.split())
    assert "the checkpoint of step 12 could not be written" in said
    assert "the last complete checkpoint is" in said
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == ["step_8"]
    assert damage(run / "checkpoints/step_8") is None
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_8"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert_equal_runs(whole, run)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_with_room_it_goes_on_equal(whole: Path, tmp_path: Path) -> None:
    """A file system of its own, too small for a third checkpoint."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    size = sum(p.stat().st_size for p in (whole / "checkpoints").rglob("*")) + 2**19
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    command = " ".join([*pretrain_command(nano_recipe(), tmp_path), str(disk / "run")])
    script = f"mount -t tmpfs -o size={size} tmpfs {disk}; {command}; code=$?; cp -r {disk}/run {kept}; exit $code"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "0 MiB are free there" in done.stderr
    whole_ones = list_checkpoints(kept / "checkpoints")
    assert whole_ones
    assert all(damage(path) is None for path in whole_ones)
    loop.pretrain(nano_recipe(), kept)
    assert_equal_runs(whole, kept)
