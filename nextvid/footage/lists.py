"""Lists of footage: text with commas, tabs or spaces, as V-JEPA and VideoMAE write them, and Parquet."""

import csv
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nextvid.data.locations import Place, is_remote, written
from nextvid.errors import UserError, nearest
from nextvid.footage.listing import MEDIA_SUFFIXES, Entry

PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "file_name", "filepath", "image", "url")
LABEL_COLUMNS = ("label", "class", "category", "target", "cls")

_MEDIA = "|".join(re.escape(suffix[1:]) for suffix in sorted(MEDIA_SUFFIXES, key=len, reverse=True))
_PATH_THEN_REST = re.compile(rf"^(?P<path>.*\.(?:{_MEDIA}))(?:[\s,]+(?P<rest>.*))?$", re.IGNORECASE)


def read_list(path: Path) -> Iterator[Entry]:
    """The rows of a text list.

    With a header that names a path column (``path``, ``video``, ``file``, …), labels stand in ``label`` (``class``, …).
    Without one a row is a path, then any numbers (VideoMAE's duration or first frame), then the label, which may be
    missing or -1; commas, tabs or spaces between them. A path may hold spaces. Relative paths are relative to the list
    where such a file is there, else to the working folder. Raises ``UserError`` for a list without a row.
    """
    try:
        text = path.read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"The list {path} cannot be read: {error.strerror}.") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise UserError(f"The list {path} has no row. A row is a path, and a label if there is one.")
    header = _header(lines[0])
    rows = _with_header(lines, *header) if header else map(_parse_row, lines)
    for name, label in rows:
        yield Entry(Place(_resolved(name, path.parent)), label)


def _header(line: str) -> tuple[str, list[str]] | None:
    """The delimiter and the column names, where ``line`` has a column for paths."""
    for delimiter in ("\t", ",", " "):
        names = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter))]
        if any(name in PATH_COLUMNS for name in names):
            return delimiter, names
    return None


def _with_header(lines: Sequence[str], delimiter: str, names: list[str]) -> Iterator[tuple[str, str | None]]:
    path = next(names.index(name) for name in PATH_COLUMNS if name in names)
    label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    for row in csv.reader(itertools.islice(lines, 1, None), delimiter=delimiter):
        if len(row) > path and row[path].strip():
            yield row[path].strip(), _label(row[label]) if label is not None and len(row) > label else None


def _parse_row(line: str) -> tuple[str, str | None]:
    line = line.strip()
    found = _PATH_THEN_REST.match(line) if not line.startswith('"') else None
    fields = [found["path"], *_split(found["rest"] or "")] if found else _split(line)
    return fields[0].strip(), _label(fields[-1]) if len(fields) > 1 else None


def _split(text: str) -> list[str]:
    for delimiter in ("\t", ",", " "):
        if delimiter in text:
            return [part.strip() for part in next(csv.reader([text], delimiter=delimiter)) if part.strip()]
    return [text] if text else []


def _label(text: str) -> str | None:
    return None if text.strip() in ("", "-1") else text.strip()


def _resolved(name: str, folder: Path) -> str:
    if is_remote(name) or name.startswith("file://"):
        return name
    beside = os.path.join(os.path.abspath(folder), name)
    return written(beside if os.path.exists(beside) or not os.path.exists(name) else os.path.abspath(name))


def read_parquet(path: Path) -> Iterator[Entry]:
    """The rows of a Parquet file with a path column; those of a manifest of nextvid are read anew, places and labels kept.

    Raises ``UserError`` where it has no such column.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"The list {path} is not a Parquet file that can be read: {error}") from error
    names = {name.lower(): name for name in file.schema_arrow.names}
    where = next((names[name] for name in PATH_COLUMNS if name in names), None)
    if where is None:
        raise UserError(
            f"The list {path} has the columns {', '.join(names.values())}, and none for the path"
            f"{nearest('path', names)}; call it one of {', '.join(PATH_COLUMNS)}."
        )
    label = next((names[name] for name in LABEL_COLUMNS if name in names), None)
    columns = [where, *([label] if label else []), *(name for name in ("offset", "length", "name") if name in names)]
    for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
        for row in batch.to_pylist():
            if row[where]:
                text = None if label is None or row[label] is None else _label(str(row[label]))
                place = Place(
                    _resolved(row[where], path.parent), row.get("offset") or 0, row.get("length"), row.get("name") or ""
                )
                yield Entry(place, text)
