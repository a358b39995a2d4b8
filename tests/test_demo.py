"""The demo from end to end, with a few steps and clips."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nextvid import demo
from nextvid.config import Recipe, load_recipe


def _hurried(name: str, overrides: list[str]) -> Recipe:
    steps = {"tiny": 3, "adapt": 2}[name]
    return load_recipe(name, [*overrides, "data.workers=0", *(f"stages.{i}.steps=1" for i in range(steps))])


@pytest.mark.slow
def test_the_demo_leaves_every_figure_and_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "load_recipe", _hurried)
    for name, value in {"TRAIN_CLIPS": 80, "TEST_CLIPS": 40, "EPOCHS": 1, "DRAWN_CLIPS": 8, "ROLLED_CLIPS": 6}.items():
        monkeypatch.setattr(demo, name, value)
    demo.run_demo(tmp_path / "demo", 0, Console(quiet=True))
    found: dict[str, Any] = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    for task in ("motion", "digit", "camera"):
        probe = found["probe"][task]
        scores = [probe, probe["reference"], probe["continued"], *probe["baselines"].values()]
        assert {"random_init", "pixels", "middle_frame"} <= probe["baselines"].keys()
        assert all(score["ci95"][0] <= score["top1"] <= score["ci95"][1] for score in scores)
    generation = found["generation"]
    assert generation["next_frame"]["psnr"] > 15
    assert generation["copy_last"]["psnr"] > 15
    assert generation["others"]["this"]["psnr"] < generation["next_frame"]["psnr"]
    assert len(generation["rollout"]["psnr"]) == 4
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "continued from the reference" in page
    assert page.count("data:image/png") >= 18
