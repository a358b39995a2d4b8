"""``nextvid doctor``: what this machine can do, whether a run is sound, and how to mend what is wrong."""

from nextvid.doctor.check import Check, report, table
from nextvid.doctor.machine import examine_machine
from nextvid.doctor.run import examine_run

__all__ = ["Check", "examine_machine", "examine_run", "report", "table"]
