"""Curves of a run, from the rows of its ``metrics.jsonl``."""

import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, LINE, GRID = "#808890", "#d6542b", "#80889040"
COLOURS = ("#d6542b", "#2b7fd6", "#3f9b57", "#9b59b6", "#c49a1a", "#1aa6a6", "#808890")
SMOOTHING_ROWS = 9
OUTSIDE = 0.01

SKILL = "_skill"
HEALTH = {
    "grad_norm": "gradient norm",
    "grad_norms": "gradient norm by part",
    "feature_spread": "feature spread over clips",
    "effective_rank": "effective rank of features",
    "alignment_over_flow": "alignment over flow",
    "ema_distance": "distance to the moving average",
    "copying": "copying: error to the next frame over error to the last",
    "probe": "probe",
    "psnr": "PSNR of held-out pictures, dB",
    "lr": "learning rate",
}
UNTRAINED = "probe_untrained"
NOT_DRAWN = ("step", "stage", "loss", "clips", "pictures", "time", "skipped", UNTRAINED)
BY_PART = ("grad_norms", "lr")
LOGARITHMIC = ("grad_norm", "grad_norms")
NOW_AND_THEN = ("probe", "psnr")
SKIPPED = "skipped steps"
COPIES = 1.0
"""Near this ``copying`` a healthy run stands."""

