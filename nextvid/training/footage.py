"""From the recipe's sources to mixtures, and the list of files that turned out broken."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from nextvid.config import Recipe
from nextvid.data import benchmarks
from nextvid.data.clip import Source
from nextvid.data.film import FilmClips, FilmPictures
from nextvid.data.footage import FolderSource
from nextvid.data.mixture import Mixture
from nextvid.data.transforms import Augmentation
from nextvid.errors import UserError, nearest
from nextvid.files import replace_json
from nextvid.settings import SourceConfig, StageConfig

FOOTAGE_FILE, BROKEN_FILE = "footage.json", "broken_files.jsonl"


def build_mixtures(recipe: Recipe, run: Path | None, console: Console) -> list[Mixture]:
    """One mixture a stage; lists of files come from the run's ``footage.json`` where it has one.

    Raises ``UserError`` for a source that is missing, empty or unknown.
    """
    stored = _stored_lists(run) if run else {}
    opened: dict[str, Source] = {}
    mixtures = []
    for stage in recipe.stages:
        configs = stage.sources or recipe.data.sources
        for config in configs:
            if config.model_dump_json() not in opened:
                opened[config.model_dump_json()] = _open_source(config, recipe, stage, stored, console)
        sources = [opened[config.model_dump_json()] for config in configs]
        mixtures.append(Mixture(sources, [config.weight for config in configs], recipe.seed))
    return mixtures


def keep_file_lists(mixtures: list[Mixture], run: Path) -> None:
    """Write every folder's list of files to the run's ``footage.json``, so that a resumed run reads the same."""
    folders = [source for mixture in mixtures for source in mixture.sources if isinstance(source, FolderSource)]
    replace_json(run / FOOTAGE_FILE, {source.name: json.loads(source.to_json()) for source in folders})


def builtin_names() -> list[str]:
    """The built-in sources."""
    return ["film", "film-pictures", *benchmarks.names()]


def _stored_lists(run: Path) -> dict[str, str]:
    file = run / FOOTAGE_FILE
    if not file.is_file():
        return {}
    return {name: json.dumps(listed) for name, listed in json.loads(file.read_text()).items()}


def _open_source(
    config: SourceConfig, recipe: Recipe, stage: StageConfig, stored: dict[str, str], console: Console
) -> Source:
    augmentation = Augmentation(**recipe.data.augmentation.model_dump())
    if config.builtin is not None:
        return _open_builtin(config.builtin, config.level, augmentation)
    assert config.path is not None
    if config.path in stored:
        return FolderSource.from_json(stored[config.path], augmentation, recipe.data.decoder)
    source = FolderSource(config.path, augmentation, recipe.data.decoder, recipe.encoder.tubelet, console)
    _report(source, console)
    return source


def _open_builtin(name: str, level: str | None, augmentation: Augmentation) -> Source:
    if name in benchmarks.names():
        return benchmarks.unlabelled(name, level or benchmarks.levels(name)[0])
    if level is not None:
        raise UserError(f"data.sources: the builtin '{name}' has no levels; leave out level={level}")
    if name == "film":
        return FilmClips("train", augmentation)
    if name == "film-pictures":
        return FilmPictures("train", augmentation)
    raise UserError(
        f"data.sources: there is no builtin '{name}'{nearest(name, builtin_names())}; builtins: {', '.join(builtin_names())}"
    )


def _report(source: FolderSource, console: Console) -> None:
    report = source.report
    console.print(
        f"{source.name}: {report.found} files found, {report.usable} usable ({report.hours:.2f} h), "
        f"{sum(report.broken.values())} broken, {report.too_short} too short",
        highlight=False,
    )
    for path, reason in report.broken_files[:10]:
        console.print(f"  left out: {path} ({reason})", highlight=False, markup=False)
    if len(report.broken_files) > 10:
        console.print(
            f"  and {len(report.broken_files) - 10} more, all named in the run's {FOOTAGE_FILE}", highlight=False
        )


@dataclass
class BrokenFiles:
    """Files that failed while clips were drawn, each named once in ``broken_files.jsonl`` beside the run."""

    run: Path
    console: Console
    known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if (self.run / BROKEN_FILE).is_file():
            rows = (self.run / BROKEN_FILE).read_text().split("\n")[:-1]
            self.known = {json.loads(row)["path"] for row in rows}

    def add(self, broken: list[tuple[str, str]]) -> None:
        """Count, name and skip: another clip already stands in for each."""
        for path, reason in broken:
            if path in self.known:
                continue
            self.known.add(path)
            with (self.run / BROKEN_FILE).open("a") as handle:
                handle.write(json.dumps({"path": path, "reason": reason}) + "\n")
            self.console.print(
                f"left out, now {len(self.known)} in all: {path} ({reason})", highlight=False, markup=False
            )
