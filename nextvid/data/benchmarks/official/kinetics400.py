"""Kinetics-400 as its authors and the CVDF released it: two CSV files and a folder of clips a split.

``train.csv`` and ``val.csv`` (or ``validate.csv``) name a class, a video and the seconds of every clip, which lies in
``train`` or ``val`` as ``<youtube_id>_<start:06d>_<end:06d>.mp4``, flat or in a folder a class. Of 246,535 and 19,907
annotated clips the CVDF's copy holds 241,258 and 19,881: what is missing is counted and named.
"""

from collections.abc import Iterator
from pathlib import Path

from nextvid.data.benchmarks.official import listing
from nextvid.data.benchmarks.official.classes import check_classes, numbering, pinned
from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.film import Split
from nextvid.errors import UserError

NAME = "kinetics400"
CLASSES = pinned("classes-kinetics400.txt", 400)
OFFICIAL: dict[Split, int] = {"train": 246_535, "test": 19_907}

_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "validate", "validation")}
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_LABEL_FILES = ("label_map.txt", "label_map_k400.txt", "kinetics_400_labels.csv")
_REPLACEMENTS = ("replacement/replacement_for_corrupted_k400", "replacement")
_ID_LENGTH = 11


def read(root: Path, split: str) -> OfficialSplit:
    """The split as it lies under ``root``; the validation part is ``test``.

    A clip in ``replacement/replacement_for_corrupted_k400`` takes the place of the one with its YouTube id. Raises
    ``UserError`` for a missing or malformed annotation or folder, an unknown class, or a label file in another order.
    """
    part = listing.checked(root, split, NAME)
    _check_label_files(root)
    words = _SPLITS[part]
    annotations = [f"{folder}{word}.csv" for word in words for folder in ("", "annotations/")]
    annotation = listing.needed(listing.first_file(root, annotations), root, annotations, "annotation")
    folders = [f"{folder}{word}" for word in words for folder in ("", "videos/")]
    folder = listing.needed(listing.first_folder(root, folders), root, folders, "folder of clips")
    rows = list(_rows(annotation, words))
    files = _with_replacements(listing.files_by_name(folder, (".mp4",)), root, rows)
    found, missing = listing.existing(rows, files)
    listing.check_some(found, missing, folder, annotation)
    return OfficialSplit(NAME, part, CLASSES, found, OFFICIAL[part], len(rows), missing)


def _rows(path: Path, words: tuple[str, ...]) -> Iterator[Listed]:
    labels = numbering(CLASSES)
    for number, row in listing.read_rows(path, _COLUMNS):
        where = f"{path}, line {number}"
        if row.get("split") and row["split"] not in words:
            raise UserError(f"{where}: the row is of the split {row['split']!r}, not {words[0]}; get the file anew.")
        start, end = (_seconds(row[column], where, column) for column in ("time_start", "time_end"))
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
        yield Listed(name, listing.label_of(row["label"], labels, where, "Kinetics-400"))


def _seconds(text: str, where: str, column: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{where}: {column} is {text!r}, not a whole number of seconds; get the file anew.") from None


def _with_replacements(files: dict[str, str], root: Path, rows: list[Listed]) -> dict[str, str]:
    folder = listing.first_folder(root, _REPLACEMENTS)
    if folder is None:
        return files
    by_id = {name[:_ID_LENGTH]: path for name, path in listing.files_by_name(folder, (".mp4",)).items()}
    return files | {row.path: by_id[row.path[:_ID_LENGTH]] for row in rows if row.path[:_ID_LENGTH] in by_id}


def _check_label_files(root: Path) -> None:
    path = listing.first_file(root, [f"{folder}{name}" for name in _LABEL_FILES for folder in ("", "annotations/")])
    if path is None:
        return
    if path.suffix == ".csv":
        found = [row["name"] for _, row in listing.read_rows(path, ("id", "name"))]
    else:
        found = [line.strip() for line in listing.read_text(path).splitlines() if line.strip()]
    check_classes(found, CLASSES, path, "Kinetics-400")
