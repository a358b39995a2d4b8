"""The tests of whole trainings have the smallest recipe; a machine's peak is not measured here."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "training"))

PEAK = 1e11


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("nextvid.planning.machines.matmul_peak", lambda *_: PEAK)
    return PEAK
