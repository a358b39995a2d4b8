"""Folders and annotation files, read once, with a sentence for whatever is wrong."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nextvid.data.benchmarks.levels import unknown
from nextvid.data.benchmarks.official.split import Listed
from nextvid.data.film import SPLITS, Split
from nextvid.errors import UserError, nearest


def checked(root: Path, split: str, benchmark: str) -> Split:
    """``split``, once it is ``train`` or ``test`` and ``root`` a folder. Raises ``UserError``."""
    if split not in SPLITS:
        raise UserError(unknown(split, "split", SPLITS, f"of {benchmark}"))
    if not root.is_dir():
        raise UserError(f"There is no folder {root} to read {benchmark} from; check the path in {benchmark}:{root}.")
    return "train" if split == "train" else "test"


def first_file(root: Path, names: Iterable[str]) -> Path | None:
    """The first of ``names`` (paths under ``root``) that is a file."""
    return next((root / name for name in names if (root / name).is_file()), None)


def first_folder(root: Path, names: Iterable[str]) -> Path | None:
    """The first of ``names`` (paths under ``root``) that is a folder."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def needed(found: Path | None, root: Path, names: Sequence[str], what: str) -> Path:
    """``found``, or a ``UserError`` that says which ``names`` were looked for under ``root``."""
    if found is None:
        raise UserError(f"{root} has no {what}: none of {', '.join(names)} is there. Put it there under such a name.")
    return found


def files_by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """The paths of the files in ``folder`` and its subfolders (one level) whose name ends so, by their name.

    Every folder is listed once and no file is opened or examined, so that a link that leads nowhere counts.
    """
    entries = _scan(folder)
    inside = [entry for subfolder in _folders(entries, suffixes) for entry in _scan(subfolder.path)]
    return {entry.name: entry.path for entry in [*inside, *entries] if _ends(entry.name, suffixes)}


def _folders(entries: list[os.DirEntry[str]], suffixes: tuple[str, ...] = ()) -> list[os.DirEntry[str]]:
    """The folders that are not hidden, by name; what ends in one of ``suffixes`` is taken for a file unexamined."""
    candidates = (entry for entry in entries if not entry.name.startswith(".") and not _ends(entry.name, suffixes))
    return sorted((entry for entry in candidates if entry.is_dir()), key=lambda entry: entry.name)


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be listed: {error.strerror}. Check its rights.") from error


def subfolder_names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The names of the folders in ``folder`` that are not hidden and do not end in ``suffixes``, sorted."""
    return [entry.name for entry in _folders(_scan(folder), suffixes)]


def file_names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The names in ``folder`` that end so in any case and are not hidden, sorted; nothing is opened or examined."""
    return sorted(entry.name for entry in _scan(folder) if _ends(entry.name, suffixes))


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")


def read_text(path: Path) -> str:
    """The UTF-8 text of ``path``. Raises ``UserError``."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); get the released file anew.") from error


def read_json(path: Path, kind: type, words: str) -> Any:
    """The JSON of ``path``, which must be a ``kind``: ``words`` say what it should hold. Raises ``UserError``."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); get the released file anew.") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} should hold {words}, but holds {type(content).__name__}; get the released file anew.")
    return content


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The line number and the fields of every row of a CSV file with a header. Raises ``UserError``."""
    lines = csv.DictReader(read_text(path).splitlines())
    absent = [column for column in columns if column not in (lines.fieldnames or ())]
    if absent:
        raise UserError(
            f"{path} has no column {', '.join(absent)}: its first line should name {', '.join(columns)}, and names "
            f"{', '.join(lines.fieldnames or ['nothing'])}. Get the released file anew."
        )
    for fields in lines:
        short = [column for column in columns if fields[column] is None]
        if short:
            raise UserError(f"{path}, line {lines.line_num}: the row ends before {short[0]}; get the file anew.")
        yield lines.line_num, fields


def field_of(row: object, name: str, path: Path, number: int) -> Any:
    """``row[name]`` of entry ``number`` of a JSON list. Raises ``UserError`` where there is none."""
    if not isinstance(row, dict) or name not in row:
        raise UserError(f"{path}, entry {number}: there is no {name!r}; get the released file anew.")
    return row[name]


def label_of(name: str, labels: dict[str, int], where: str, benchmark: str) -> int:
    """The label of class ``name``; ``UserError`` for one that the pinned map lacks."""
    if name not in labels:
        raise UserError(
            f"{where}: {name!r} is none of the {len(labels)} classes of {benchmark}{nearest(name, labels)}; "
            "get the released annotation anew."
        )
    return labels[name]


def existing(rows: Iterable[Listed], files: dict[str, str]) -> tuple[list[Listed], list[str]]:
    """The rows whose file name is in ``files``, with its path there, and the names of the others."""
    found: list[Listed] = []
    missing: list[str] = []
    for row in rows:
        if row.path in files:
            found.append(Listed(files[row.path], row.label, row.start, row.end))
        else:
            missing.append(row.path)
    return found, missing


def check_some(found: Sequence[Listed], missing: Sequence[str], folder: Path, annotation: Path) -> None:
    """Raise ``UserError`` where the annotation lists nothing, or not one of the listed files is there."""
    if not found and not missing:
        raise UserError(f"{annotation} lists no clip; get the released file anew.")
    if not found:
        raise UserError(
            f"None of the {len(missing)} files that {annotation} lists is in {folder} ({missing[0]} is the first). "
            "Unpack the videos there."
        )
