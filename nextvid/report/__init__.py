"""Pictures of a run and its page: one HTML file that needs nothing beside it."""

from nextvid.report.page import save_figures, write_report
from nextvid.report.pictures import Pictures

__all__ = ["Pictures", "save_figures", "write_report"]
