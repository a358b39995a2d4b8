"""``nextvid doctor RUN``: each way in which a run can be damaged changes the state of the check that is about it."""

import fcntl
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nextvid.config import load_recipe
from nextvid.doctor import Check, examine_run, report
from nextvid.doctor.material import judge_footage
from nextvid.doctor.saved import judge_space
from nextvid.errors import UserError
from nextvid.files import checksum
from nextvid.training import loop
from nextvid.training.checkpoint import each_tensor
from nextvid.training.distributed import World
from nextvid.training.tensors import write_tensors

Diagnose = Callable[[Path, str], Check]
EditRows = Callable[[Path, Callable[[int, dict[str, Any]], object]], None]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def poison(checkpoint: Path) -> str:
    """A NaN in one tensor, and checksums that say that this is how it was saved; returns the tensor's name."""
    tensors = dict(each_tensor(checkpoint))
    name = next(name for name, tensor in tensors.items() if tensor.ndim)
    tensors[name].view(-1)[0] = float("nan")
    state = json.loads((checkpoint / "state.json").read_text())
    for file in state["sha256"]:
        (checkpoint / file).unlink()
    write_tensors(checkpoint, tensors, World()).result()
    state["sha256"] = {file: checksum(checkpoint / file) for file in state["sha256"]}
    (checkpoint / "state.json").write_text(json.dumps(state))
    return name


def test_a_run_that_nothing_touched_is_sound_and_stays_as_it_is(whole_run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole_run.rglob("*")}
    checks = examine_run(whole_run)
    # The losses of so short a run may rise, and its speed is that of whatever else the machine does.
    quiet = [check for check in checks if check.name not in ("losses", "skill", "speed")]
    assert [check for check in quiet if check.state != "ok"] == []
    assert report(checks)["sound"] is True
    assert {p: p.stat().st_mtime_ns for p in whole_run.rglob("*")} == before


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run's folder at"):
        examine_run(tmp_path / "nowhere")


def test_an_empty_folder_lacks_a_recipe_and_every_other_check_still_speaks(tmp_path: Path) -> None:
    checks = examine_run(tmp_path)
    assert [check.name for check in checks if check.state == "wrong"] == ["recipe"]
    assert not any("itself failed" in check.found for check in checks)


@pytest.mark.parametrize("text", ["stages: [", "name: x\nfoo: 1\n"])
def test_a_recipe_that_cannot_be_read(run: Path, diagnose: Diagnose, text: str) -> None:
    (run / "recipe.yaml").write_text(text)
    assert diagnose(run, "recipe").state == "wrong"
    assert diagnose(run, "progress").state == "note"


def test_a_recipe_that_does_not_say_everything(run: Path, diagnose: Diagnose) -> None:
    stored = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text("".join(line for line in stored.splitlines(True) if "clip_norm" not in line))
    check = diagnose(run, "recipe")
    assert check.state == "note"
    assert "training.clip_norm: None → 1.0" in check.found
    loop.pretrain(load_recipe(run / "recipe.yaml"), run)


def test_a_damaged_newest_checkpoint_is_a_note_and_the_one_before_counts(run: Path, diagnose: Diagnose) -> None:
    truncate(run / "checkpoints/step_24/__0_0.distcp")
    check = diagnose(run, "checkpoints")
    assert check.state == "note"
    assert "step_24 (the checksum of __0_0.distcp is wrong)" in check.found
    assert "goes back to step 16" in check.mend
    assert "step 16 of 24" in diagnose(run, "progress").found
    assert "of step 24, the last checkpoint of step 16" in diagnose(run, "encoder").found
    assert "rows go on to step 24" in diagnose(run, "rows").found


def test_no_whole_checkpoint_left_is_wrong(run: Path, diagnose: Diagnose) -> None:
    truncate(run / "checkpoints/step_24/__0_0.distcp")
    (run / "checkpoints/step_16/.metadata").unlink()
    check = diagnose(run, "checkpoints")
    assert check.state == "wrong"
    assert "step_16 (.metadata is missing)" in check.found
    assert "removes them" in diagnose(run, "rows").mend


@pytest.mark.parametrize("state", ["{", "[]", '{"format_version": 1}', '{"format_version": 9}'])
def test_a_checkpoint_with_a_broken_state_file_is_damaged(run: Path, diagnose: Diagnose, state: str) -> None:
    (run / "checkpoints/step_24/state.json").write_text(state)
    check = diagnose(run, "checkpoints")
    assert check.state == "note"
    assert "step_24" in check.found


