"""Clips a second of the training loop against an earlier version of it, on the same machine in the same run.

    python benchmarks/step_speed.py --before ae9eafe --repeats 3

Checks the earlier version out beside this one and trains its own tiny recipe with both, in turn: as it was then (its precision
was bfloat16, which many processors only emulate) and in float32, in which this version runs. The loop is ``nextvid pretrain``
with everything in it (loader, logging, checkpoints), start-up apart. Then the parts of a step of both, without a loader
(``step_parts.py``). Writes ``benchmarks/results/step-speed.json``, or ``--out``. Leave the machine alone meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from nextvid.files import replace_json
from nextvid.training.device import describe

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "step-speed.json"
RECIPE = "nextvid/recipes/tiny.yaml"
FLOAT32 = ["training.precision=float32"]


def main() -> None:
    """Measure in turn, and write the medians with all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="ae9eafe", help="A commit; by default the end of the first issue.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        _git("worktree", "add", "--force", "--detach", str(before), arguments.before)
        try:
            found = _measure(before, Path(folder), arguments.repeats, arguments.steps)
        finally:
            _git("worktree", "remove", "--force", str(before))
    found = {
        "command": f"python benchmarks/step_speed.py --before {arguments.before} --repeats {arguments.repeats}",
        "before": _git("rev-parse", arguments.before),
        "machine": describe(torch.device("cpu")),
        **found,
    }
    replace_json(arguments.out, found)
    print(json.dumps(found["clips_per_second"], indent=2))
    print({name: f"{ratio:.2f}" for name, ratio in found["ratios"].items()})


def _measure(before: Path, folder: Path, repeats: int, steps: int) -> dict[str, Any]:
    recipe = folder / "tiny.yaml"
    recipe.write_text((before / RECIPE).read_text())
    loops: dict[str, list[float]] = {"before, as it was": [], "before, float32": [], "now, float32": []}
    parts: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    for number in range(repeats):
        runs: tuple[tuple[Path, list[str], int], ...] = (
            (before, [], steps // 3),
            (before, FLOAT32, steps),
            (ROOT, FLOAT32, steps),
        )
        for (tree, overrides, count), (name, rates) in zip(runs, loops.items(), strict=True):
            rates.append(_loop(tree, recipe, overrides, folder / f"run-{number}-{name}", count))
            print(f"{name}: {rates[-1]:.1f} clips/s", flush=True)
        for name, tree in (("before", before), ("now", ROOT)):
            parts[name].append(_parts(tree, recipe))
    medians = {name: statistics.median(rates) for name, rates in loops.items()}
    return {
        "clips_per_second": medians,
        "measured": loops,
        "ratios": {
            "now / before, as it was": medians["now, float32"] / medians["before, as it was"],
            "now / before, float32": medians["now, float32"] / medians["before, float32"],
        },
        "parts_milliseconds": {name: _median_parts(found) for name, found in parts.items()},
    }


def _loop(tree: Path, recipe: Path, overrides: list[str], out: Path, steps: int) -> float:
    """Clips a second of ``nextvid pretrain`` between its first logged row and its last."""
    _python(tree, "-m", "nextvid", "pretrain", str(recipe), *overrides, "--steps", str(steps), "--out", str(out))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return (rows[-1]["clips"] - rows[0]["clips"]) / (rows[-1]["time"]["seconds"] - rows[0]["time"]["seconds"])


def _parts(tree: Path, recipe: Path) -> dict[str, Any]:
    return json.loads(_python(tree, str(HERE / "step_parts.py"), str(recipe), *FLOAT32).splitlines()[-1])


def _median_parts(found: list[dict[str, Any]]) -> dict[str, float]:
    names = list(found[0]["parts"])
    parts = {name: 1000 * statistics.median(f["parts"][name] for f in found) for name in names}
    return {"step": 1000 * statistics.median(f["step_seconds"] for f in found), **parts}


def _python(tree: Path, *arguments: str) -> str:
    """Run Python with one version of the package on the path."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "GOMP_SPINCOUNT": "10000"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree.parent, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