Band = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Steps, and the lowest and highest value that is healthy there."""


def panels(rows: list[dict[str, Any]], band: Mapping[str, Band] | None = None) -> list[Figure]:
    """A figure of its own for every quantity that the rows have, so that a narrow page can set one below the other.

    ``band``: by quantity, what is healthy; it is shaded.
    """
    return [_figure(rows, [panel], 1, band or {}) for panel in _present(rows)]


def curves(rows: list[dict[str, Any]], columns: int = 2, band: Mapping[str, Band] | None = None) -> Figure:
    """All panels in one figure: each row faint, a running mean on top, stages apart by thin lines, skipped steps as ticks."""
    return _figure(rows, _present(rows), columns, band or {})


@dataclass(frozen=True)
class Line:
    """One run of several in a figure: its rows, where each stands on the axis of what was spent, and its colour."""

    rows: list[dict[str, Any]]
    spent: Float[np.ndarray, " rows"]
    colour: str


def overlay(lines: list[Line]) -> list[Figure]:
    """A figure for every quantity that any of the runs has, all runs in it, over the operations spent (10^12)."""
    titles = dict(entry for line in lines for entry in _present(line.rows) if entry[0] != "grad_norms")
    return [_overlaid(lines, key, title) for key, title in titles.items()]


def _overlaid(lines: list[Line], key: str, title: str) -> Figure:
    figure = Figure(figsize=(4.6, 2.3), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    dress(axes, title)
    for line in lines:
        rows = [(spent, row) for spent, row in zip(line.spent / 1e12, line.rows, strict=True) if key in row]
        if rows:
            values = np.array([_encoder_rate(row[key]) for _, row in rows], dtype=float)
            spent = [at for at, _ in rows]
            axes.plot(spent, values, color=line.colour, linewidth=0.6, alpha=0.25)
            axes.plot(spent, running_mean(values), color=line.colour, linewidth=1.6)
    _fit_axis(axes, key, np.array([_encoder_rate(row[key]) for line in lines for row in line.rows if key in row]))
    axes.set_xlabel("TFLOP", fontsize=8, color=INK)
    return figure


def _encoder_rate(value: Any) -> float:
    """Of a learning rate by part that of the encoder, which every method has."""
    return float(value["encoder"] if isinstance(value, dict) else value)


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element with a transparent ground and the page's own letters."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _present(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The method's own losses, each with its skill, and then what every method has."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    losses = [key for key in keys if key not in (*NOT_DRAWN, *HEALTH) and not key.endswith(SKILL)]
    own = [(name, title) for key in losses for name, title in ((key, f"{key} loss"), (key + SKILL, f"{key}: skill"))]
    return [(key, title) for key, title in [*own, *HEALTH.items()] if key in keys]


def _figure(rows: list[dict[str, Any]], shown: list[tuple[str, str]], columns: int, band: Mapping[str, Band]) -> Figure:
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.3 * lines), layout="constrained")
    figure.patch.set_alpha(0)
    for number, (key, title) in enumerate(shown):
        axes = figure.add_subplot(lines, columns, number + 1)
        dress(axes, title)
        _mark_stages(axes, rows)
        if key in band:
            _shade(axes, band[key], rows[-1]["step"])
        _mark_skips(axes, rows)
        if key in BY_PART:
            _draw_parts(axes, rows, key)
        else:
            _draw(axes, rows, key)
    return figure


def dress(axes: Axes, title: str) -> None:
    """The page's look: a title on the left, thin lines, letters in the page's grey."""
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.patch.set_alpha(0)
    axes.tick_params(which="both", colors=INK, labelsize=8, length=2)
    axes.grid(color=GRID, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _mark_stages(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for before, after in itertools.pairwise(rows):
        if before.get("stage") != after.get("stage"):
            axes.axvline(before["step"], color=INK, linewidth=0.8, linestyle=":")


def _mark_skips(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """A tick at the foot of every row in whose window a step was skipped."""
    pairs = itertools.pairwise([{"skipped": 0}, *(row for row in rows if "skipped" in row)])
    skips = [after["step"] for before, after in pairs if after["skipped"] > before["skipped"]]
    if skips:
        foot = axes.get_xaxis_transform()
        axes.plot(skips, [0.0] * len(skips), "|", color=INK, markersize=9, transform=foot, clip_on=False, label=SKIPPED)


def _shade(axes: Axes, band: Band, until: int) -> None:
    steps, low, high = band
    there = steps <= until
    axes.fill_between(steps[there], low[there], high[there], color=COLOURS[2], alpha=0.18, linewidth=0)


def _draw(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = np.array(points, dtype=float).T
    if key in NOW_AND_THEN:
        axes.plot(steps, values, color=LINE, linewidth=1.6, marker="o", markersize=3)
        untrained = [row[UNTRAINED] for row in rows if key == "probe" and UNTRAINED in row]
        if untrained:
            axes.axhline(untrained[-1], color=INK, linewidth=0.8, linestyle="--", label="untrained")
            axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    else:
        axes.plot(steps, values, color=LINE, linewidth=0.7, alpha=0.35)
        axes.plot(steps, running_mean(values), color=LINE, linewidth=1.6)
    _fit_axis(axes, key, values)


def _fit_axis(axes: Axes, key: str, values: np.ndarray) -> None:
    """The scale that suits a quantity, and a line at the value that parts good from bad."""
    if key.endswith(SKILL):
        _limit(axes, values)
        axes.axhline(0, color=INK, linewidth=0.8)
    if key == "copying":
        axes.axhline(COPIES, color=INK, linewidth=0.8)
    if key in LOGARITHMIC and (values > 0).any():
        axes.set_yscale("log", nonpositive="mask")


def _draw_parts(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """A line a part; rates, which often are the same, thick to thin so that each can be seen."""
    rows = [row for row in rows if key in row]
    parts = list(dict.fromkeys(part for row in rows for part in row[key]))
    widths = itertools.cycle((3.6, 2.4, 1.2, 0.8) if key == "lr" else (1.2,))
    values = np.array([[row[key].get(part, np.nan) for part in parts] for row in rows], dtype=float)
    for part, curve, colour, width in zip(parts, values.T, itertools.cycle(COLOURS), widths, strict=False):
        axes.plot([row["step"] for row in rows], curve, color=colour, label=part, linewidth=width)
    _fit_axis(axes, key, values)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)


def running_mean(values: np.ndarray, width: int = SMOOTHING_ROWS) -> np.ndarray:
    """A centred mean over ``width`` values, over fewer at the ends; what is not a number is left out."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(values)) - width // 2, 0)
    high = np.minimum(np.arange(len(values)) + width // 2 + 1, len(values))
    counted = counts[high] - counts[low]
    return np.where(counted > 0, (sums[high] - sums[low]) / np.maximum(counted, 1), np.nan)


def _limit(axes: Axes, values: np.ndarray) -> None:
    """Show the bulk of the values: a wild first row must not flatten the rest."""
    finite = values[np.isfinite(values)]
    if len(finite) > 20:
        low, high = np.quantile(finite, [OUTSIDE, 1 - OUTSIDE])
        margin = 0.15 * max(high - low, 1e-9)
        axes.set_ylim(min(low, 0.0) - margin, high + margin)
