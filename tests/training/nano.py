"""The smallest recipe that still has every part, for tests that run whole trainings."""

from typing import Any

from nextvid.config import Recipe, parse_recipe

LR = {"encoder": [0.0, 1e-3], "predictor": 1e-3, "decoder": [1e-3, 5e-4]}


def nano_recipe(**changes: Any) -> Recipe:
    """Two stages of 6 and 6 steps on the built-in footage; ``changes`` replace top-level keys."""
    part = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}
    stage = {"batch": 3, "fps": 6, "size": 16, "lr": LR, "ema": 0.9}
    raw = {
        "name": "nano",
        "encoder": {**part, "patch": 8},
        "objective": {
            "name": "nextvid",
            "predictor": part,
            "decoder": part,
            "target": {"downsample": 2, "basis": "dct", "whiten": 0.5},
        },
        "data": {
            "sources": [{"builtin": "film", "weight": 0.5}, {"builtin": "moving-sprites", "level": "plain"}],
            "workers": 0,
        },
        "stages": [
            {"name": "first", "steps": 6, "frames": 4, **stage},
            {"name": "second", "steps": 6, "frames": 6, **stage, "batch": 2, "draws": 2},
        ],
        "training": {"checkpoint_every": 4, "log_every": 3, "threads": 1},
    }
    return parse_recipe({**raw, **changes}, "nano")
