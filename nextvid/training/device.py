"""Where a run computes, and what its processor is slow at."""

import os
import platform
import time
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from nextvid.errors import UserError

SLOW = 2.0
"""From this many times float32's time on, bfloat16 is not worth its name."""


def device_of(name: str, index: int = 0) -> torch.device:
    """The device of ``training.device``: ``auto`` is CUDA where there is one, of several the one numbered ``index``.

    Raises ``UserError`` where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device=cuda, but this machine shows no CUDA device; use training.device=cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, index) if name == "cuda" else torch.device(name)


def warn_of_slow_half(precision: str, device: torch.device, console: Console) -> None:
    """bfloat16 without instructions for it is emulated, which can make a step tens of times slower: say so."""
    if precision != "bfloat16" or device.type != "cpu":
        return
    ratio = seconds_of_product(torch.bfloat16) / seconds_of_product(torch.float32)
    if ratio > SLOW:
        console.print(
            f"[yellow]training.precision=bfloat16, but on this processor bfloat16 products take {ratio:.0f} times as long as "
            "float32; use training.precision=float32",
            highlight=False,
        )


def warn_of_idle_devices(device: torch.device, processes: int, console: Console) -> None:
    """One process uses one device: say so where there are more of them."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if processes == 1 and count > 1:
        console.print(
            f"[yellow]this machine has {count} CUDA devices, and one process uses one; for all of them: torchrun "
            f"--nproc-per-node {count} -m nextvid pretrain …",
            highlight=False,
        )


def seconds_of_product(dtype: torch.dtype) -> float:
    """The best of three products of the size that a small model's layers have."""
    a, b = torch.ones(512, 128, dtype=dtype), torch.ones(128, 256, dtype=dtype)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def matmul_peak(device: torch.device, precision: Literal["float32", "bfloat16"], products: int = 5) -> float:
    """Operations a second of the best product of large square matrices, on the threads that torch has: a limit to measure by.

    float32 on CUDA is what training would use there (TF32 where it is allowed).
    """
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    seconds = []
    for _ in range(products + 1):
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """What a figure of speed was measured on."""
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """The processor's own name where Linux tells it, else its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
