"""The demo under several seeds: what its encoder reads beside an untrained one, with intervals.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --out runs/seeds

Runs ``nextvid demo`` once a seed (skipping those that have finished) and writes
``benchmarks/results/demo-seeds.json``.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from nextvid.files import replace_json

RESULTS = Path(__file__).parent / "results" / "demo-seeds.json"


def main() -> None:
    """Run the seeds one after the other and collect their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    arguments = parser.parse_args()
    runs = [run_seed(seed, arguments.out / f"seed-{seed}") for seed in arguments.seeds]
    replace_json(
        RESULTS,
        {
            "command": "python benchmarks/demo_seeds.py --seeds " + " ".join(str(s) for s in arguments.seeds),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
            f"torch {torch.__version__}",
            "runs": runs,
            "summary": {task: summary(task, runs) for task in runs[0]["probe"]},
        },
    )
    for task, line in json.loads(RESULTS.read_text())["summary"].items():
        print(task, line)


def run_seed(seed: int, out: Path) -> dict[str, Any]:
    """One demo; figures from its ``metrics.json``."""
    metrics = out / "metrics.json"
    if not metrics.is_file() or "probe" not in json.loads(metrics.read_text()):
        subprocess.run([sys.executable, "-m", "nextvid", "demo", "--seed", str(seed), "--out", str(out)], check=True)
    return {"seed": seed, **json.loads(metrics.read_text())}


def summary(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Top-1 by seed, here and untrained, and in how many seeds the intervals are apart."""
    here = [run["probe"][task] for run in runs]
    random = [figures["baselines"]["random_init"] for figures in here]
    apart = sum(h["ci95"][0] > r["ci95"][1] for h, r in zip(here, random, strict=True))
    return {
        "level": here[0]["level"],
        "trained": [round(h["top1"], 4) for h in here],
        "random_init": [round(r["top1"], 4) for r in random],
        "seeds_with_intervals_apart": apart,
    }


if __name__ == "__main__":
    main()
