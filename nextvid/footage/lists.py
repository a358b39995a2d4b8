"""Lists of footage: text with commas, tabs or spaces, as V-JEPA and VideoMAE write them, and Parquet."""

import csv
import itertools
import os
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from nextvid.data.locations import Place, is_remote, open_place, written
from nextvid.data.manifest import is_manifest
from nextvid.errors import UserError, nearest
from nextvid.footage.listing import MEDIA_SUFFIXES, Entry

PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "file_name", "filepath", "image", "url")
PART_COLUMNS = ("offset", "length", "name")
LABEL_COLUMNS = ("label", "class", "category", "target", "cls")

_MEDIA = "|".join(re.escape(suffix[1:]) for suffix in sorted(MEDIA_SUFFIXES, key=len, reverse=True))
_PATH_THEN_REST = re.compile(rf"^(?P<path>.*\.(?:{_MEDIA}))(?:[\s,]+(?P<rest>.*))?$", re.IGNORECASE)


def read_list(path: str) -> Iterator[Entry]:
    """The rows of a text list, a local file or a URL.

    With a header that names a path column (``path``, ``video``, ``file``, …), labels stand in ``label`` (``class``, …).
    Without one a row is a path, then any numbers (VideoMAE's duration or first frame), then the label, which may be
    missing or -1; commas, tabs or spaces between them. A path may hold spaces. Relative paths are relative to the list
    where such a file is there, else to the working folder. Raises ``UserError`` for a list without a row.
    """
    try:
        with open_place(Place(path)) as file:
            text = file.read().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"The list {path} cannot be read: {error.strerror or error}.") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise UserError(f"The list {path} has no row. A row is a path, and a label if there is one.")
    try:
        header = _header(lines[0])
        for name, label in _with_header(lines, *header) if header else map(_parse_row, lines):
            yield Entry(Place(_resolved(name, os.path.dirname(path))), label)
    except csv.Error as error:
        raise UserError(f"The list {path} cannot be read as rows of text: {error}.") from error


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
    """A label as text that any file can hold; bytes that are not UTF-8 are written out."""
    text = text.strip().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return None if text in ("", "-1") else text


def _resolved(name: str, folder: str) -> str:
    if is_remote(name) or name.startswith("file://"):
        return name
    if is_remote(folder):
        return f"{folder}/{name}"
    beside = os.path.join(os.path.abspath(folder), name)
    return written(beside if os.path.exists(beside) or not os.path.exists(name) else os.path.abspath(name))


def read_parquet(path: str) -> Iterator[Entry]:
    """The rows of a Parquet file with a path column; those of a manifest of nextvid are read anew, places and labels kept.

    Raises ``UserError`` where it has no such column.
    """
    with open_place(Place(path)) as opened:
        try:
            file = pq.ParquetFile(opened)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"The list {path} is not a Parquet file that can be read: {error}") from error
        names = {name.lower(): name for name in file.schema_arrow.names}
        where = next((names[name] for name in PATH_COLUMNS if name in names and _is_text(file, names[name])), None)
        if where is None:
            raise UserError(
                f"The list {path} has the columns {', '.join(names.values())}, and none for the path as text"
                f"{nearest('path', names)}; call it one of {', '.join(PATH_COLUMNS)}."
            )
        label = next((names[name] for name in LABEL_COLUMNS if name in names), None)
        parts = PART_COLUMNS if is_manifest(path) else ()
        for batch in file.iter_batches(columns=list(dict.fromkeys([where, *([label] if label else []), *parts]))):
            for row in batch.to_pylist():
                if row[where]:
                    text = None if label is None or row[label] is None else _label(str(row[label]))
                    offset, length, name = (row.get(part) for part in PART_COLUMNS)
                    resolved = _resolved(row[where], os.path.dirname(path))
                    yield Entry(Place(resolved, offset or 0, length, name or ""), text)


def _is_text(file: pq.ParquetFile, name: str) -> bool:
    kind = file.schema_arrow.field(name).type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
