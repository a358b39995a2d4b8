"""Runs beside each other: what they cost, what a probe reads from each, how they went, and in what their recipes differ."""

from nextvid.comparison.command import compare_runs, table_of

__all__ = ["compare_runs", "table_of"]
