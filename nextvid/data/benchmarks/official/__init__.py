"""Benchmarks in their own clothes: ImageNet-1K, Kinetics-400, Something-Something V2, Diving48, as they were released.

They are called ``NAME:ROOT``, such as ``kinetics400:/data/k400``. docs/benchmarks.md shows how each folder must look.
"""

from pathlib import Path

from nextvid.data.benchmarks.levels import unknown
from nextvid.data.benchmarks.official import diving48, imagenet1k, kinetics400, ssv2
from nextvid.data.benchmarks.official.clips import OfficialClips
from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.errors import UserError

__all__ = ["Listed", "OfficialClips", "OfficialSplit", "class_map", "find", "is_official", "names", "read"]

_READERS = {module.NAME: module for module in (imagenet1k, kinetics400, ssv2, diving48)}


def names() -> tuple[str, ...]:
    """The official benchmarks there are."""
    return tuple(_READERS)


def is_official(text: str) -> bool:
    """Whether ``text`` has the form ``NAME:ROOT``; the name may still be unknown."""
    return ":" in text


def find(name_and_root: str) -> tuple[str, Path]:
    """The name and the folder of ``NAME:ROOT``. Raises ``UserError`` for an unknown name or none of a folder."""
    name, _, root = name_and_root.partition(":")
    if name not in _READERS:
        raise UserError(unknown(name, "official benchmark", _READERS))
    if not root:
        raise UserError(f"{name_and_root!r} names no folder; write {name}:FOLDER, such as {name}:/data/{name}.")
    return name, Path(root).expanduser().absolute()


def read(name_and_root: str, split: str) -> OfficialSplit:
    """One split (``train`` or ``test``) of ``NAME:ROOT``: what its annotation lists, what was found, what is missing.

    Raises ``UserError`` for an unknown name or split, and for whatever is wrong in the folder.
    """
    name, root = find(name_and_root)
    return _READERS[name].read(root, split)


def class_map(name: str) -> tuple[str, ...]:
    """The pinned map of benchmark ``name``: the class of every label. Raises ``UserError`` for an unknown name."""
    if name not in _READERS:
        raise UserError(unknown(name, "official benchmark", _READERS))
    return _READERS[name].CLASSES
