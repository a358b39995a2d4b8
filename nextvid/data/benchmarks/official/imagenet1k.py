"""ImageNet-1K (ILSVRC 2012) as folders or as the tars of the release; a picture is a still clip.

Training: ``train/<wnid>/*.JPEG``, or ``ILSVRC2012_img_train.tar``, a tar of one tar a class. Validation, which is
``test`` here: ``val/<wnid>/*.JPEG``, or ``val/*.JPEG`` or ``ILSVRC2012_img_val.tar`` with a ground truth beside it
(:mod:`nextvid.data.benchmarks.official.ground_truth`). Tars are read in place. A form without a list cannot name what
is missing: compare what was found with the official count.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from nextvid.data.benchmarks.official import listing
from nextvid.data.benchmarks.official.classes import check_classes, numbering
from nextvid.data.benchmarks.official.ground_truth import CLASSES, NAME, WNIDS, ground_truth
from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.benchmarks.official.tars import members
from nextvid.data.film import Split
from nextvid.data.locations import Place
from nextvid.errors import UserError, nearest

__all__ = ["CLASSES", "NAME", "OFFICIAL", "WNIDS", "read"]

OFFICIAL: dict[Split, int] = {"train": 1_281_167, "test": 50_000}

_FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}
_TARS: dict[Split, str] = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
_SUFFIXES = (".jpeg", ".jpg")


def read(root: Path, split: str) -> OfficialSplit:
    """The split as it lies under ``root``, as folders where they are there, else as tars.

    Raises ``UserError`` where neither is there, for a class that ImageNet-1K lacks, for a damaged tar, a validation
    part without its ground truth, or a list of classes in another order.
    """
    part = listing.checked(root, split, NAME)
    _check_lists(root)
    folder, tar = root / _FOLDERS[part], root / _TARS[part]
    if folder.is_dir():
        flat = part == "test" and not listing.subfolder_names(folder, _SUFFIXES)
        entries, missing = _flat_folder(folder, root) if flat else (_class_folders(folder), [])
    elif tar.is_file():
        entries, missing = _validation_tar(tar, root) if part == "test" else (_training_tar(tar), [])
    else:
        raise UserError(f"{root} has neither the folder {folder.name} nor {tar.name}; put one of them there.")
    if not entries:
        raise UserError(f"There is no picture in {folder if folder.is_dir() else tar}; unpack or download it anew.")
    return OfficialSplit(NAME, part, CLASSES, entries, OFFICIAL[part], len(entries) + len(missing), missing)


def _class_folders(folder: Path) -> list[Listed]:
    entries: list[Listed] = []
    for wnid in listing.subfolder_names(folder, _SUFFIXES):
        label = _label(wnid, folder / wnid)
        names = listing.file_names(folder / wnid, _SUFFIXES)
        entries += [Listed(str(folder / wnid / name), label) for name in names]
    return entries


def _flat_folder(folder: Path, root: Path) -> tuple[list[Listed], list[str]]:
    paths = {Path(name).stem: str(folder / name) for name in listing.file_names(folder, _SUFFIXES)}
    truth = ground_truth(root)
    return [Listed(paths[stem], label) for stem, label in truth.items() if stem in paths], _absent(truth, paths)


def _training_tar(tar: Path) -> list[Listed]:
    entries: list[Listed] = []
    for inner in members(Place(str(tar))):
        name = PurePosixPath(str(inner))
        if name.suffix == ".tar":
            label = _label(name.stem, f"{tar}, {name}")
            entries += [_member(picture, label, f"{name.stem}/") for picture in members(inner) if _is_picture(picture)]
    return entries


def _validation_tar(tar: Path, root: Path) -> tuple[list[Listed], list[str]]:
    places = {PurePosixPath(str(place)).stem: place for place in members(Place(str(tar))) if _is_picture(place)}
    truth = ground_truth(root)
    return [_member(places[stem], label) for stem, label in truth.items() if stem in places], _absent(truth, places)


def _member(place: Place, label: int, folder: str = "") -> Listed:
    return Listed(f"{folder}{place}", label, archive=place.path, offset=place.offset, length=place.length)


def _absent(truth: Iterable[str], found: Iterable[str]) -> list[str]:
    present = set(found)
    return [f"{stem}.JPEG" for stem in truth if stem not in present]


def _is_picture(place: Place) -> bool:
    return place.suffix in _SUFFIXES


def _label(wnid: str, where: object) -> int:
    labels = numbering(WNIDS)
    if wnid not in labels:
        raise UserError(
            f"{where}: {wnid!r} is none of the 1000 classes of ImageNet-1K{nearest(wnid, WNIDS)}; classes are named "
            "by their WordNet id, such as n01440764. Take it away, or point at the folder above train and val."
        )
    return labels[wnid]


def _check_lists(root: Path) -> None:
    """Refuse a list of classes in another order where the folder has one of the common ones."""
    words = listing.first_file(root, ("LOC_synset_mapping.txt", "synset_words.txt"))
    if words is not None:
        found = [line.split()[0] for line in listing.read_text(words).splitlines() if line.strip()]
        check_classes(found, WNIDS, words, "ImageNet-1K")
    index = listing.first_file(root, ("imagenet_class_index.json",))
    if index is not None:
        content = listing.read_json(index, dict, "an object from numbers to classes")
        try:
            found = [str(content[str(label)][0]) for label in range(len(content))]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{index} does not name class {error} by its WordNet id; get the file anew.") from error
        check_classes(found, WNIDS, index, "ImageNet-1K")
