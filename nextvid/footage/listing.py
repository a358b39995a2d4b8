"""What footage there is: the files that folders, globs, lists, tars and URLs come to, not opened yet."""

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic

from nextvid.data.benchmarks import official
from nextvid.data.benchmarks.official.split import OfficialSplit
from nextvid.data.decode import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from nextvid.data.locations import Place, is_remote, written
from nextvid.errors import UserError

MEDIA_SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".lst", ".list"})
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of footage by its place, and its label where a list gives one; ``reason``: why it is not to be opened."""

    place: Place
    label: str | None = None
    reason: str | None = None


def list_sources(sources: Iterable[str]) -> Iterator[Entry]:
    """All files of ``sources``, each a folder, file, glob, list (csv, txt, Parquet), WebDataset tar, or a URL of one.

    In the order of the sources; of a folder in the order of names. A folder's files count by their suffix, hidden ones
    left out; tars in it are opened. Raises ``UserError`` for a source that is not there or holds nothing.
    """
    for source in sources:
        found = False
        for entry in _list_source(source):
            found = True
            yield entry
        if not found:
            raise UserError(
                f"{source} holds no video or picture. Files count by their suffix: "
                f"{' '.join(sorted(MEDIA_SUFFIXES))}; tars and lists (csv, txt, parquet) are read too."
            )


def _list_source(source: str) -> Iterator[Entry]:
    if official_split(source) is not None:
        yield from _official(source)
    elif is_remote(source):
        yield from _remote(source)
    elif os.path.isdir(source):
        yield from _expanded(_walk(os.path.abspath(source)))
    elif source.startswith("file://") or os.path.lexists(source):
        yield from list_file(source if source.startswith("file://") else os.path.abspath(source))
    elif has_magic(source):
        yield from _expanded(_globbed(source))
    else:
        raise UserError(f"There is no footage at {source}: no such file or folder. Check the path.")


def list_file(path: str) -> Iterator[Entry]:
    """What one file, named as a source itself, comes to: the rows of a list, the members of a tar, or itself."""
    from nextvid.footage.lists import read_list, read_parquet  # noqa: PLC0415
    from nextvid.footage.tars import read_tar  # noqa: PLC0415

    suffix = os.path.splitext(path)[1].lower()
    if suffix in LIST_SUFFIXES:
        yield from read_list(path)
    elif suffix == ".parquet":
        yield from read_parquet(path)
    elif suffix == ".tar":
        yield from read_tar(path)
    elif path.lower().endswith(PACKED_SUFFIXES):
        raise UserError(
            f"{path} is packed, and a packed file cannot be read from its middle. Unpack it, or pack the files as a plain .tar."
        )
    else:
        yield Entry(Place(written(path)))


def _expanded(paths: Iterable[str]) -> Iterator[Entry]:
    """The media files among ``paths``, and the members of tars."""
    for path in paths:
        if path.lower().endswith(".tar"):
            yield from list_file(path)
        elif os.path.splitext(path)[1].lower() in MEDIA_SUFFIXES:
            yield Entry(Place(written(path)))


def _walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """All files below a folder, by name; a link that leads back to a folder above it is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}); allow it, or name others.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, (*above, real))
        else:
            yield entry.path


def _globbed(pattern: str) -> Iterator[str]:
    seen: set[str] = set()
    for match in sorted(glob(os.path.abspath(pattern), recursive=True)):
        for path in _walk(match) if os.path.isdir(match) else [match]:
            if path not in seen:
                seen.add(path)
                yield path


def _remote(source: str) -> Iterator[Entry]:
    """A URL: a folder or a glob of media files, or one file. Raises ``UserError`` where it cannot be listed."""
    import fsspec  # noqa: PLC0415

    try:
        system, path = fsspec.core.url_to_fs(source)
        names = system.glob(path) if has_magic(path) else system.find(path)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{source} cannot be listed: {error}. Check the address and the access to it.") from error
    if not names:
        raise UserError(f"There is no footage at {source}: nothing was found there. Check the address.")
    if [name.strip("/") for name in names] == [path.strip("/")]:
        yield from list_file(source)
        return
    yield from _expanded(system.unstrip_protocol(name) for name in sorted(names))


def official_split(source: str) -> OfficialSplit | None:
    """What ``NAME:ROOT`` (the train split of an official benchmark) or ``NAME/test:ROOT`` holds; None for other sources."""
    name, colon, root = source.partition(":")
    name, _, split = name.partition("/")
    if not colon or name not in official.names():
        return None
    return _read_official(f"{name}:{root}", split or "train")


@functools.lru_cache(maxsize=4)
def _read_official(name_and_root: str, split: str) -> OfficialSplit:
    """Kept, since the listing of a large benchmark takes its time and the counts are asked for again."""
    return official.read(name_and_root, split)


def _official(source: str) -> Iterator[Entry]:
    """A benchmark in its own layout; a file that its annotation names and that is not there is broken."""
    listed = official_split(source)
    assert listed is not None
    for item in listed.entries:
        inside = Place(written(item.archive or ""), item.offset, item.length, item.path)
        yield Entry(inside if item.archive else Place(written(item.path)), listed.classes[item.label])
    root = official.find(source.replace("/test:", ":", 1).replace("/train:", ":", 1))[1]
    yield from (Entry(Place(written(str(root / name))), reason="unreadable") for name in listed.missing)
