"""Hours and cost: operations over what the machines do a second."""

from dataclasses import dataclass

from nextvid.errors import UserError
from nextvid.planning.machines import Machine, Precision


@dataclass(frozen=True)
class Speed:
    """So many devices at a share of their peak; ``reached`` says how that share is known."""

    devices: int
    peak: float
    utilisation: float
    reached: str

    @property
    def flops_per_second(self) -> float:
        """Useful operations a second of all devices."""
        return self.devices * self.peak * self.utilisation

    def seconds(self, flops: int) -> float:
        """How long so many operations take."""
        return flops / self.flops_per_second


def speed_of(machine: Machine, devices: int, precision: Precision, flops: int, hours: float | None) -> Speed:
    """At the machine's utilisation; where ``hours`` are given, at that which they imply."""
    peak = machine.peak_in(precision)
    if hours is None:
        return Speed(devices, peak, machine.utilisation, machine.reached)
    if hours <= 0:
        raise UserError(f"--hours {hours:g} must be above 0")
    return Speed(devices, peak, flops / (devices * peak * hours * 3600), f"implied by {hours:g} hours")
