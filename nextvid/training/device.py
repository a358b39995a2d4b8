"""Where a run computes, and what its processor is slow at."""

import time

import torch
from rich.console import Console

from nextvid.errors import UserError

SLOW = 2.0
"""From this many times float32's time on, bfloat16 is not worth its name."""


def device_of(name: str) -> torch.device:
    """The device of ``training.device``: ``auto`` is CUDA where there is one. Raises ``UserError`` where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device=cuda, but this machine shows no CUDA device; use training.device=cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


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


def seconds_of_product(dtype: torch.dtype) -> float:
    """The best of three products of the size that a small model's layers have."""
    a, b = torch.ones(512, 128, dtype=dtype), torch.ones(128, 256, dtype=dtype)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return min(seconds)
