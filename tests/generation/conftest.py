from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from nextvid.config import load_recipe
from nextvid.training.loop import pretrain

PART = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}
NANO: dict[str, Any] = {
    "encoder": {**PART, "patch": 8},
    "objective": {"name": "nextvid", "predictor": PART, "decoder": PART},
    "data": {"sources": [{"builtin": "moving-sprites", "level": "plain"}], "workers": 0},
    "stages": [
        {
            "name": "only", "steps": 1, "batch": 2, "frames": 6, "fps": 5, "size": 16,
            "lr": {"encoder": 1e-3, "predictor": 1e-3, "decoder": 1e-3},
        }
    ],
    "training": {"threads": 1},
}  # fmt: skip


def trained(folder: Path, name: str, *overrides: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(NANO))
    pretrain(load_recipe(str(file), list(overrides)), folder / name, console=Console(quiet=True))
    return folder / name


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step that reads 6 frames of 16 pixels, 5 a second, in patches of 8 pixels and 2 frames."""
    return trained(tmp_path_factory.mktemp("runs"), "flow")


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), "regression", "objective.generation=regression")
