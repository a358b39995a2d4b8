"""What the gradients of a run say: does every part learn, and does none jump or drown the others?"""

import math
from collections.abc import Iterator

import numpy as np

from nextvid.doctor.check import Check, Finding, combine, some
from nextvid.doctor.curves import FEWEST, Series, ends, series, too_few
from nextvid.doctor.rows import Row

SPIKE = 50.0
"""A norm so many times the median is a spike."""
VANISHED = 1e-3
"""A part whose norm has fallen to this share of what it was no longer learns."""
DOMINATES = 30.0
"""A part whose norm is so many times that of all others together: clipping, which scales all alike, leaves them nothing."""


def check_gradients(rows: list[Row]) -> Check:
    """Has the gradient's norm jumped after the first tenth of the rows, has that of a part vanished, or does one dominate?"""
    steps, values = series(rows, "grad_norm")
    start = max(1, len(values) // 10)
    steps, values = steps[start:], values[start:]
    if len(values) < 2 * FEWEST:
        return Check("gradients", "ok", too_few(rows))
    parts = norms_by_part(rows)
    now = {part: float(np.median(ends(norms)[1])) for part, norms in parts.items()}
    found = f"grad_norm: median {np.median(values):.3g}, at most {values.max():.3g}"
    found += f"; now {', '.join(f'{part} {norm:.3g}' for part, norm in now.items())}" if now else ""
    findings = [*_spikes(steps, values), *(_vanished(parts) or _dominating(now))]
    return combine("gradients", [*findings, Finding("ok", found)], "")


def norms_by_part(rows: list[Row]) -> dict[str, Series]:
    """The norms of every part that has enough of them to be judged, in the rows that have them."""
    inner = [norms for row in rows if isinstance(norms := row.get("grad_norms"), dict)]
    found = {part: np.array([norms[part] for norms in inner if part in norms], dtype=float) for part in _names(inner)}
    finite = {part: norms[np.isfinite(norms)] for part, norms in found.items()}
    return {part: norms for part, norms in finite.items() if len(norms) >= 2 * FEWEST}


def _names(inner: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(part for norms in inner for part in norms))


def _spikes(steps: Series, values: Series) -> Iterator[Finding]:
    spikes = steps[values > SPIKE * np.median(values)].astype(int)
    if len(spikes):
        mend = "look at the losses there; a lower training.clip_norm or lower learning rates soften them"
        yield Finding("note", f"more than {SPIKE:g} times the median at step {some(spikes)}", mend)


def _vanished(parts: dict[str, Series]) -> list[Finding]:
    mend = "it learns nothing there: right where a stage's weights leave its loss out; else lower its learning rate, start anew"
    findings = []
    for part, norms in parts.items():
        last = ends(norms)[1]
        now, before = float(np.median(last)), float(np.median(norms[: -len(last)]))
        if now == before == 0:
            findings.append(Finding("note", f"{part} has no gradient in any row", mend))
        elif now < VANISHED * before:
            findings.append(Finding("note", f"the gradient of {part} vanished: {before:.3g} → {now:.3g}", mend))
    return findings


def _dominating(now: dict[str, float]) -> list[Finding]:
    mend = "clipping leaves the others nothing: lower the weight of the loss behind it, or its learning rate"
    findings = []
    for part, norm in now.items():
        others = math.hypot(*(other for name, other in now.items() if name != part))
        if others and norm > DOMINATES * others:
            found = f"the gradient of {part} is {norm / others:.3g} times that of all other parts together"
            findings.append(Finding("note", found, mend))
    return findings