def test_a_checkpoint_under_another_name_is_damaged(run: Path, diagnose: Diagnose) -> None:
    shutil.move(run / "checkpoints/step_24", run / "checkpoints/step_25")
    assert "step_25 (it holds step 24)" in diagnose(run, "checkpoints").found


def test_leftovers_of_saves_cut_short_are_named(run: Path, diagnose: Diagnose) -> None:
    (run / "checkpoints/.step_32.1.tmp").mkdir()
    (run / "checkpoints/step_40").mkdir()
    (run / ".encoder.safetensors.1.tmp").write_bytes(b"half")
    check = diagnose(run, "checkpoints")
    assert check.state == "note"
    assert ".step_32.1.tmp" in check.found
    assert "step_40" in check.found
    assert ".encoder.safetensors.1.tmp" in check.found


def test_nan_in_the_weights_is_wrong_although_the_checksums_are_right(run: Path, diagnose: Diagnose) -> None:
    name = poison(run / "checkpoints/step_24")
    check = diagnose(run, "checkpoints")
    assert check.state == "wrong"
    assert name in check.found


def test_an_unfinished_run_goes_on_with_the_command_that_is_given(
    whole_run: Path, run: Path, diagnose: Diagnose
) -> None:
    shutil.rmtree(run / "checkpoints/step_24")
    check = diagnose(run, "progress")
    assert check.state == "note"
    verb, recipe, option, out = shlex.split(check.mend.removeprefix("it goes on with nextvid "))
    assert (verb, option) == ("pretrain", "--out")
    loop.pretrain(load_recipe(recipe), Path(out))
    assert diagnose(run, "progress").found == "step 24 of 24 is saved: finished"
    assert (run / "encoder.safetensors").read_bytes() == (whole_run / "encoder.safetensors").read_bytes()


def test_a_held_run_is_running_and_half_written_files_are_no_fault(run: Path, diagnose: Diagnose) -> None:
    truncate(run / "checkpoints/step_24/__0_0.distcp")
    truncate(run / "checkpoints/step_16/__0_0.distcp")
    (run / "checkpoints/.step_32.1.tmp").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')
    with (run / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert diagnose(run, "in use") == Check(
            "in use", "note", "running now: another process holds the folder, and files may change"
        )
        assert [check.name for check in examine_run(run) if check.state == "wrong"] == []
        assert ".tmp" not in diagnose(run, "checkpoints").found
        assert "cut short" not in diagnose(run, "rows").found
    assert diagnose(run, "in use").state == "ok"
    assert diagnose(run, "checkpoints").state == "wrong"


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_a_corrupt_encoder_is_wrong_and_an_absent_one_a_note(
    run: Path, diagnose: Diagnose, content: bytes | None
) -> None:
    if content is None:
        (run / "encoder.safetensors").unlink()
    else:
        (run / "encoder.safetensors").write_bytes(content)
    check = diagnose(run, "encoder")
    assert check.state == ("note" if content is None else "wrong")
    loop.pretrain(load_recipe(run / "recipe.yaml"), run)
    assert diagnose(run, "encoder").state == "ok"


def test_nan_in_the_encoder_is_wrong(run: Path, diagnose: Diagnose) -> None:
    file = run / "encoder.safetensors"
    with safe_open(str(file), framework="pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    name = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], float("inf"))
    save_file(tensors, file, metadata)
    check = diagnose(run, "encoder")
    assert check.state == "wrong"
    assert name in check.found


def test_an_encoder_of_another_shape_than_the_recipe_is_wrong(run: Path, diagnose: Diagnose) -> None:
    stored = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub("mlp_hidden: 48", "mlp_hidden: 64", stored, count=1))
    check = diagnose(run, "encoder")
    assert check.state == "wrong"
    assert "mlp_hidden: 48 → 64" in check.found


def test_a_config_beside_that_says_something_else_is_a_note(run: Path, diagnose: Diagnose) -> None:
    (run / "config.json").write_text("{}")
    assert diagnose(run, "encoder").state == "note"


def test_a_last_line_that_is_cut_is_a_note(run: Path, diagnose: Diagnose) -> None:
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-40])
    check = diagnose(run, "rows")
    assert check.state == "note"
    assert "cut short" in check.found
    assert "rows end at step 23" in check.found


def test_a_line_in_the_middle_that_is_no_row_is_wrong_and_stops_the_next_start(run: Path, diagnose: Diagnose) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:30]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    check = diagnose(run, "rows")
    assert check.state == "wrong"
    assert "line 5" in check.found
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        loop.pretrain(load_recipe(run / "recipe.yaml"), run)


