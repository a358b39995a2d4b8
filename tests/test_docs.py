"""What the documentation tells a reader to do works as it is written."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nextvid

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = Path(nextvid.__file__).parent


def block(page: str, language: str) -> str:
    """The first block of a language on a page."""
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which a reader of docs/objectives.md has added MAE."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(PACKAGE, folder / "nextvid", ignore=shutil.ignore_patterns("__pycache__", "released"))
    (folder / "nextvid/objectives/mae.py").write_text(block("objectives.md", "python"))
    (folder / "nextvid/recipes/mae-tiny.yaml").write_text(block("objectives.md", "yaml"))
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nextvid", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


SMALL = ("data.workers=0", "stages.*.steps=2", "stages.*.batch=4", "training.log_every=1", "training.threads=1")


@pytest.mark.slow
def test_a_method_is_one_file_and_one_recipe(followed: Path) -> None:
    trained = run(followed, "pretrain", "mae-tiny", *SMALL, "--out", "run", "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["pretrain"]["steps"] == 4
    row = json.loads((followed / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert {"reconstruction", "reconstruction_skill", "feature_spread", "effective_rank"} <= set(row)
    assert "What the encoder tells apart" in (followed / "run/report.html").read_text()
    refused = run(followed, "pretrain", "mae-tiny", *SMALL, "stages.*.frames=4", "--out", "other")
    assert refused.returncode == 2
    assert "mae reads still pictures; use frames=1, not frames=4" in refused.stderr.replace("\n", " ")


def test_it_is_measured_compared_and_loaded_like_any_other(followed: Path) -> None:
    script = (
        "import json, torch, nextvid\n"
        "from nextvid.config import load_recipe\n"
        "from nextvid.training.compute import clip_flops, total_flops, with_flops\n"
        f"mae, tiny = load_recipe('mae-tiny', {list(SMALL)!r}), load_recipe('tiny')\n"
        "equal = total_flops(with_flops(mae, total_flops(tiny))) / total_flops(tiny)\n"
        "tokens = nextvid.load('run')(torch.zeros(2, 1, 3, 32, 32))\n"
        "print(json.dumps({'equal': equal, 'shape': list(tokens.shape), 'parts': list(clip_flops(mae)[0].forward)}))\n"
    )
    if not (followed / "run").is_dir():
        run(followed, "pretrain", "mae-tiny", *SMALL, "--out", "run")
    done = subprocess.run([sys.executable, "-c", script], cwd=followed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shape"] == [2, 1, 64, 128]
    assert found["parts"] == ["encoder", "decoder"]
    assert found["equal"] == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_from_a_folder_to_an_encoder_in_five_commands(tmp_path: Path) -> None:
    (tmp_path / "my_videos").mkdir()
    (tmp_path / "recipes").mkdir()
    shutil.copy(PACKAGE / "data/assets/film.mp4", tmp_path / "my_videos")
    (tmp_path / "my_videos" / "broken.mp4").touch()
    shutil.copy(PACKAGE / "recipes/adapt.yaml", tmp_path / "recipes")
    small = {
        "pretrain": SMALL,
        "probe": ("--train-clips", "48", "--test-clips", "24"),
        "prepare": ("--short-side", "64"),
    }
    commands = [shlex.split(line, comments=True) for line in block("data.md", "").splitlines()]
    assert [command[1] for command in commands] == ["scan", "prepare", "pretrain", "doctor", "probe"]
    for _, verb, *arguments in commands:
        done = run(tmp_path, verb, *arguments, *small.get(verb, ()))
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "footage.json").read_text())["broken"] == {"empty": 1}
