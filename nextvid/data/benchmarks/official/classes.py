"""The pinned class maps, and the refusal of any other order.

A map lies in ``nextvid/data/assets``, one class a line, in the order of its labels. Sources (names and order only, each
found complete): ImageNet-1K: the 1000 synsets of ILSVRC 2012 in the order of their WordNet ids, each with its number in
the development kit and WordNet's first word for it; Kinetics-400: the 400 names as the release spells them,
alphabetical; Something-Something V2: the 174 templates of the labels file; Diving48: the 48 entries of the vocabulary.
"""

import functools
from collections.abc import Sequence
from importlib import resources

from nextvid.errors import UserError


@functools.cache
def pinned(file: str, count: int) -> tuple[str, ...]:
    """The lines of the asset ``file``; ``UserError`` where they are not ``count`` different ones."""
    lines = tuple((resources.files("nextvid.data") / "assets" / file).read_text(encoding="utf-8").splitlines())
    if len(lines) != count or len(set(lines)) != count:
        raise UserError(f"nextvid/data/assets/{file} does not hold {count} classes; install nextvid anew.")
    return lines


def check_classes(found: Sequence[str], classes: Sequence[str], where: object, benchmark: str) -> None:
    """Raise ``UserError`` with the first class of a data set's own list that is not the pinned one."""
    for label in range(max(len(found), len(classes))):
        there = repr(found[label]) if label < len(found) else "nothing"
        here = repr(classes[label]) if label < len(classes) else "nothing"
        if there != here:
            raise UserError(
                f"{where} is not the class map of {benchmark}: class {label} is {there} there and {here} in the "
                f"published map of {len(classes)} classes, so scores would mean nothing. Put the released file there, "
                "or take this one away."
            )


def numbering(classes: Sequence[str]) -> dict[str, int]:
    """The label of every class name."""
    return {name: label for label, name in enumerate(classes)}
