"""The command line: one function a verb; each parses, calls and prints."""

import os
import sys

from rich.console import Console

from nextvid.cli import footage, learning, measuring
from nextvid.cli.common import app, rank
from nextvid.errors import LostError, Stopped, UserError

__all__ = ["app", "footage", "learning", "main", "measuring"]

UNSOUND, INPUT_IS_WRONG, STOPPED = 1, 2, 75


def main() -> None:
    """Run a verb; exit codes: 0 done, 2 wrong input, 75 stopped with everything saved, 1 anything else."""
    # Threads that spin at a barrier while another process holds their core make a step many times slower; threads that
    # sleep at once make every step slower. A short spin has neither fault. Read when torch is imported, so set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "RANK" in os.environ:
        # Every process would be told that it need not look for unused parameters (training/parallel.py).
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except UserError as error:
        _say_error(error)
        sys.exit(INPUT_IS_WRONG)
    except Stopped as stopped:
        if rank() == 0:
            said = f"nextvid: {stopped}; the same command goes on"
            Console(stderr=True).print(said, highlight=False, markup=False, soft_wrap=True)
        sys.exit(STOPPED)
    except LostError as lost:
        Console(stderr=True).print(f"nextvid: {lost}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(UNSOUND)


def _say_error(error: UserError) -> None:
    """Of processes that ``torchrun`` has started one a machine says what is wrong for all, and each what is wrong for it."""
    alone = getattr(error, "rank", None)
    if alone is None and os.environ.get("LOCAL_RANK", "0") != "0":
        return
    who = f"nextvid: rank {alone}:" if alone is not None else "nextvid:"
    Console(stderr=True).print(f"{who} {error}", style="red", highlight=False, markup=False, soft_wrap=True)
