"""Learn video encoders from unlabelled footage by masked next-frame prediction (NExT-Vid, arXiv 2512.21004)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextvid import targets
    from nextvid.inference.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "targets"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from nextvid.inference.load import load  # noqa: PLC0415

        return load
    if name == "targets":
        return importlib.import_module("nextvid.targets")
    raise AttributeError(f"module 'nextvid' has no attribute '{name}'")
