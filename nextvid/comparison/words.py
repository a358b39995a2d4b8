"""What runs have spent, in words."""

from typing import Any


def spent_rows(runs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """What every run has spent, in words."""
    return [
        ("objective", [run["objective"] for run in runs]),
        ("parameters, encoder", [f"{run['parameters']['encoder'] / 1e6:.2f} M" for run in runs]),
        ("parameters, all trained", [f"{sum(run['parameters'].values()) / 1e6:.2f} M" for run in runs]),
        ("steps", [f"{run['steps']:,}" for run in runs]),
        ("clips", [_number(run["clips"]) for run in runs]),
        ("operations", [f"{_operations(run['flops'])} ({run['compute']:.3g})" for run in runs]),
        ("seconds", [_number(run["seconds"]) for run in runs]),
        (
            "clips a second",
            ["–" if run["clips_per_second"] is None else f"{run['clips_per_second']:.1f}" for run in runs],
        ),
        ("machine", [run["machine"] or "–" for run in runs]),
    ]


def _number(value: int | float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _operations(flops: float) -> str:
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e9:.3g} GFLOP"
