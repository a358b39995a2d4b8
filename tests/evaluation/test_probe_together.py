"""Two processes probe as one would: the same choice, the same answers, and every test clip once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_clips import TintedClips
from probed_together import CASES, TEST, probe

from nextvid.training.distributed import World

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, Any]]]]:
    """What each of two processes came to."""
    folder = tmp_path_factory.mktemp("together")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [*TORCHRUN, str(HERE / "probed_together.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_choose_and_answer_as_one(by_two, tmp_path: Path, case: str):
    """41 train and 23 test clips, batches of 10 and 9 held-out clips: nothing divides by two."""
    alone = probe(case, tmp_path, World())
    truth = torch.tensor([TintedClips(TEST, 2).labels(index)["tint"] for index in range(TEST)])
    for one, two in zip(alone, by_two[0][case], strict=True):
        assert (two["best"]["lr"], two["best"]["weight_decay"]) == (one["best"]["lr"], one["best"]["weight_decay"])
        assert [m["held_out_top1"] for m in two["grid"]] == [m["held_out_top1"] for m in one["grid"]]
        losses = [[member["held_out_loss"] for member in found["grid"]] for found in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
        assert two["effect"] == one["effect"]
        readable = [sample for sample in range(TEST) if sample not in CASES[case].get("broken", ())]
        assert two["samples"].tolist() == one["samples"].tolist() == readable
        right = [int((found["probabilities"].argmax(-1) == truth[found["samples"]]).sum()) for found in (one, two)]
        assert right[0] == right[1]
        torch.testing.assert_close(two["probabilities"], one["probabilities"], atol=2e-3, rtol=0)
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], tensor, atol=2e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_test_clip_is_read_by_one_process(by_two, case: str):
    for found in by_two[0][case]:
        first, second = found["shares"]
        assert (len(first), len(second)) == (12, 11)
        assert sorted([*first, *second]) == list(range(TEST))


@pytest.mark.parametrize("case", CASES)
def test_all_processes_know_the_same(by_two, case: str):
    for one, two in zip(by_two[0][case], by_two[1][case], strict=True):
        assert (one["best"], one["grid"]) == (two["best"], two["grid"])
        assert torch.equal(one["probabilities"], two["probabilities"])
        assert all(torch.equal(one["weights"][name], two["weights"][name]) for name in one["weights"])
