"""Something-Something V2 as it was released: three JSON files and a folder of WebM clips.

``something-something-v2-train.json`` and ``…-validation.json`` list every clip with its template, which the labels file
(``something-something-v2-labels.json``) numbers without the brackets around its placeholders.
"""

from collections.abc import Iterator
from pathlib import Path

from nextvid.data.benchmarks.official import listing
from nextvid.data.benchmarks.official.classes import check_classes, numbering, pinned
from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.film import Split
from nextvid.errors import UserError

NAME = "ssv2"
CLASSES = pinned("classes-ssv2.txt", 174)
OFFICIAL: dict[Split, int] = {"train": 168_913, "test": 24_777}

_WORDS: dict[Split, str] = {"train": "train", "test": "validation"}
_FOLDERS = ("20bn-something-something-v2", "videos")


def read(root: Path, split: str) -> OfficialSplit:
    """The split as it lies under ``root``; the validation part is ``test``, since the labels of the test part are closed.

    Raises ``UserError`` for a missing or malformed annotation or folder, an unknown template, or a labels file in
    another order. The labels file may be absent: the pinned map holds.
    """
    part = listing.checked(root, split, NAME)
    labels = listing.first_file(root, _names("labels"))
    if labels is not None:
        _check_labels(labels)
    names = _names(_WORDS[part])
    annotation = listing.needed(listing.first_file(root, names), root, names, "annotation")
    folder = listing.needed(listing.first_folder(root, _FOLDERS), root, _FOLDERS, "folder of videos")
    rows = list(_rows(annotation))
    found, missing = listing.existing(rows, listing.files_by_name(folder, (".webm",)))
    listing.check_some(found, missing, folder, annotation)
    return OfficialSplit(NAME, part, CLASSES, found, OFFICIAL[part], len(rows), missing)


def _names(word: str) -> list[str]:
    full = f"something-something-v2-{word}.json"
    return [full, f"labels/{full}", f"labels/{word}.json"]


def _rows(path: Path) -> Iterator[Listed]:
    labels = numbering(CLASSES)
    for number, row in enumerate(listing.read_json(path, list, "a list of clips")):
        template = str(listing.field_of(row, "template", path, number)).replace("[", "").replace("]", "")
        label = listing.label_of(template, labels, f"{path}, entry {number}", "Something-Something V2")
        yield Listed(f"{listing.field_of(row, 'id', path, number)}.webm", label)


def _check_labels(path: Path) -> None:
    content = listing.read_json(path, dict, "an object from templates to numbers")
    try:
        numbers = sorted((int(number), template) for template, number in content.items())
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} gives a template no number ({error}); get the released file anew.") from error
    if [number for number, _ in numbers] != list(range(len(numbers))):
        raise UserError(f"{path} does not number its templates 0, 1, 2, …; get the released file anew.")
    check_classes([template for _, template in numbers], CLASSES, path, "Something-Something V2")