def test_steps_that_do_not_rise_are_wrong(run: Path, diagnose: Diagnose) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(True)
    (run / "metrics.jsonl").write_text("".join([*lines[:10], *lines[8:]]))
    check = diagnose(run, "rows")
    assert check.state == "wrong"
    assert "do not rise at 9" in check.found


def test_rows_that_are_missing_or_from_elsewhere_are_notes(run: Path, diagnose: Diagnose) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(True)
    (run / "metrics.jsonl").write_text("".join([*lines[:5], *lines[7:]]))
    assert "rows of steps 6, 7 are missing" in diagnose(run, "rows").found
    stored = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(stored.replace("log_every: 1", "log_every: 12"))
    assert "there are rows of steps 1, 2, 3 and 17 more" in diagnose(run, "rows").found


@pytest.mark.parametrize(("name", "value"), [("flow", float("nan")), ("grad_norm", float("inf"))])
def test_figures_that_are_not_finite_are_named_with_their_step(
    run: Path, diagnose: Diagnose, edit_rows: EditRows, name: str, value: float
) -> None:
    edit_rows(run, lambda number, row: row.update({name: value}) if number == 6 else None)
    check = diagnose(run, "numbers")
    assert check.state == "wrong"
    assert f"{name} is not finite at step 7" in check.found


def test_a_batch_of_one_has_no_spread_and_that_is_right(run: Path, diagnose: Diagnose, edit_rows: EditRows) -> None:
    edit_rows(run, lambda _, row: row.update(feature_spread=float("nan"), alignment_skill=float("nan")))
    assert diagnose(run, "numbers").state == "wrong"
    stored = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(stored.replace("batch: 2", "batch: 1"))
    assert diagnose(run, "numbers").state == "ok"


def test_learning_rates_of_another_schedule_are_wrong(run: Path, diagnose: Diagnose, edit_rows: EditRows) -> None:
    assert "at each of 24 rows" in diagnose(run, "learning rates").found
    edit_rows(run, lambda number, row: row["lr"].update(encoder=2e-3) if number == 9 else None)
    check = diagnose(run, "learning rates")
    assert check.state == "wrong"
    assert "step 10: encoder 0.002, not 0.001" in check.found


def write_footage(run: Path, found: int, broken: int, later: int) -> None:
    named = [(f"/videos/{number}.mp4", "truncated") for number in range(broken)]
    summary = {"found": found, "broken": {"truncated": broken}, "too_short": 1}
    kept = {"manifest": "footage/0.parquet", "digest": "", "summary": summary, "broken_files": named}
    (run / "footage.json").write_text(json.dumps({"format_version": 2, "sources": {"videos": kept}}))
    rows = [{"path": f"/videos/later-{number}.mp4", "reason": "unreadable"} for number in range(later)]
    (run / "broken_files.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("broken", "later", "state"), [(5, 5, "ok"), (5, 6, "note"), (30, 21, "wrong")])
def test_broken_files_count_by_their_share(run: Path, diagnose: Diagnose, broken: int, later: int, state: str) -> None:
    write_footage(run, 100, broken, later)
    check = diagnose(run, "footage")
    assert check.state == state
    assert f"{broken + later} of 100 files broken" in check.found
    assert state == "ok" or "/videos/0.mp4" in check.mend


def test_a_file_that_broke_twice_counts_once() -> None:
    assert judge_footage(10, 1, 0, ["a"], ["a"]).found.startswith("1 of 10")


@pytest.mark.parametrize(
    ("name", "text", "line"), [("footage.json", "{", "cannot be read"), ("broken_files.jsonl", "{}\n", "line 1")]
)
def test_lists_of_footage_that_cannot_be_read_are_wrong(
    run: Path, diagnose: Diagnose, name: str, text: str, line: str
) -> None:
    (run / name).write_text(text)
    check = diagnose(run, "footage")
    assert check.state == "wrong"
    assert line in check.found


def test_room_for_checkpoints() -> None:
    states = [judge_space(free, 100, finished=False).state for free in (200, 199, 99)]
    assert states == ["ok", "note", "wrong"]
    assert judge_space(0, 100, finished=True).state == "ok"


def test_a_check_that_fails_itself_is_named_and_stops_no_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Check:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("nextvid.doctor.saved.check_encoder", broken)
    checks = {check.name: check for check in examine_run(run)}
    assert checks["encoder"].state == "wrong"
    assert "ZeroDivisionError: by nothing" in checks["encoder"].found
    assert checks["disk"].state == "ok"
