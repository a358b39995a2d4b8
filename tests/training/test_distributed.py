"""Two processes train what one would, whichever way the work is spread, and any number goes on with what any number saved."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from together import shared_recipe
from torch.distributed import FileStore

from nextvid.config import save_recipe
from nextvid.errors import UserError
from nextvid.training import loop
from nextvid.training.checkpoint import damage, each_tensor, list_checkpoints, step_of
from nextvid.training.distributed import World, agree, place_of
from nextvid.training.trainer import check_batches

HERE = Path(__file__).parent
FSDP = {"parallel": "fsdp"}
HALF = {"precision": "bfloat16"}
EVERYTHING = {**FSDP, **HALF, "activation_checkpointing": True, "micro_batch": 1}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, f"--nproc-per-node={processes}", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return dict(each_tensor(list_checkpoints(run / "checkpoints")[-1]))


def assert_equal(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def assert_close(a: Path, b: Path) -> None:
    for left, right in zip(rows(a), rows(b), strict=True):
        assert left["step"] == right["step"]
        for name in ("loss", "flow", "alignment", "grad_norm", "ema_distance"):
            assert left[name] == pytest.approx(right[name], rel=2e-4)
        assert left["lr"] == right["lr"]
    others = tensors(b)
    for key, value in tensors(a).items():
        torch.testing.assert_close(value, others[key], rtol=2e-3, atol=2e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process alone; two with DDP and FSDP, at once and in two parts each, and with micro batches."""
    out = tmp_path_factory.mktemp("runs")
    loop.pretrain(shared_recipe(), out / "alone")
    loop.pretrain(shared_recipe(), out / "from_one", until=5)
    plans = [
        [str(out / "ddp"), None, {}],
        [str(out / "ddp_parts"), 5, {}],
        [str(out / "ddp_parts"), None, {}],
        [str(out / "fsdp"), None, FSDP],
        [str(out / "fsdp_parts"), 5, FSDP],
        [str(out / "fsdp_parts"), None, FSDP],
        [str(out / "to_one"), 5, FSDP],
        [str(out / "from_one"), None, FSDP],
        [str(out / "everything"), None, EVERYTHING],
        [str(out / "ddp_micro"), None, {"micro_batch": 1}],
    ]
    done = torchrun(str(HERE / "together.py"), json.dumps(plans))
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} done" in done.stdout for rank in range(2))
    loop.pretrain(shared_recipe(), out / "to_one")
    return out


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp_micro"])
def test_two_processes_train_what_one_does(runs: Path, name: str) -> None:
    assert_close(runs / "alone", runs / name)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_interrupted_they_end_with_the_same_bits(runs: Path, name: str) -> None:
    assert_equal(runs / name, runs / f"{name}_parts")


@pytest.mark.slow
def test_three_end_with_the_same_bits(tmp_path: Path) -> None:
    """With two, a + b is b + a whatever the order."""
    plans = [
        [str(tmp_path / name), until, {"batch": 3}] for name, until in (("whole", None), ("parts", 5), ("parts", None))
    ]
    done = torchrun(str(HERE / "together.py"), json.dumps(plans), processes=3)
    assert done.returncode == 0, done.stderr
    assert_equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["to_one", "from_one"])
def test_what_two_saved_one_goes_on_with_and_the_other_way_round(runs: Path, name: str) -> None:
    assert_close(runs / "alone", runs / name)


def test_in_half_precision_in_shards_in_micro_batches_and_computing_twice_it_is_nearly_the_same(runs: Path) -> None:
    loop.pretrain(shared_recipe(**HALF), runs / "half")
    for left, right in zip(rows(runs / "half"), rows(runs / "everything"), strict=True):
        for name in ("loss", "flow", "alignment"):
            assert left[name] == pytest.approx(right[name], rel=0.02)


def test_shards_are_written_by_both(runs: Path) -> None:
    last = list_checkpoints(runs / "fsdp" / "checkpoints")[-1]
    assert {"__0_0.distcp", "__1_0.distcp"} <= {path.name for path in last.iterdir()}


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_one_step_with_everything_saved(tmp_path: Path) -> None:
    recipe = tmp_path / "nano.yaml"
    stages = [stage.model_copy(update={"steps": 100_000}) for stage in shared_recipe().stages]
    recipe.write_text(save_recipe(shared_recipe(log_every=1).model_copy(update={"stages": stages})))
    process = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node=2", "-m", "nextvid", "pretrain", str(recipe), "--out", str(tmp_path / "run")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run/metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGTERM)
    out, errors = process.communicate()
    said = [line for line in errors.splitlines() if line.startswith("nextvid: stopped by SIGTERM after step")]
    assert len(said) == 1, errors
    assert errors.count("(exitcode: 75)") + errors.count("exitcode  : 75") >= 1
    last = list_checkpoints(tmp_path / "run/checkpoints")[-1]
    assert damage(last) is None
    assert f"after step {step_of(last)};" in said[0]
    assert rows(tmp_path / "run")[-1]["step"] == step_of(last)
    assert out.count("going on") == 0


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR, MASTER_PORT is not set"),
        ({"LOCAL_RANK": "0"}, "RANK, WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2 must lie between 0 and"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=x is not a number"),
        ({"SLURM_NTASKS": "8"}, "SLURM has 8 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI has 2 processes"),
    ],
)
def test_signs_of_others_without_a_way_to_meet_are_an_error(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        place_of(environment)


def test_no_sign_of_others_is_one_process() -> None:
    assert place_of({}) is None
    assert place_of({"SLURM_NTASKS": "1", "MASTER_ADDR": "host"}) is None


def test_a_meeting_that_nobody_comes_to_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"rank 1 of 2 could not meet the others at 127.0.0.1:9 within 1 s"):
        loop.pretrain(shared_recipe(timeout=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_living_find_one_another_where_the_dead_have_written(tmp_path: Path) -> None:
    """Of the words in a store that outlives processes only those of the present ones count."""
    store = FileStore(str(tmp_path / "store"), 2)
    for name, value in {"here 0": "old", "here 1": "older", "answer 1": "old word", "good old word": ""}.items():
        store.set(name, value)
    store.set("call", json.dumps({"word": "old word", "present": {"0": "old", "1": "older"}}))
    for _ in range(2):  # and again, as after another restart
        with ThreadPoolExecutor() as pool:
            words = list(pool.map(lambda rank: agree(FileStore(str(tmp_path / "store"), 2), rank, 2, 20.0), range(2)))
        assert words[0] == words[1] != "old word"


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="no word of rank 1"):
        agree(FileStore(str(tmp_path / "store"), 2), 0, 2, 0.3)


def test_batches_that_do_not_divide_are_refused_with_what_would() -> None:
    recipe = shared_recipe()
    with pytest.raises(UserError, match="batch=4 cannot be shared evenly by 3 processes; try batch=3"):
        check_batches(recipe, 3)
    stages = [stage.model_copy(update={"batch": 12, "micro_batch": 4}) for stage in recipe.stages]
    with pytest.raises(UserError, match="micro_batch=4; try micro_batch=3"):
        check_batches(recipe.model_copy(update={"stages": stages}), 2)


def test_alone_the_mean_is_the_number_itself() -> None:
    assert World().mean([0.1, 0.2]) == [0.1, 0.2]
    assert World().most([3, 1]) == [3, 1]
