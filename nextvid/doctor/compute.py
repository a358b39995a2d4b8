"""What computes: accelerators, cores and threads, and how fast they multiply."""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from nextvid.doctor.check import Check, Finding, combine, first_line
from nextvid.limits import ROOT, usable_cores

GIB = 2**30
SLOWER = 1.1
"""bfloat16 counts as slower from this many times float32's time on; below it is the clock's noise."""
WORTH_IT = 1.2
"""Several threads are worth it from this many times one thread's rate on."""


@dataclass(frozen=True)
class Accelerator:
    """A CUDA device: name, memory in bytes, whether it has bfloat16 instructions, and why it cannot compute (or None)."""

    name: str
    memory: int
    bfloat16: bool
    problem: str | None = None


@dataclass(frozen=True)
class DeviceFacts:
    """What torch and the machine say of accelerators.

    ``built_for``: the CUDA version that torch is built for, or None; ``problem``: why it finds no device, or None;
    ``nvidia``: whether an NVIDIA driver shows; ``visible``: ``$CUDA_VISIBLE_DEVICES``, or None where it is not set.
    """

    built_for: str | None
    found: tuple[Accelerator, ...]
    problem: str | None
    nvidia: bool
    visible: str | None


def check_devices(root: Path = ROOT) -> Check:
    """The CUDA devices that torch can use, or why it can use none."""
    return judge_devices(_find_devices(root))


def judge_devices(facts: DeviceFacts) -> Check:
    """How ``facts`` stand: hardware that is there and lies idle is wrong, no hardware is a note."""
    if facts.found:
        return combine("devices", [_judge_accelerator(device) for device in facts.found], "")
    if not facts.nvidia:
        return Check("devices", "note", "CPU only: this machine shows no NVIDIA driver")
    if facts.built_for is None:
        return Check(
            "devices",
            "wrong",
            "this machine has an NVIDIA driver, but torch is built for the CPU only, so the GPU lies idle",
            "install torch built for CUDA: see pytorch.org/get-started",
        )
    if facts.visible is not None and facts.visible.strip() in ("", "-1"):
        return Check(
            "devices",
            "wrong",
            f"CUDA_VISIBLE_DEVICES='{facts.visible}' hides every GPU from torch",
            "unset CUDA_VISIBLE_DEVICES",
        )
    return Check(
        "devices",
        "wrong",
        f"this machine has an NVIDIA driver, but torch (for CUDA {facts.built_for}) finds no device that it can use"
        + (f": {facts.problem}" if facts.problem else ""),
        "update the driver, or install a torch that is built for an older CUDA; in a container, start it with --gpus all",
    )


def _judge_accelerator(device: Accelerator) -> Finding:
    shown = f"{device.name} ({device.memory / GIB:.1f} GiB, {'' if device.bfloat16 else 'no '}bfloat16)"
    if device.problem:
        mend = "install a torch that is built for this GPU, see pytorch.org/get-started, or use training.device=cpu"
        return Finding("wrong", f"{shown} cannot compute: {device.problem}", mend)
    if not device.bfloat16:
        return Finding("note", shown, "use training.precision=float32")
    return Finding("ok", shown)


def _find_devices(root: Path) -> DeviceFacts:
    import torch  # noqa: PLC0415

    problem, found = None, []
    try:
        torch.cuda.init()
        found = [_accelerator(number) for number in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        problem = first_line(error)
    return DeviceFacts(
        built_for=torch.version.cuda,
        found=tuple(found),
        problem=problem,
        nvidia=(root / "proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _accelerator(number: int) -> Accelerator:
    import torch  # noqa: PLC0415

    facts, problem = torch.cuda.get_device_properties(number), None
    try:
        ones = torch.ones(16, 16, device=f"cuda:{number}")
        problem = None if float((ones @ ones).sum()) == 16**3 else "a product of ones comes out wrong"
    except RuntimeError as error:
        problem = first_line(error)
    return Accelerator(facts.name, facts.total_memory, facts.major >= 8, problem)


def check_cores(root: Path = ROOT) -> Check:
    """Threads of torch against the cores that this process may use."""
    import torch  # noqa: PLC0415

    return judge_cores(
        os.cpu_count() or 1, usable_cores(root), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    )


def judge_cores(cores: int, usable: float, threads: int, omp: str | None) -> Check:
    """How ``threads`` threads suit a machine of ``cores`` cores, ``usable`` of which (or a part of one) may be used."""
    fit = max(1, math.floor(usable))
    found = f"{usable:g} of {cores} cores usable; torch uses {threads} thread{'s' * (threads != 1)}"
    found += f" (OMP_NUM_THREADS={omp})" if omp is not None else ""
    if threads > max(1, math.ceil(usable)):
        return Check("cores", "wrong", f"{found}: they wait for one another", f"use training.threads={fit}")
    if threads < fit / 2:
        return Check("cores", "note", f"{found}: cores lie idle", f"use training.threads={fit}")
    return Check("cores", "ok", found)


def check_arithmetic() -> Check:
    """Measured: float32 products with one thread and with all, and bfloat16's time against float32's."""
    import torch  # noqa: PLC0415

    from nextvid.training.device import seconds_of_product  # noqa: PLC0415

    threads = torch.get_num_threads()
    one = _rate(1)
    every = _rate(threads) if threads > 1 else one
    half, single = (min(seconds_of_product(d) for _ in range(3)) for d in (torch.bfloat16, torch.float32))
    return judge_arithmetic(one, every, threads, half / single)


def judge_arithmetic(one: float, every: float, threads: int, ratio: float) -> Check:
    """How the rates (GFLOP/s) of one thread and of all, and bfloat16's time as a multiple of float32's, stand."""
    found = f"float32 products: {one:.0f} GFLOP/s with one thread"
    found += f", {every:.0f} with {threads}" if threads > 1 else ""
    found += f"; bfloat16 takes {ratio:.2g} times float32's time"
    mends = []
    if ratio > SLOWER:
        mends.append("on the CPU use training.precision=float32")
    if threads > 1 and every < WORTH_IT * one:
        mends.append("more threads bring little now: let other work end first, or use training.threads=1")
    return Check("arithmetic", "note" if mends else "ok", found, "; ".join(mends))


def _rate(threads: int) -> float:
    """GFLOP/s of large float32 products with so many threads."""
    import torch  # noqa: PLC0415

    from nextvid.training.device import matmul_peak  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return matmul_peak(torch.device("cpu"), "float32", products=3) / 1e9
    finally:
        torch.set_num_threads(before)
