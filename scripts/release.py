"""Make a finished run a released encoder: its weights in half precision, its recipe and curves. Figures of former weights go.

python scripts/release.py runs/nextvid-tiny --name nextvid-tiny
python scripts/pictures.py nextvid-tiny
nextvid probe nextvid-tiny --benchmark moving-sprites --json > nextvid/released/nextvid-tiny/probe_….json
"""

import argparse
import json
import shutil
from pathlib import Path

from nextvid.files import replace_file
from nextvid.inference.released import RELEASES, WEIGHTS
from nextvid.training.checkpoint import step_of
from nextvid.training.release import load_objective, write_release
from nextvid.training.start import find_whole

COPIED = ("recipe.yaml", "environment.json", "metrics.jsonl")


def main() -> None:
    """Copy what the run leaves, and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    folder = RELEASES / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("probe_*.json"), *folder.glob("generation.json")):
        stale.unlink()
    objective, recipe = load_objective(arguments.run)
    step = step_of(find_whole(arguments.run).path)
    write_release(objective, recipe, step, folder / WEIGHTS)
    for name in COPIED:
        shutil.copy(arguments.run / name, folder / name)
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    replace_file(folder / "metrics.jsonl", "".join(row for row in rows if json.loads(row)["step"] <= step).encode())
    environment = json.loads((folder / "environment.json").read_text())
    environment["command"] = ["nextvid", "pretrain", f"recipes/{recipe.name}.yaml"]
    replace_file(folder / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())
    print(f"{folder}: step {step} of {recipe.steps}, {(folder / WEIGHTS).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
