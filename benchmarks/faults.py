"""Runs that are killed at random moments, in saves too, and what that costs: kills survived, bytes lost, longest recovery.

A run that nothing interrupts stands beside one that is killed (SIGKILL) again and again until it has ended, alone and as one of
two processes that ``torchrun`` starts anew. Both must end with the same rows and the same weights, to the bit.

    python benchmarks/faults.py --kills 20 --out benchmarks/results/faults.json
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nextvid.config import parse_recipe, save_recipe
from nextvid.files import replace_json
from nextvid.training.checkpoint import damage, each_tensor, list_checkpoints
from nextvid.training.device import describe

FORMAT_VERSION = 1
STEPS = 400
POLL = 0.002
PATIENCE = 300.0


def recipe(steps: int) -> Any:
    """A small run that saves every few steps, so that kills meet saves."""
    part = {"width": 96, "depth": 2, "heads": 2, "mlp_hidden": 192}
    lr = {name: [1e-3, 1e-4] for name in ("encoder", "predictor", "decoder")}
    stage = {"batch": 4, "frames": 4, "fps": 6, "size": 16, "ema": 0.99, "lr": lr}
    return parse_recipe(
        {
            "name": "faults",
            "encoder": {**part, "patch": 4},
            "objective": {"name": "nextvid", "predictor": part, "decoder": part},
            "data": {"sources": [{"builtin": "moving-sprites", "level": "plain"}], "workers": 1},
            "stages": [{"name": "only", "steps": steps, **stage}],
            "training": {"checkpoint_every": 10, "log_every": 5, "threads": 1},
        },
        "faults",
    )


@dataclass
class Outcome:
    """What kills have cost. ``bytes_lost``: of complete checkpoints that a kill left damaged or took away."""

    kills: int = 0
    in_saves: int = 0
    survived: int = 0
    bytes_lost: int = 0
    steps_repeated: int = 0
    recoveries: list[float] = field(default_factory=list)
    equal: bool = False


def last_step(run: Path) -> int:
    """The last step that ``metrics.jsonl`` has a whole row of."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved_step(run: Path) -> int:
    """The step of the last complete checkpoint."""
    found = list_checkpoints(run / "checkpoints")
    return int(found[-1].name[5:]) if found else 0


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run / "checkpoints").glob(".step_*.tmp"))


def kill_until_it_ends(command: list[str], run: Path, kills: int, draw: random.Random) -> Outcome:
    """Start ``command`` and kill it, ``kills`` times; then let it end."""
    outcome = Outcome()
    for number in range(kills):
        begun, at = time.monotonic(), last_step(run)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if not _wait(process, lambda at=at: last_step(run) > at):
            break
        if number:
            outcome.recoveries.append(time.monotonic() - begun)
        time.sleep(draw.uniform(0, 1.0))
        if number % 2 and not _wait(process, lambda: saving(run)):
            break
        before = {path: _bytes(path) for path in list_checkpoints(run / "checkpoints")}
        outcome.in_saves += saving(run)
        process.send_signal(signal.SIGKILL)
        process.wait()
        outcome.kills += 1
        _count_losses(outcome, run, before)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    outcome.survived = outcome.kills if done.returncode == 0 else 0
    return outcome


def _count_losses(outcome: Outcome, run: Path, before: dict[Path, int]) -> None:
    """The newest checkpoint that was complete before the kill must be whole after it; retention may remove older ones."""
    newest = max(before, key=lambda path: int(path.name[5:]), default=None)
    damaged = [path for path in list_checkpoints(run / "checkpoints") if damage(path) is not None]
    if newest is not None and newest not in list_checkpoints(run / "checkpoints"):
        later = [p for p in list_checkpoints(run / "checkpoints") if int(p.name[5:]) > int(newest.name[5:])]
        outcome.bytes_lost += 0 if later else before[newest]
    outcome.bytes_lost += sum(_bytes(path) for path in damaged)
    outcome.steps_repeated += max(0, last_step(run) - saved_step(run))


