"""The class of every validation picture of ImageNet-1K, from any of the lists that people keep beside the pictures.

The development kit numbers classes in an order of its own (1: kit fox, …, 1000: dumbbell), not in that of their WordNet
ids, and says which is which only in a MATLAB file: the pinned map carries that number for each class. It agrees with
the published labels of the first eleven pictures in both numberings, and every list must give those pictures those
classes: a list in another order is refused.
"""

import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from nextvid.data.benchmarks.official import listing
from nextvid.data.benchmarks.official.classes import numbering, pinned
from nextvid.errors import UserError

NAME = "imagenet1k"
_ROWS = [row.split("\t") for row in pinned("classes-imagenet1k.tsv", 1000)]
WNIDS = tuple(row[0] for row in _ROWS)
"""The 1000 WordNet ids, sorted: label 0 is n01440764."""
CLASSES = tuple(f"{wnid} {name}" for wnid, _, name in _ROWS)
"""``<wnid> <first word>``: the words alone repeat (two are "crane")."""
_KIT = {number: label for label, (_, number, _) in enumerate(_ROWS)}

_FIRST_LABELS = (65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109)
"""The classes of pictures 1 to 11, by which a list in another order is known."""

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_PACKED = "ILSVRC2012_devkit_t12.tar.gz"
_PACKED_TRUTH = f"ILSVRC2012_devkit_t12/data/{_TRUTH}"

Truth = dict[str, int]
"""From a picture's name without its suffix to its label."""


def ground_truth(root: Path) -> Truth:
    """The validation labels by the first of these under ``root``:

    the development kit's ``ILSVRC2012_validation_ground_truth.txt`` (there, in ``data``, in
    ``ILSVRC2012_devkit_t12/data``, or inside ``ILSVRC2012_devkit_t12.tar.gz``), ``LOC_val_solution.csv`` (picture,
    WordNet id), ``val.txt`` (picture, place of the class in the sorted WordNet ids, from 0). Raises ``UserError`` where
    there is none, or where it is malformed or in another order.
    """
    readers: dict[str, Callable[[Path], Truth]] = {
        _TRUTH: _kit_file,
        f"data/{_TRUTH}": _kit_file,
        _PACKED_TRUTH: _kit_file,
        _PACKED: _packed_kit,
        "LOC_val_solution.csv": _solution,
        "val.txt": _numbered_list,
    }
    found = listing.needed(listing.first_file(root, readers), root, list(readers), "list of validation labels")
    truth = readers[str(found.relative_to(root))](found)
    _check_order(truth, found)
    return truth


def _stem(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _kit_file(path: Path) -> Truth:
    return _kit_labels(listing.read_text(path), path)


def _packed_kit(path: Path) -> Truth:
    try:
        with tarfile.open(path) as tar:
            file = tar.extractfile(_PACKED_TRUTH)
            text = file.read().decode() if file else ""
    except (tarfile.TarError, OSError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} does not give {_PACKED_TRUTH} ({error}); download it anew.") from error
    return _kit_labels(text, path)


def _kit_labels(text: str, path: Path) -> Truth:
    numbers = text.split()
    strange = next((number for number in numbers if number not in _KIT), None)
    if strange is not None:
        raise UserError(f"{path}: {strange!r} is not a number from 1 to 1000; get the released file anew.")
    return {_stem(place): _KIT[number] for place, number in enumerate(numbers, 1)}


def _solution(path: Path) -> Truth:
    labels = numbering(WNIDS)
    return {
        row["ImageId"]: listing.label_of(
            row["PredictionString"].partition(" ")[0], labels, f"{path}, line {number}", "ImageNet-1K"
        )
        for number, row in listing.read_rows(path, ("ImageId", "PredictionString"))
    }


def _numbered_list(path: Path) -> Truth:
    rows = [row.split() for row in listing.read_text(path).splitlines() if row.strip()]
    return dict(_numbered(rows, path))


def _numbered(rows: list[list[str]], path: Path) -> Iterable[tuple[str, int]]:
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not row[1].isdecimal() or int(row[1]) >= len(WNIDS):
            raise UserError(
                f"{path}, row {number}: {' '.join(row)!r} is not a picture's name and a number from 0 to 999; "
                "get the file anew."
            )
        yield Path(row[0]).stem, int(row[1])


def _check_order(truth: Truth, path: Path) -> None:
    for number, label in enumerate(_FIRST_LABELS, 1):
        there = truth.get(_stem(number), label)
        if there != label:
            raise UserError(
                f"{path} is not in the class order of ImageNet-1K: by it {_stem(number)}.JPEG is {CLASSES[there]!r}, "
                f"and it is {CLASSES[label]!r}. Put the released list there."
            )
