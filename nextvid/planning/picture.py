"""The schedule of a run as a picture: what every step does, drawn from the arrays that training follows."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.planning.numbers import short
from nextvid.planning.work import skeleton
from nextvid.report.curves import COLOURS, INK, dress
from nextvid.training.stages import Schedule, schedule_of

Line = Float[np.ndarray, " steps"]
FORMATS = (".png", ".svg", ".pdf")
RATES, WEIGHTS, MOMENTUM, LOGARITHMIC = "learning rate", "loss weight", "momentum of the average", " (logarithmic)"
HEIGHTS = {RATES: 2.0, WEIGHTS: 1.2, MOMENTUM: 1.0}
SIZES = 1.8
NAMES = 0.35
NARROW = 0.045
"""A stage of a smaller share of the steps has no room for its name beside its neighbours': they take turns in height."""


def draw_schedule(recipe: Recipe, file: Path) -> None:
    """Write the picture to ``file``. Raises ``UserError`` where its ending names no kind of picture."""
    if file.suffix not in FORMATS:
        raise UserError(f"--plot {file}: a picture ends in {', '.join(FORMATS)}")
    figure = schedule_figure(recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, facecolor="white")


def schedule_figure(recipe: Recipe) -> Figure:
    """Learning rates by part, loss weights, momentum, and what clip and batch are, over the steps; stages by turns on grey."""
    schedule = schedule_of(recipe, list(skeleton(recipe).parts()))
    panels = _panels(schedule)
    heights = [NAMES, *(HEIGHTS.get(title, SIZES) for title in panels)]
    figure = Figure(figsize=(9.5, 0.7 + 0.95 * sum(heights)), layout="constrained")
    figure.suptitle(f"{recipe.name}: {len(schedule):,} steps", fontsize=12, x=0.01, ha="left")
    names, *shown = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    _write_names(names, schedule)
    for axes, (title, lines) in zip(shown, panels.items(), strict=True):
        dress(axes, title)
        _shade(axes, schedule)
        _draw(axes, schedule, lines)
        _scale(axes, title, lines)
    shown[-1].set_xlim(1, len(schedule) + 0.5)
    shown[-1].set_xlabel("step", fontsize=9, color=INK)
    shown[-1].xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    return figure


def _panels(schedule: Schedule) -> dict[str, dict[str, Line]]:
    def of_stage(key: str) -> Line:
        values = np.array([getattr(stage, key) for stage in schedule.stages], dtype=float)
        return values[schedule.stage]

    panels = {RATES: schedule.lr, WEIGHTS: schedule.weights}
    if all(stage.ema is not None for stage in schedule.stages):
        panels[MOMENTUM] = {"ema": of_stage("ema")}
    drawn = ["batch", "frames", *(["draws"] if all(stage.draws for stage in schedule.stages) else [])]
    panels[", ".join(drawn) + LOGARITHMIC] = {key: of_stage(key) for key in drawn}
    return {title: lines for title, lines in panels.items() if lines}


def _draw(axes: Axes, schedule: Schedule, lines: dict[str, Line]) -> None:
    """Stage by stage, for from one to the next values jump; a line that lies on another is thinner than it."""
    widths = np.linspace(5, 1.5, len(lines)) if len(lines) > 1 else [2.0]
    for (name, values), colour, width in zip(lines.items(), COLOURS, widths, strict=False):
        for number, stage in enumerate(_spans(schedule)):
            steps = np.array([stage.start, stage.stop - 1])
            label = name if number == 0 else None
            axes.plot(
                steps + 1,
                values[steps],
                color=colour,
                linewidth=width,
                label=label,
                solid_capstyle="butt",
                clip_on=False,
            )
    if len(lines) > 1:
        axes.legend(fontsize=9, frameon=False, labelcolor="black", loc="upper left", bbox_to_anchor=(1.0, 1.08))


def _scale(axes: Axes, title: str, lines: dict[str, Line]) -> None:
    """Ticks at the values themselves where there are few; weights and rates from 0."""
    values = sorted({float(value) for line in lines.values() for value in np.unique(line)})
    if title.endswith(LOGARITHMIC):
        axes.set_yscale("log", base=2)
    if title == MOMENTUM or title.endswith(LOGARITHMIC):
        axes.set_yticks(values)
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.margins(y=0.2)
    if title in (RATES, WEIGHTS):
        axes.set_ylim(0, 1.15 * values[-1] or 1)


def _spans(schedule: Schedule) -> list[range]:
    ends = np.cumsum([stage.steps for stage in schedule.stages]).tolist()
    return [range(end - stage.steps, end) for stage, end in zip(schedule.stages, ends, strict=True)]


def _shade(axes: Axes, schedule: Schedule) -> None:
    for number, span in enumerate(_spans(schedule)):
        if number % 2:
            axes.axvspan(span.start + 0.5, span.stop + 0.5, color=INK, alpha=0.13, linewidth=0)


def _write_names(axes: Axes, schedule: Schedule) -> None:
    axes.axis("off")
    _shade(axes, schedule)
    raised = False
    for stage, span in zip(schedule.stages, _spans(schedule), strict=True):
        raised = not raised and len(span) < NARROW * len(schedule)
        axes.text(
            span.start + len(span) / 2, 1.3 if raised else 0.4, stage.name, transform=axes.get_xaxis_transform(),
            fontsize=9, ha="center", va="center",
        )  # fmt: skip
