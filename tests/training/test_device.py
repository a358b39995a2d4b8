"""Where a run computes."""

import io

import pytest
import torch
from rich.console import Console

from nextvid.errors import UserError
from nextvid.training import device


def test_auto_is_what_the_machine_has() -> None:
    assert device.device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.device_of("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(UserError, match="shows no CUDA device"):
        device.device_of("cuda")


@pytest.mark.parametrize(
    ("precision", "half", "warned"), [("bfloat16", 9.0, 1), ("bfloat16", 0.5, 0), ("float32", 9.0, 0)]
)
def test_slow_half_precision_is_said(monkeypatch: pytest.MonkeyPatch, precision: str, half: float, warned: int) -> None:
    monkeypatch.setattr(device, "seconds_of_product", lambda dtype: half if dtype == torch.bfloat16 else 1.0)
    text = io.StringIO()
    device.warn_of_slow_half(precision, torch.device("cpu"), Console(file=text, width=300))
    assert text.getvalue().count("9 times as long") == warned
