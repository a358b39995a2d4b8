"""From the recipe's sources to mixtures, and the list of files that turned out broken."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from nextvid.config import Recipe
from nextvid.data import benchmarks
from nextvid.data.clip import Broken, Source
from nextvid.data.film import FilmClips, FilmPictures, Split, cache_folder
from nextvid.data.footage import FootageSource
from nextvid.data.locations import is_remote
from nextvid.data.manifest import PREPARED_MANIFEST, Manifest, broken_rows, is_manifest, read_facts
from nextvid.data.mixture import Mixture
from nextvid.data.transforms import Augmentation
from nextvid.errors import UserError, nearest
from nextvid.files import replace_file, replace_json
from nextvid.footage.scan import ScanSettings, scan
from nextvid.footage.summary import words_of
from nextvid.randomness import key_of
from nextvid.settings import DataConfig, SourceConfig

FORMAT_VERSION = 2
FOOTAGE_FILE, BROKEN_FILE = "footage.json", "broken_files.jsonl"
_NAMED = 100


def build_mixtures(recipe: Recipe, run: Path | None, console: Console) -> list[Mixture]:
    """One mixture a stage; where a run has begun its footage is what its ``footage.json`` names.

    Raises ``UserError`` for a source that is missing, empty or unknown, or has changed since the run began.
    """
    opener = SourceOpener(recipe.data, recipe.encoder.tubelet, run, console, latents=True)
    return [opener.mixture(stage.sources or recipe.data.sources, recipe.seed) for stage in recipe.stages]


class SourceOpener:
    """Opens sources, each once. Raises ``UserError`` for one that is missing, empty or unknown, or has changed."""

    def __init__(
        self, data: DataConfig, min_frames: int, run: Path | None, console: Console, latents: bool = False
    ) -> None:
        """``min_frames``: shorter videos are left out. Where ``run`` has begun its footage is what its ``footage.json`` names.

        ``latents``: whether who draws the clips could do with stored latents (``data.latents``); ``UserError`` where not.
        """
        if data.latents and not latents:
            raise UserError(
                "data.latents=true is for methods that draw in a target space, and this is none; leave it out"
            )
        self._data, self._min_frames, self._console = data, min_frames, console
        self._stored = _stored(run) if run else {}
        self._opened: dict[tuple[str, Split], Source] = {}

    def mixture(self, configs: Sequence[SourceConfig], seed: int, split: Split = "train") -> Mixture:
        """Their mixture; ``split``: the part of the built-in film."""
        for config in configs:
            if (config.model_dump_json(), split) not in self._opened:
                self._opened[config.model_dump_json(), split] = self._open(config, split)
        sources = [self._opened[config.model_dump_json(), split] for config in configs]
        return Mixture(sources, [config.weight for config in configs], seed)

    def _open(self, config: SourceConfig, split: Split) -> Source:
        augmentation = Augmentation(**self._data.augmentation.model_dump())
        if config.builtin is not None:
            return _open_builtin(config.builtin, config.level, augmentation, split)
        assert config.path is not None
        name = os.path.expanduser(config.path)
        manifest = self._stored.get(config.path) or _manifest_of(name, self._min_frames, self._console)
        source = FootageSource(
            Manifest(manifest), config.path, augmentation, self._data.decoder, config.clips_per_video
        )
        if config.path not in self._stored:
            _report(source, self._console)
        return source


def keep_footage(mixtures: list[Mixture], run: Path) -> None:
    """Write what footage there is to the run's ``footage.json``, and manifests that were made for it to ``footage/``.

    So a resumed run reads the same; a manifest of the user's own is named with its digest.
    """
    found = {
        source.name: source for mixture in mixtures for source in mixture.sources if isinstance(source, FootageSource)
    }
    kept = {name: _kept(source.manifest, run) | latents_of(source) for name, source in found.items()}
    replace_json(run / FOOTAGE_FILE, {"format_version": FORMAT_VERSION, "sources": kept})


def _kept(manifest: Manifest, run: Path) -> dict[str, Any]:
    path = manifest.path.absolute()
    if path.is_relative_to(cache_folder().absolute()):
        path = run.absolute() / "footage" / f"{manifest.digest[:16]}.parquet"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            replace_file(path, manifest.path.read_bytes())
    where = path.relative_to(run.absolute()) if path.is_relative_to(run.absolute()) else path
    named = broken_rows(manifest.path, _NAMED)
    return {"manifest": str(where), "digest": manifest.digest, "summary": manifest.summary, "broken_files": named}


def latents_of(source: FootageSource) -> dict[str, Any]:
    """What ``footage.json`` keeps of the latents that a source has: how each cache's were made, by the frames' size."""
    made = {str(size): cache.facts["made"] for size, cache in sorted(source.latents.items())}
    return {"latents": made} if made else {}


def builtin_names() -> list[str]:
    """The built-in sources."""
    return ["film", "film-pictures", *benchmarks.names()]


def _stored(run: Path) -> dict[str, Path]:
    """The manifest of every source that the run began with. Raises ``UserError`` where one has changed since."""
    file = run / FOOTAGE_FILE
    if not file.is_file():
        return {}
    stored = json.loads(file.read_text())
    if stored.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{file} was written by an earlier nextvid, whose order of samples was another: this run cannot go on "
            "exactly. Start it anew in another folder (init: takes its encoder along)."
        )
    found = {}
    for name, source in stored["sources"].items():
        path = run / source["manifest"]
        if read_facts(path)["digest"] != source["digest"]:
            raise UserError(
                f"{path} is not the manifest that this run began with: rows have changed. Put the old one back, or start "
                "another run with the new one."
            )
        found[name] = path
    return found


def _manifest_of(path: str, min_frames: int, console: Console) -> Path:
    """A manifest as it is, prepared shards' own, or else one of a scan, kept in the cache folder for the next time."""
    prepared = Path(path) / PREPARED_MANIFEST
    if prepared.is_file() and is_manifest(prepared):
        return prepared
    if is_manifest(path):
        return Path(path)
    where = path if is_remote(path) else os.path.abspath(path)
    out = cache_folder() / "footage" / f"{key_of('footage', where, min_frames):x}.parquet"
    summary = scan([path], out, ScanSettings(min_frames=min_frames), console=console, wait=True)
    if not summary["usable"]:
        raise UserError(_nothing_usable(path, summary, out, min_frames))
    return out


