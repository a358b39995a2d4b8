"""Rows go to every place that a recipe asks for, and only the first process has a say."""

import errno
import importlib.util
import os
import sys
from pathlib import Path

import pytest
from nano import nano_recipe

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.files import read_json
from nextvid.training import loop
from nextvid.training.logs import scalars
from nextvid.training.run import Run


def logged_recipe() -> Recipe:
    recipe = nano_recipe()
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"wandb": "nextvid-tests"})})


def test_inner_figures_are_named_after_what_they_are_in() -> None:
    row = {"step": 3, "stage": "first", "loss": 0.5, "lr": {"encoder": 1e-3}, "skipped": 0}
    assert dict(scalars(row)) == {"loss": 0.5, "lr/encoder": 1e-3, "skipped": 0}


def test_tensorboard_has_the_rows_once_however_often_a_run_goes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    loop.pretrain(nano_recipe(), tmp_path / "run", until=7)
    loop.pretrain(nano_recipe(), tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [3, 6, 9, 12]
    assert {"lr/encoder", "grad_norms/decoder", "ema_distance"} <= set(board.Tags()["scalars"])


def test_a_disk_that_takes_no_row_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_run: Run, row: dict[str, object]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Run, "append_row", full)
    with pytest.raises(UserError, match=r"the row of step 3 could not be written .*No space left on device"):
        loop.pretrain(nano_recipe(), tmp_path / "run")


def test_without_weights_and_biases_a_recipe_that_asks_for_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'nextvid\[wandb\]'"):
        loop.pretrain(logged_recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_and_biases_has_one_run_for_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed: make extras")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loop.pretrain(logged_recipe(), tmp_path / "run", until=6)
    name = read_json(tmp_path / "run/wandb.json")["id"]
    loop.pretrain(logged_recipe(), tmp_path / "run")
    written = list((tmp_path / "run/wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(written) == 2
    assert all(path.stat().st_size > 1000 for path in written)
