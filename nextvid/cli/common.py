"""What all verbs share: the app, the option for machines, and how figures are printed."""

import json
import os
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Learn video encoders from unlabelled footage by masked next-frame prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else on standard output.")]


def print_figures(figures: dict[str, Any], as_json: bool) -> None:
    """The figures that a machine reads, where they are asked for."""
    if as_json:
        print(json.dumps(figures, indent=2))


def rank() -> int:
    """This process among those that ``torchrun`` has started."""
    return int(os.environ.get("RANK", "0"))
