"""Histograms for a page."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from nextvid.report.curves import INK, LINE, dress

BINS = 30
STEPS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
"""Where an axis in even ratios may have its marks."""


def histogram(values: Float[np.ndarray, " files"], title: str, unit: str, *, ratios: bool = False) -> Figure:
    """How many files have which value, in ``unit``; with ``ratios`` the bins are even in ratio, for what spans decades."""
    figure = Figure(figsize=(4.6, 2.3), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    dress(axes, title)
    low, high = float(values.min()), float(values.max())
    if ratios and low > 0 and high > 1.001 * low:
        edges = np.geomspace(low, high, BINS + 1)
        axes.set_xscale("log")
        marks = [step for step in STEPS if low <= step <= high]
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.5 if high <= 1.001 * low else 0.0
        edges = np.linspace(low - margin, high + margin, BINS + 1)
    counts, _ = np.histogram(values, edges)
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=LINE, linewidth=0)
    axes.set_xlabel(unit, fontsize=8, color=INK)
    axes.set_ylabel("files", fontsize=8, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure


def stacked(parts: dict[str, int], colours: dict[str, str]) -> Figure:
    """One bar whose parts are counts, with their names below it."""
    figure = Figure(figsize=(9.6, 0.9), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.set_axis_off()
    at = 0
    for name, count in parts.items():
        axes.barh(0, count, left=at, color=colours[name], height=1)
        at += count
    axes.set_xlim(0, max(at, 1))
    return figure
