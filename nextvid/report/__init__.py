"""Pictures of a run and its page: one HTML file that needs nothing beside it."""

from nextvid.report.page import save_figures, write_report
from nextvid.report.pictures import Drawings, FeatureMaps, Pictures, RollOut

__all__ = ["Drawings", "FeatureMaps", "Pictures", "RollOut", "save_figures", "write_report"]
