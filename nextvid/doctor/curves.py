"""What the curves of a run say: does it still learn, and are its features alive?

Figures are judged over the last tenth of the rows (three at least), where it says so beside the first ones.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from nextvid.doctor.check import Check, Finding, State, combine
from nextvid.doctor.history import skipped_at
from nextvid.doctor.rows import SKILL, Row, is_health
from nextvid.training.health import alarms

Series = Float[np.ndarray, " rows"]

FEWEST = 3
"""Rows that a judgement rests on at least."""
NO_LOSS = ("step", "stage", "loss", "grad_norm", "grad_norms", "skipped", "probe", "lr", "clips", "time")
RISE = 1.02
"""A loss has risen where it ends above this many times where it began, and above all first values."""
SPREAD_SHARE = 0.05
"""Features whose spread has fallen to this share of its largest have collapsed, though they still differ a little."""
FEW_DIRECTIONS = 3.0
"""Features of a smaller effective rank tell little apart."""
FAR_BEHIND = 0.5
"""A reference this far from the online encoder, as a share of its weights, is of an encoder that is long past."""
SLOWER = 0.5
"""A run that does fewer than this share of the clips a second that it did before has become slow."""


def check_losses(rows: list[Row]) -> Check:
    """Is the loss finite at the end, and did no part of it rise over the whole run?"""
    names = ["loss", *loss_terms(rows)]
    findings, shown = [], []
    for name in names:
        steps, values = series(rows, name)
        if name == "loss" and rows and (not len(steps) or steps[-1] < rows[-1]["step"]):
            findings.append(_lost(rows))
        if len(values) < 2 * FEWEST:
            continue
        first, last = ends(values)
        change = f"{name} {np.median(first):.4g} → {np.median(last):.4g}"
        if name != "loss" and rose(values):
            mend = "look at the curve in report.html; it may be a stage's new clips or weights, else lower the learning rates"
            findings.append(Finding("note", f"rose over the whole run: {change}", mend))
        else:
            shown.append(change)
    return combine("losses", findings, ", ".join(shown) or too_few(rows))


def _lost(rows: list[Row]) -> Finding:
    step = rows[-1]["step"]
    if "loss" not in rows[-1] and step in skipped_at(rows):
        return Finding("note", f"step {step} has no loss: the steps of its row were skipped", "see stability")
    mend = "go back to a checkpoint before; lower the learning rates or use training.precision=float32"
    return Finding("wrong", f"the loss of step {step} is missing or not finite", mend)


def check_features(rows: list[Row]) -> Check:
    """Do features still differ from clip to clip, and in more than a few directions?"""
    names = ("feature_spread", "effective_rank")
    collapse = list(_alarm(rows, "collapse", names, "wrong"))
    states = [f"{name} {_end(rows, name):.3g}" for name in names if _enough(rows, name)]
    findings = collapse or [*_fallen_spread(rows), *_few_directions(rows)]
    return combine("features", findings, ", ".join(states) or too_few(rows))


def _alarm(rows: list[Row], alarm: str, names: tuple[str, ...], state: State) -> Iterator[Finding]:
    """The alarm of training that the last tenth of the rows would raise, were it one row."""
    row = {name: _end(rows, name) for name in names if _enough(rows, name)}
    text = alarms(row).get(alarm)
    if text is not None:
        found, _, mend = text.partition(". ")
        yield Finding(state, f"{alarm}: {found}", mend[:1].lower() + mend[1:])


def _fallen_spread(rows: list[Row]) -> Iterator[Finding]:
    if not _enough(rows, "feature_spread"):
        return
    last, largest = _end(rows, "feature_spread"), float(series(rows, "feature_spread")[1].max())
    if last < SPREAD_SHARE * largest:
        yield Finding(
            "wrong",
            f"collapse: feature_spread is {last:.3g}, at most {largest:.3g} before; the features of all clips look alike",
            "start anew, for it does not come back: lower the learning rates; where there is a stages.*.ema, set it nearer to 1",
        )


def _few_directions(rows: list[Row]) -> Iterator[Finding]:
    if _enough(rows, "effective_rank") and _end(rows, "effective_rank") < FEW_DIRECTIONS:
        mend = "more varied footage, or lower learning rates; what such features tell apart is little"
        yield Finding("note", f"features use {_end(rows, 'effective_rank'):.1f} directions only", mend)


def check_copying(rows: list[Row]) -> Check:
    """Are predictions of the next frame nearer to it than to the frame before?"""
    if not _enough(rows, "copying"):
        return Check("copying", "ok", _not_judged(rows, "copying"))
    return combine("copying", _alarm(rows, "copying", ("copying",), "note"), f"copying {_end(rows, 'copying'):.3g}")


def check_reference(rows: list[Row]) -> Check:
    """Does the moving average follow the online encoder, and at a distance?"""
    if not _enough(rows, "ema_distance"):
        return Check("reference", "ok", _not_judged(rows, "ema_distance"))
    last = _end(rows, "ema_distance")
    found = f"ema_distance {last:.3g}"
    if last > FAR_BEHIND:
        mend = "lower stages.*.ema, for the last stage at least, or train longer; until then load the weights 'online'"
        return Check("reference", "note", f"{found}: the moving average is far behind the online encoder", mend)
    if last == 0:
        mend = "set stages.*.ema nearer to 1, unless that is meant: features collapse easily without a slow reference"
        return Check("reference", "note", f"{found}: the moving average is the online encoder itself", mend)
    return Check("reference", "ok", found)


def check_skill(rows: list[Row]) -> Check:
    """Is what is predicted better than knowing nothing of the clip? Every column that ends in ``_skill`` is looked at."""
    names = [name for name in _columns(rows) if name.endswith(SKILL) and _enough(rows, name)]
    findings = [
        Finding(
            "note",
            f"{name} is {_end(rows, name):.2f}: what is predicted is no better than knowing nothing of the clip",
            "train longer, or hide less; a falling loss is no learning here",
        )
        for name in names
        if _end(rows, name) <= 0
    ]
    return combine("skill", findings, ", ".join(f"{n} {_end(rows, n):.2f}" for n in names) or too_few(rows))


def check_speed(rows: list[Row]) -> Check:
    """Are clips still done as fast as before in the stage that is under way?"""
    rates = clip_rates([row for row in rows if row.get("stage") == rows[-1].get("stage")]) if rows else np.empty(0)
    count = _window(len(rates))
    if len(rates) < 2 * FEWEST:
        return Check("speed", "ok", f"too few rows of this stage to judge by ({len(rates)})")
    now, before = float(np.median(rates[-count:])), float(np.median(rates[:-count]))
    found = f"{now:.3g} clips a second, {before:.3g} before in this stage"
    if now >= SLOWER * before:
        return Check("speed", "ok", found)
    mend = "see what else uses the machine, and whether footage is still read fast; nextvid doctor measures both"
    return Check("speed", "note", found, mend)


def clip_rates(rows: list[Row]) -> Series:
    """Clips a second between each row and the one before: the rows' own figure is a mean since the run's start."""
    clips = np.array([float(row.get("clips", np.nan)) for row in rows])
    seconds = np.array([float(_inner(row.get("time"), "seconds")) for row in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.diff(clips) / np.diff(seconds)
    return rates[np.isfinite(rates) & (rates > 0)]


def loss_terms(rows: list[Row]) -> list[str]:
    """The columns that are parts of the loss: numbers that are nothing else that a row is known to hold."""
    return [name for name in _columns(rows) if name not in NO_LOSS and not is_health(name)]


def series(rows: list[Row], name: str) -> tuple[Series, Series]:
    """Steps and values of a column, in the rows that have it as a finite number."""
    pairs = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
    pairs = [(step, value) for step, value in pairs if np.isfinite(value)]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def rose(values: Series) -> bool:
    """Whether the last values lie above all of the first ones, by more than they vary."""
    first, last = ends(values)
    middle = float(np.median(first))
    return float(np.median(last)) > max(float(first.max()), middle + (RISE - 1) * abs(middle))


def ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last values, as many of each as a judgement rests on."""
    count = _window(len(values))
    return values[:count], values[-count:]


def _window(count: int) -> int:
    return max(FEWEST, count // 10)


def _end(rows: list[Row], name: str) -> float:
    """The median of a column over the last tenth of its rows."""
    return float(np.median(ends(series(rows, name)[1])[1]))


def _enough(rows: list[Row], name: str) -> bool:
    return len(series(rows, name)[1]) >= FEWEST


def _columns(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inner(group: Any, name: str) -> float:
    return group.get(name, np.nan) if isinstance(group, dict) else np.nan


def too_few(rows: list[Row]) -> str:
    """What is said where there is too little to judge by."""
    return f"too few figures to judge by ({len(rows)} rows)"


def _not_judged(rows: list[Row], name: str) -> str:
    return too_few(rows) if len(series(rows, name)[1]) or not rows else f"rows of this run have no {name}"
