"""Does a run go as healthy runs of its recipe go?"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from nextvid.config import differences
from nextvid.doctor.check import Check, Finding, combine, some
from nextvid.doctor.curves import FEWEST, series
from nextvid.doctor.healthy import SMOOTHED_ROWS, Band, Healthy, settings_of, shipped, smoothed, spacing_of
from nextvid.doctor.rows import Row
from nextvid.doctor.subject import Subject

NAME = "healthy curves"
A_FEW = SMOOTHED_ROWS
"""A curve has left its band where it is outside for more rows in a row than this, as far apart as healthy runs' rows are: a
few odd rows move the median for about as long, and of another seed that is no fault."""
OWN = "nextvid doctor RUN --against OTHER_RUN compares with a run of your own"


@dataclass(frozen=True)
class Place:
    """A point of a curve, and the band there."""

    step: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Compared:
    """A column of a run beside its band: its last point, and where it left the band, for so many rows, if it did."""

    last: Place
    left: Place | None
    rows_outside: int


def check_healthy(subject: Subject, rows: list[Row], against: Healthy | None = None) -> Check:
    """The run beside ``against``, or beside the healthy curves that are shipped for its recipe, where its settings are theirs."""
    if subject.recipe is None:
        return Check(NAME, "ok", "not compared: the run's recipe cannot be read")
    healthy = against or shipped(subject.recipe.name)
    if healthy is None:
        return Check(NAME, "ok", f"none are shipped for the recipe {subject.recipe.name}", OWN)
    other = differences(settings_of(healthy.recipe), settings_of(subject.recipe))
    if other and against is None:
        return Check(NAME, "ok", f"not compared with {healthy.name}: settings differ in {some(other)}", OWN)
    found = compare(rows, healthy)
    if not found:
        return Check(NAME, "ok", f"too few rows to compare with {healthy.name}")
    figures = {column: asdict(compared) for column, compared in found.items()}
    aside = [Finding("ok", f"settings differ in {some(other)}")] if other else []
    return replace(combine(NAME, [*_findings(found, healthy), *aside], ""), figures=figures)


def compare(rows: list[Row], healthy: Healthy) -> dict[str, Compared]:
    """Every column that both have enough of, smoothed as the healthy curves are, at the run's own steps."""
    if len(rows) < FEWEST:
        return {}
    width = SMOOTHED_ROWS * max(healthy.spacing, spacing_of(rows))
    found = {column: _compare(rows, column, band, width, healthy.spacing) for column, band in healthy.bands.items()}
    return {column: compared for column, compared in found.items() if compared is not None}


def _compare(rows: list[Row], column: str, band: Band, width: float, spacing: float) -> Compared | None:
    steps, values = series(rows, column)
    values = smoothed(steps, values, width)
    within = (steps >= band.steps[0]) & (steps <= band.steps[-1])
    steps, values = steps[within], values[within]
    if len(steps) < FEWEST:
        return None
    low, high = (np.interp(steps, band.steps, ends) for ends in (band.low, band.high))
    places = [Place(int(s), float(v), float(a), float(b)) for s, v, a, b in zip(steps, values, low, high, strict=True)]
    runs = [run for run in _outside(places) if len(run) > A_FEW and run[-1].step - run[0].step >= A_FEW * spacing]
    return Compared(places[-1], runs[0][0] if runs else None, sum(len(run) for run in runs))


def _outside(places: list[Place]) -> Iterator[list[Place]]:
    """The unbroken rows of places outside the band."""
    run: list[Place] = []
    for place in places:
        if place.low <= place.value <= place.high:
            yield run
            run = []
        else:
            run.append(place)
    yield run


def _findings(found: dict[str, Compared], healthy: Healthy) -> Iterator[Finding]:
    mend = "look at these curves in report.html, and at what the other checks say"
    for column, compared in found.items():
        if compared.left is not None:
            text = f"{column} leaves the band at step {compared.left.step}: {compared.left}"
            yield Finding("note", f"{text}; {compared.rows_outside} rows are outside", mend)
    inside = [f"{column} {compared.last}" for column, compared in found.items() if compared.left is None]
    last = max(compared.last.step for compared in found.values())
    if inside:
        yield Finding("ok", f"within {healthy.name} up to step {last}: {', '.join(inside)}")
    else:
        yield Finding("ok", f"compared with {healthy.name} up to step {last}")