def _nothing_usable(path: str, summary: dict[str, Any], manifest: Path, min_frames: int) -> str:
    reasons = [f"{count} {reason}" for reason, count in summary["broken"].items()]
    if summary["too_short"]:
        reasons.append(f"{summary['too_short']} with fewer than {min_frames} frames")
    named = broken_rows(manifest, 1)
    example = f"; the first is {named[0][0]}" if named else ""
    return (
        f"None of the {summary['found']} videos and pictures under {path} can be used ({', '.join(reasons)}{example}). "
        "Point data.sources at footage that a player can play."
    )


def _open_builtin(name: str, level: str | None, augmentation: Augmentation, split: Split) -> Source:
    if name in benchmarks.names():
        if split == "test":
            raise UserError(
                f"the test part of '{name}' is for probes; hold out footage of your own, or the builtin 'film'"
            )
        return benchmarks.unlabelled(name, level or benchmarks.levels(name)[0])
    if level is not None:
        raise UserError(f"data.sources: the builtin '{name}' has no levels; leave out level={level}")
    if name == "film":
        return FilmClips(split, augmentation)
    if name == "film-pictures":
        return FilmPictures(split, augmentation)
    raise UserError(
        f"data.sources: there is no builtin '{name}'{nearest(name, builtin_names())}; builtins: {', '.join(builtin_names())}"
    )


def _report(source: FootageSource, console: Console) -> None:
    console.print(f"{source.name}: {words_of(source.manifest.summary)}", highlight=False, markup=False)
    named = broken_rows(source.manifest.path, 11)
    for path, reason in named[:10]:
        console.print(f"  left out: {path!r} ({reason})", highlight=False, markup=False)
    if len(named) > 10:
        console.print(f"  and more, all named in {source.manifest.path}", highlight=False, markup=False)


@dataclass
class BrokenFiles:
    """Files that failed while clips were drawn, named once on the console and in the run's ``broken_files.jsonl``.

    There each attempt that was lost to a hang or a worker's death has a row of its own, too. Of several processes one
    ``writes``.
    """

    run: Path
    console: Console
    writes: bool = True
    known: set[str] = field(default_factory=set)
    lost: list[Broken] = field(default_factory=list)
    """Every attempt at a clip that was lost to a hang or a worker's death; a run that goes on must not make it again."""

    def __post_init__(self) -> None:
        file = self.run / BROKEN_FILE
        if not file.is_file():
            return
        *lines, torn = file.read_bytes().split(b"\n")
        if torn and self.writes:  # by a kill in the middle of a row
            os.truncate(file, file.stat().st_size - len(torn))
        rows = [json.loads(line) for line in lines if line]
        self.known = {row["path"] for row in rows}
        self.lost = [
            Broken(row["path"], row["reason"], row["sample"], row["attempt"], lost=True)
            for row in rows
            if row.get("lost")
        ]

    def add(self, broken: Sequence[Broken]) -> None:
        """Count, name and skip: another clip already stands in for each."""
        for entry in broken:
            new, unheard = entry.path not in self.known, entry.lost and entry not in self.lost
            self.known.add(entry.path)
            if unheard:
                self.lost.append(entry)
            if self.writes and (new or unheard):
                self._write(entry)
            if new:
                self.console.print(
                    f"left out, now {len(self.known)} in all: {entry.path} ({entry.reason})",
                    highlight=False,
                    markup=False,
                )

    def _write(self, entry: Broken) -> None:
        """On disk before the checkpoint that the order of clips after it depends on."""
        row = {"path": entry.path, "reason": entry.reason, "sample": entry.number, "attempt": entry.attempt}
        with (self.run / BROKEN_FILE).open("a") as handle:
            handle.write(json.dumps(row | ({"lost": True} if entry.lost else {})) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
