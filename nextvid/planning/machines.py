"""Devices that a run may be planned for: their memory and peak, and the share of the peak that training reaches."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from nextvid.errors import UserError, nearest
from nextvid.files import read_json
from nextvid.training.device import matmul_peak, processor_name, seconds_of_product

Precision = Literal["float32", "bfloat16"]
MIB = 2**20
ASSUMED_UTILISATION = 0.35
"""Of a GPU's peak; nobody has measured it for this project."""
MEASURED = Path(__file__).parent / "measured.json"
"""What steps on a CPU have reached, and how far plans were from them: written by ``benchmarks/plan.py``."""


@dataclass(frozen=True)
class Machine:
    """One device.

    ``memory``: bytes that a program may use, as nvidia-smi shows them. ``peak``: dense operations a second by precision, sums
    in float32, float32 without TF32. ``utilisation``: the share of the peak that useful operations reach, and ``reached``
    says how that is known.
    """

    name: str
    title: str
    memory: int
    peak: dict[str, float]
    source: str
    utilisation: float = ASSUMED_UTILISATION
    reached: str = "assumed"

    @property
    def is_cpu(self) -> bool:
        """Whether it computes as this project's code does on a CPU."""
        return self.name == "cpu"

    def peak_in(self, precision: Precision) -> float:
        """Operations a second. Raises ``UserError`` where it cannot compute in ``precision``."""
        if precision not in self.peak:
            raise UserError(
                f"{self.title} has no {precision}; use training.precision={next(iter(self.peak))}, or another --gpu"
            )
        return self.peak[precision]


def _gpu(name: str, title: str, mib: int, bfloat16: float | None, float32: float, source: str) -> Machine:
    half = {} if bfloat16 is None else {"bfloat16": bfloat16 * 1e12}
    return Machine(name, title, mib * MIB, {**half, "float32": float32 * 1e12}, source)


GPUS = {
    machine.name: machine
    for machine in (
        _gpu("b200", "B200 180 GB", 183359, 2250.0, 75.0, "NVIDIA HGX B200 datasheet"),
        _gpu("h200", "H200 SXM 141 GB", 143771, 989.4, 66.9, "NVIDIA H200 datasheet"),
        _gpu("h100", "H100 SXM 80 GB", 81559, 989.4, 66.9, "NVIDIA H100 whitepaper"),
        _gpu("h100-pcie", "H100 PCIe 80 GB", 81559, 756.0, 51.2, "NVIDIA H100 whitepaper"),
        _gpu("a100", "A100 80 GB", 81920, 312.0, 19.5, "NVIDIA A100 datasheet"),
        _gpu("a100-40gb", "A100 40 GB", 40960, 312.0, 19.5, "NVIDIA A100 datasheet"),
        _gpu("l40s", "L40S 48 GB", 46068, 362.0, 91.6, "NVIDIA L40S datasheet"),
        _gpu("a6000", "RTX A6000 48 GB", 46068, 154.8, 38.7, "NVIDIA RTX A6000 datasheet"),
        _gpu("rtx5090", "RTX 5090 32 GB", 32607, 209.5, 104.8, "NVIDIA RTX Blackwell whitepaper"),
        _gpu("rtx4090", "RTX 4090 24 GB", 24564, 165.2, 82.6, "NVIDIA Ada whitepaper"),
        _gpu("rtx3090", "RTX 3090 24 GB", 24576, 71.0, 35.6, "NVIDIA GA102 whitepaper"),
        _gpu("l4", "L4 24 GB", 23034, 121.0, 30.3, "NVIDIA L4 datasheet"),
        _gpu("t4", "T4 16 GB", 15360, None, 8.1, "NVIDIA T4 datasheet"),
    )
}


def names() -> list[str]:
    """What ``--gpu`` takes."""
    return [*GPUS, "cpu"]


def machine_of(name: str | None, precision: Precision) -> Machine:
    """The machine of this name; without one, the device that training would use here, measured.

    Raises ``UserError`` for a name that is not known.
    """
    if name is None and torch.cuda.is_available():
        return _cuda_here(precision)
    if name is None or name == "cpu":
        return _cpu_here(precision)
    known = name.lower().replace("_", "-").replace(" ", "").removeprefix("nvidia")
    if known not in GPUS:
        raise UserError(f"--gpu {name} is not known{nearest(known, names())}; known are {', '.join(names())}")
    return GPUS[known]


def with_utilisation(machine: Machine, utilisation: float | None) -> Machine:
    """The machine at the user's own share of the peak. Raises ``UserError`` where it is none."""
    if utilisation is None:
        return machine
    if not 0 < utilisation <= 1:
        raise UserError(f"--utilisation {utilisation:g} must lie above 0 and be 1 at most: it is a share of the peak")
    return replace(machine, utilisation=utilisation, reached="given")


def cpu_utilisation() -> float:
    """Of ``matmul_peak`` in float32: what ``tiny`` reached where it was measured."""
    return float(read_json(MEASURED)["utilisation"]["tiny"])


def _cpu_here(precision: Precision) -> Machine:
    """A product in emulated bfloat16 can take minutes, so its peak is float32's over how much longer a small one takes."""
    peak = matmul_peak(torch.device("cpu"), "float32")
    if precision == "bfloat16":
        peak *= seconds_of_product(torch.float32) / seconds_of_product(torch.bfloat16)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = torch.get_num_threads()
    title = f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"
    return Machine(
        "cpu", title, memory, {precision: peak}, "measured here", cpu_utilisation(), "measured with tiny on one thread"
    )


def _cuda_here(precision: Precision) -> Machine:
    device = torch.device("cuda")
    memory = torch.cuda.get_device_properties(device).total_memory
    peak: dict[str, float] = {precision: matmul_peak(device, precision)}
    return Machine("here", torch.cuda.get_device_name(device), memory, peak, "measured here")
