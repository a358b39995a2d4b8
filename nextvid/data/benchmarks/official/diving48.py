"""Diving48 V2 (the cleaned labels) as it was released: three JSON files and the folder ``rgb`` of MP4 clips.

``Diving48_V2_train.json`` and ``Diving48_V2_test.json`` list every clip with its label and the frames of the dive;
``Diving48_vocab.json`` says what the labels mean: take-off, somersaults, twists, flight position.
"""

from collections.abc import Iterator
from pathlib import Path

from nextvid.data.benchmarks.official import listing
from nextvid.data.benchmarks.official.classes import check_classes, pinned
from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.film import Split
from nextvid.errors import UserError

NAME = "diving48"
CLASSES = pinned("classes-diving48.txt", 48)
"""The four words of each entry of the vocabulary, joined by ``+``."""
OFFICIAL: dict[Split, int] = {"train": 15_027, "test": 1_970}

_FOLDERS = ("rgb", "videos")


def read(root: Path, split: str) -> OfficialSplit:
    """The split as it lies under ``root``.

    Raises ``UserError`` for a missing or malformed annotation or folder, a label beyond 47, or a vocabulary in another
    order. The vocabulary may be absent: the pinned map holds.
    """
    part = listing.checked(root, split, NAME)
    vocabulary = listing.first_file(root, _names("Diving48_vocab.json"))
    if vocabulary is not None:
        _check_vocabulary(vocabulary)
    names = _names(f"Diving48_V2_{part}.json")
    annotation = listing.needed(listing.first_file(root, names), root, names, "annotation")
    folder = listing.needed(listing.first_folder(root, _FOLDERS), root, _FOLDERS, "folder of videos")
    rows = list(_rows(annotation))
    found, missing = listing.existing(rows, listing.files_by_name(folder, (".mp4",)))
    listing.check_some(found, missing, folder, annotation)
    return OfficialSplit(NAME, part, CLASSES, found, OFFICIAL[part], len(rows), missing)


def _names(file: str) -> list[str]:
    return [file, f"annotations/{file}"]


def _rows(path: Path) -> Iterator[Listed]:
    for number, row in enumerate(listing.read_json(path, list, "a list of clips")):
        label = listing.field_of(row, "label", path, number)
        if type(label) is not int or not 0 <= label < len(CLASSES):
            raise UserError(
                f"{path}, entry {number}: the label is {label!r}, not a number from 0 to {len(CLASSES) - 1}; "
                "get the released file anew."
            )
        yield Listed(f"{listing.field_of(row, 'vid_name', path, number)}.mp4", label, *_frames(row, path, number))


def _frames(row: dict[str, object], path: Path, number: int) -> tuple[int | None, int | None]:
    start, end = row.get("start_frame"), row.get("end_frame")
    if start is None and end is None:
        return None, None
    if type(start) is int and type(end) is int and 0 <= start < end:
        return start, end
    raise UserError(
        f"{path}, entry {number}: the dive is from start_frame {start!r} to end_frame {end!r}, which is no range of "
        "frames; get the released file anew."
    )


def _check_vocabulary(path: Path) -> None:
    entries = listing.read_json(path, list, "a list of dives")
    found = ["+".join(map(str, entry)) if isinstance(entry, list) else str(entry) for entry in entries]
    check_classes(found, CLASSES, path, "Diving48")
