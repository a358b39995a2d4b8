import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import recipe_mapping, small_recipe

from nextvid.doctor import Check, examine_run
from nextvid.training import loop

STEPS = 24


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that nothing has touched; its rows come every step, its checkpoints at 8, 16 and 24 (two are kept)."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    stage = {**recipe_mapping()["stages"][0], "steps": STEPS}
    training = {"checkpoint_every": 8, "log_every": 1, "threads": 1}
    data = {"sources": [{"builtin": "film"}], "workers": 0}
    loop.pretrain(small_recipe(stages=[stage], training=training, data=data), out)
    return out


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture
def diagnose() -> Callable[[Path, str], Check]:
    """The check of this name that a run's examination gives."""

    def found(run: Path, name: str) -> Check:
        return next(check for check in examine_run(run) if check.name == name)

    return found


@pytest.fixture
def edit_rows() -> Callable[[Path, Callable[[int, dict[str, Any]], object]], None]:
    """Change every row of a run's log, told its number from 0."""

    def edit(run: Path, change: Callable[[int, dict[str, Any]], object]) -> None:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            change(number, row)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return edit
