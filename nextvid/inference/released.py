"""Encoders that come with the project, by name."""

from pathlib import Path

from nextvid.errors import UserError, nearest

RELEASES = Path(__file__).parents[1] / "released"
WEIGHTS = "weights.safetensors"


def default_weights(available: list[str]) -> str:
    """Which of a file's encoders to take where none is named: the moving average, or what there is instead."""
    return "ema" if "ema" in available else available[0]


def released_names() -> list[str]:
    """What ``nextvid.load`` and ``init=`` know by name."""
    return sorted(path.parent.name for path in RELEASES.glob(f"*/{WEIGHTS}"))


def is_released(name: str | Path) -> bool:
    """Whether ``name`` is that of a released encoder, and not a path that exists."""
    return str(name) in released_names() and not Path(name).exists()


def find_released(name: str | Path) -> Path:
    """The weights file of a released encoder. Raises ``UserError`` for an unknown name."""
    known = released_names()
    if str(name) not in known:
        raise UserError(
            f"there is no released encoder '{name}'{nearest(str(name), known)}; there are {', '.join(known)}"
        )
    return RELEASES / str(name) / WEIGHTS