def _wait(process: subprocess.Popen, done: Any) -> bool:
    """Until ``done``; False where the process ends before."""
    started = time.monotonic()
    while not done():
        if process.poll() is not None:
            return False
        if time.monotonic() - started > PATIENCE:
            process.kill()
            raise SystemExit(f"nothing came of it within {PATIENCE:g} s")
        time.sleep(POLL)
    return True


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def kill_ranks(arguments: list[str], run: Path, kills: int, draw: random.Random) -> Outcome:
    """Two processes under ``torchrun``, one of which is killed again and again; torchrun starts both anew."""
    outcome = Outcome()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*launcher, f"--max-restarts={kills}", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(kills):
        at, killed = last_step(run), time.monotonic()
        if not _wait(process, lambda at=at: last_step(run) > at):
            break
        if outcome.kills:
            outcome.recoveries.append(time.monotonic() - killed)
        time.sleep(draw.uniform(0, 1.0))
        ranks = _children(process.pid)
        if not ranks:
            break
        before = {path: _bytes(path) for path in list_checkpoints(run / "checkpoints")}
        os.kill(draw.choice(ranks), signal.SIGKILL)
        outcome.kills += 1
        time.sleep(0.5)
        _count_losses(outcome, run, before)
    outcome.survived = outcome.kills if process.wait() == 0 else 0
    return outcome


def _children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in listed.read_text().split()] if listed.is_file() else []


def equal(a: Path, b: Path) -> bool:
    """Whether two runs have the same rows, but for the clock, and the same weights and moments, to the bit."""
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "time"} for line in (run / "metrics.jsonl").open()]
        for run in (a, b)
    ]
    left, right = (dict(each_tensor(list_checkpoints(run / "checkpoints")[-1])) for run in (a, b))
    return rows[0] == rows[1] and left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """What is printed and kept."""
    return {
        "kills": outcome.kills,
        "kills_inside_a_save": outcome.in_saves,
        "kills_survived": outcome.survived,
        "bytes_lost": outcome.bytes_lost,
        "steps_repeated": outcome.steps_repeated,
        "longest_recovery_seconds": round(max(outcome.recoveries, default=0.0), 2),
        "ends_equal_to_the_bit": outcome.equal,
    }


def main() -> None:
    """Measure, print, keep; exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rank-kills", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder, draw = Path(tempfile.mkdtemp(prefix="faults-")), random.Random(options.seed)
    file = folder / "faults.yaml"
    file.write_text(save_recipe(recipe(options.steps)))
    command = ["-m", "nextvid", "pretrain", str(file), "--out"]
    print("a run that nothing interrupts …", flush=True)
    for name, launcher in (
        ("alone", []),
        ("ranks", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        subprocess.run([sys.executable, *launcher, *command, str(folder / name)], check=True, stdout=subprocess.DEVNULL)
    print(f"one process, killed {options.kills} times …", flush=True)
    one = kill_until_it_ends([sys.executable, *command, str(folder / "killed")], folder / "killed", options.kills, draw)
    one.equal = equal(folder / "alone", folder / "killed")
    print(f"one of two processes, killed {options.rank_kills} times …", flush=True)
    arguments = [*command, str(folder / "killed_ranks")]
    two = kill_ranks(arguments, folder / "killed_ranks", options.rank_kills, draw)
    two.equal = equal(folder / "ranks", folder / "killed_ranks")
    figures = {"one process": figures_of(one), "one of two processes": figures_of(two)}
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items()))
    if options.out:
        head = {"format_version": FORMAT_VERSION, "machine": describe(torch.device("cpu")), "command": sys.argv}
        replace_json(options.out, {**head, "steps": options.steps, **figures})
    shutil.rmtree(folder)
    lost = any(o.bytes_lost or o.survived < o.kills or not o.equal for o in (one, two))
    sys.exit(int(lost))


if __name__ == "__main__":
    main()
