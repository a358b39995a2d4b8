"""What a reader of a benchmark's own folder brings back: the files that are there, and those that are not."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of a split and the index of its class.

    ``start`` and ``end`` bound what is shown, in frames of the file: ``start <= frame < end``; None: the whole file.
    A member of a tar lies in ``archive``, ``length`` bytes from ``offset``, and ``path`` is its name in there.
    """

    path: str
    label: int
    start: int | None = None
    end: int | None = None
    archive: str | None = None
    offset: int = 0
    length: int | None = None


@dataclass(frozen=True)
class OfficialSplit:
    """One split of a benchmark as it lies in a folder.

    ``official`` is the count that was published, ``listed`` what the annotation in the folder lists (the files found,
    where a form has no list), ``entries`` the listed files that exist, in the list's order, ``missing`` the names of
    those that do not. ``classes`` is the pinned map: the name of every label.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    entries: list[Listed]
    official: int
    listed: int
    missing: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The counts, for JSON: ``{benchmark, split, official, listed, found, missing}``."""
        return {
            "benchmark": self.name,
            "split": self.split,
            "official": self.official,
            "listed": self.listed,
            "found": len(self.entries),
            "missing": len(self.missing),
        }
