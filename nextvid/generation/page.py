"""The page of what was drawn: its figures, the film and the contact sheet."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nextvid.files import replace_file
from nextvid.generation.measuring import COLUMNS, remarks_of, rows_of
from nextvid.report.template import template

FORMAT_VERSION = 1


def write_page(
    file: Path, found: dict[str, Any], title: str, sheet: bytes, film: bytes, remarks: Sequence[str]
) -> None:
    """Write a page that needs nothing beside it; ``sheet`` is a PNG file, ``film`` a GIF file."""
    settings = {
        key: found[key] for key in ("model", "decoder", "against", "mode", "material", "settings") if key in found
    }
    text = template("generate.html.j2").render(
        format_version=FORMAT_VERSION,
        name=title,
        columns=COLUMNS,
        rows=rows_of(found),
        remarks=[*remarks_of(found), *remarks],
        sheet=_data(sheet, "png"),
        film=_data(film, "gif"),
        settings=yaml.safe_dump(settings, sort_keys=False),
    )
    replace_file(file, text.encode())


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
