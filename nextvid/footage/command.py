"""The verb ``scan``: the manifest, its figures as JSON, its page, and what is in both it and a benchmark; and ``prepare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from nextvid.config import load_recipe
from nextvid.data import benchmarks
from nextvid.data.manifest import SCHEMA, broken_rows, explained_writing, read_rows
from nextvid.errors import UserError
from nextvid.files import replace_json
from nextvid.footage.listing import official_split
from nextvid.footage.page import counts_in_words, table_of, write_page
from nextvid.footage.plan import PrepareSettings
from nextvid.footage.prospect import prospect
from nextvid.footage.scan import ScanSettings, scan

if TYPE_CHECKING:
    from nextvid.footage.latents import LatentSettings

TAKEN = (".json", ".html", ".arrow", ".journal")


def scan_footage(
    sources: list[str],
    out: Path,
    settings: ScanSettings,
    recipe: str,
    workers: int | None,
    timeout: float,
    against: str | None,
    level: str | None,
    console: Console,
) -> dict[str, Any]:
    """Scan into the manifest ``out``; its figures go beside it as JSON and on a page. Returns the figures."""
    if out.suffix in TAKEN:
        raise UserError(f"-o {out}: {out.suffix} is what goes beside a manifest; call it {out.with_suffix('.parquet')}")
    if out.is_dir():
        raise UserError(f"-o {out} is a folder; name the manifest in it, such as {out / 'footage.parquet'}")
    if level is not None and against is None:
        raise UserError("--level is a level of the benchmark that --against names; name one, or leave it out")
    chosen = load_recipe(recipe)
    if against is not None and level not in (None, *benchmarks.levels(against)):
        benchmarks.load(against, level or "", "test", 1)  # a level that is not listed may be one with a contrast
    summary = scan(sources, out, settings, workers, timeout, console)
    rows = pa.Table.from_batches(read_rows(out), SCHEMA)
    splits = [split for source in sources if (split := official_split(source)) is not None]
    official = [{**split.summary(), "classes": len(split.classes)} for split in splits]
    found = {
        **summary,
        "official": official,
        "manifest": str(out),
        "recipe": chosen.name,
        "prospect": prospect(rows, chosen),
    }
    page = out.with_suffix(".html")
    command = _command(sources, out, settings, chosen.name, against, level)
    with explained_writing(page):
        replace_json(out.with_suffix(".json"), found)
        write_page(page, sources, rows, found, splits, command)
    console.print(table_of(found))
    for split in splits:
        console.print(counts_in_words(split), highlight=False, markup=False)
    for path, reason in broken_rows(out, 10):
        console.print(f"  left out: {path!r} ({reason})", highlight=False, markup=False)
    if against is not None:
        from nextvid.footage.contamination import contamination_table, find_contamination  # noqa: PLC0415

        found["against"] = find_contamination(out, against, level, console)
        console.print(contamination_table(found["against"]))
    console.print(f"manifest: {out}\npage: {page}", highlight=False, markup=False)
    return found


def latents_asked_for(
    space: str | None,
    size: int | None,
    crop: str | None,
    patch: int | None,
    precision: str | None,
    further: list[str] | None,
) -> "LatentSettings | None":
    """What the options of ``prepare`` say of latents; None where there are to be none. Raises ``UserError``."""
    options = {"size": size, "crop": crop, "patch": patch, "precision": precision, "with": further}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if space is None:
        if given:
            raise UserError(f"--latents-{next(iter(given))} says of what latents are; name their space with --latents")
        return None
    from nextvid.footage.latents import LatentSettings  # noqa: PLC0415

    return LatentSettings(space, further=tuple(given.pop("with", ())), **given)


def prepare_shards(
    manifest: Path,
    out: Path,
    settings: PrepareSettings,
    latents: "LatentSettings | None",
    workers: int | None,
    ray: str | None,
    verify: bool,
    timeout: float,
    console: Console,
) -> dict[str, Any]:
    """Prepare shards and, where they are asked for, the latents beside them. Returns the figures of both."""
    from nextvid.footage import prepare  # noqa: PLC0415

    if latents is not None:
        from nextvid.footage.latents import prepare_latents, space_of, words_of  # noqa: PLC0415

        space_of(latents)  # before the hours that shards may take
    found = prepare.prepare_footage(manifest, out, settings, workers, ray, verify, timeout, console)
    console.print(prepare.table_of(found))
    if latents is None:
        return found
    stored = prepare_latents(out, latents, verify, console)
    console.print(f"latents: {words_of(stored)}", highlight=False, markup=False)
    return {**found, "latents": {key: value for key, value in stored.items() if key != "shards"}}


def _command(
    sources: list[str], out: Path, settings: ScanSettings, recipe: str, against: str | None, level: str | None
) -> list[str]:
    """The command that does this scan again."""
    options = {"--recipe": recipe, "--against": against, "--level": level, "--min-frames": str(settings.min_frames)}
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    return ["nextvid", "scan", *sources, "-o", str(out), *given, *(["--everything"] if settings.everything else [])]
