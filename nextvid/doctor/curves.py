"""What the curves of a run say: does it still learn, and are its features alive?

Figures are judged over the last tenth of the rows (three at least), where it says so beside the first ones.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from nextvid.doctor.check import Check, Finding, State, combine, some
from nextvid.doctor.rows import SKILL, Row, is_health

Series = Float[np.ndarray, " rows"]

FEWEST = 3
"""Rows that a judgement rests on at least."""
NO_LOSS = ("step", "stage", "loss", "grad_norm", "grad_norms", "skipped", "probe", "lr", "clips", "time")
RISE = 1.02
SPREAD_SHARE, LEAST_SPREAD = 0.05, 0.02
FEW_DIRECTIONS, ONE_DIRECTION = 3.0, 1.5
SPIKE = 50.0
SLOWER = 0.5


def check_losses(rows: list[Row]) -> Check:
    """Is the loss finite at the end, and did no part of it rise over the whole run?"""
    names = ["loss", *loss_terms(rows)]
    findings, shown = [], []
    for name in names:
        steps, values = series(rows, name)
        if name == "loss" and rows and (not len(steps) or steps[-1] < rows[-1]["step"]):
            findings.append(_lost(rows[-1]["step"]))
        if len(values) < 2 * FEWEST:
            continue
        first, last = _ends(values)
        change = f"{name} {np.median(first):.4g} → {np.median(last):.4g}"
        if name != "loss" and rose(values):
            mend = "look at the curve in report.html; it may be a stage's new clips or weights, else lower the learning rates"
            findings.append(Finding("note", f"rose over the whole run: {change}", mend))
        else:
            shown.append(change)
    return combine("losses", findings, ", ".join(shown) or _too_few(rows))


def _lost(step: int) -> Finding:
    mend = "go back to a checkpoint before; lower the learning rates or use training.precision=float32"
    return Finding("wrong", f"the loss of step {step} is missing or not finite", mend)


def check_features(rows: list[Row]) -> Check:
    """Do features still differ from clip to clip, and in more than a few directions?"""
    findings = [*_spread(rows), *_rank(rows)]
    states = [f"{name} {_end(rows, name):.3g}" for name in ("feature_spread", "effective_rank") if _enough(rows, name)]
    return combine("features", findings, ", ".join(states) or _too_few(rows))


def _spread(rows: list[Row]) -> Iterator[Finding]:
    if not _enough(rows, "feature_spread"):
        return
    values = series(rows, "feature_spread")[1]
    last, largest = float(np.median(_ends(values)[1])), float(values.max())
    if last < LEAST_SPREAD or last < SPREAD_SHARE * largest:
        yield Finding(
            "wrong",
            f"collapse: feature_spread is {last:.3g}, at most {largest:.3g} before; the features of all clips look alike",
            "start anew, for it does not come back: lower the learning rates; where there is a stages.*.ema, set it nearer to 1",
        )


def _rank(rows: list[Row]) -> Iterator[Finding]:
    if not _enough(rows, "effective_rank"):
        return
    last = _end(rows, "effective_rank")
    if last < FEW_DIRECTIONS:
        mend = "more varied footage, or lower learning rates; what such features tell apart is little"
        state: State = "wrong" if last < ONE_DIRECTION else "note"
        yield Finding(state, f"features use {last:.1f} directions only", mend)


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
    return combine("skill", findings, ", ".join(f"{n} {_end(rows, n):.2f}" for n in names) or _too_few(rows))


def check_gradients(rows: list[Row]) -> Check:
    """Has the gradient's norm jumped after the first tenth of the rows?"""
    steps, values = series(rows, "grad_norm")
    start = max(1, len(values) // 10)
    steps, values = steps[start:], values[start:]
    if len(values) < 2 * FEWEST:
        return Check("gradients", "ok", _too_few(rows))
    middle = float(np.median(values))
    found = f"grad_norm: median {middle:.3g}, at most {values.max():.3g}"
    spikes = steps[values > SPIKE * middle].astype(int)
    if not len(spikes):
        return Check("gradients", "ok", found)
    mend = "look at the losses there; a lower training.clip_norm or lower learning rates soften them"
    return Check("gradients", "note", f"{found}; more than {SPIKE:g} times the median at step {some(spikes)}", mend)


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
    first, last = _ends(values)
    middle = float(np.median(first))
    return float(np.median(last)) > max(float(first.max()), middle + (RISE - 1) * abs(middle))


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last values, as many of each as a judgement rests on."""
    count = _window(len(values))
    return values[:count], values[-count:]


def _window(count: int) -> int:
    return max(FEWEST, count // 10)


def _end(rows: list[Row], name: str) -> float:
    """The median of a column over the last tenth of its rows."""
    return float(np.median(_ends(series(rows, name)[1])[1]))


def _enough(rows: list[Row], name: str) -> bool:
    return len(series(rows, name)[1]) >= FEWEST


def _columns(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inner(group: Any, name: str) -> float:
    return group.get(name, np.nan) if isinstance(group, dict) else np.nan


def _too_few(rows: list[Row]) -> str:
    return f"too few figures to judge by ({len(rows)} rows)"
