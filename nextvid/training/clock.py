"""Seconds by part of a step, for whoever asks where the time goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Clock:
    """Sums the seconds of named parts; on an accelerator it waits for the queue at both ends, which slows a step a little."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens inside to ``name``."""
        started = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - started

    def now(self) -> float:
        """Seconds on a steady clock once all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Add every forward pass of each child of ``module`` to the child's name."""
        handles = []
        for name, child in module.named_children():
            started: list[float] = []

            def begin(_module: nn.Module, _inputs: Any, started: list[float] = started) -> None:
                started.append(self.now())

            def end(
                _module: nn.Module, _inputs: Any, _output: Any, name: str = name, started: list[float] = started
            ) -> None:
                self.seconds[name] += self.now() - started.pop()

            handles += [child.register_forward_pre_hook(begin), child.register_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def timed(clock: Clock | None, name: str) -> AbstractContextManager[None]:
    """``clock.part(name)``, or nothing where there is no clock."""
    return clock.part(name) if clock else nullcontext()
