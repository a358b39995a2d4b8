"""What a run costs, said before it is spent: parameters, operations, memory, hours, disk, and a picture of the schedule."""

from nextvid.planning.command import Offer, plan
from nextvid.planning.picture import draw_schedule
from nextvid.planning.tables import WIDTH, tables_of

__all__ = ["WIDTH", "Offer", "draw_schedule", "plan", "tables_of"]
