"""Training from stored latents (``data.latents``): which cache serves which stage, and why one would be wrong."""

from pathlib import Path
from typing import Any

from nextvid.config import Recipe
from nextvid.data.clip import Source
from nextvid.data.footage import FootageSource
from nextvid.data.latents import FACTS, FOLDER, LatentCache, read_facts
from nextvid.data.mixture import Mixture
from nextvid.errors import UserError
from nextvid.files import read_json
from nextvid.footage.latents import DECODER, SpaceFacts, facts_of_space
from nextvid.objectives.protocol import Objective
from nextvid.settings import StageConfig
from nextvid.training.footage import FOOTAGE_FILE


def use_latents(objective: Objective, recipe: Recipe, mixtures: list[Mixture], run: Path | None = None) -> None:
    """Give the sources of every stage the caches that ``data.latents`` asks for; nothing where it does not.

    Raises ``UserError`` where a source has no latents, those that it has are of something else than what the recipe would
    encode, they are not whole, or ``run`` has begun with others.
    """
    if not recipe.data.latents:
        return
    space = _space_of(objective, recipe)
    begun = read_json(run / FOOTAGE_FILE).get("sources", {}) if run is not None else {}
    for stage, mixture in zip(recipe.stages, mixtures, strict=True):
        for source in mixture.sources:
            wanted = _wanted(space, recipe, stage)
            checked = _checked(source)
            if stage.size not in checked.latents:
                cache = _find(checked, wanted)
                _refuse_other(cache, checked, stage, begun)
                checked.latents[stage.size] = cache


def _space_of(objective: Objective, recipe: Recipe) -> SpaceFacts:
    drawn = objective.draws_in()
    if drawn is None:
        raise UserError(
            f"data.latents=true, and objective '{recipe.objective.name}' draws in no target space; leave out data.latents"
        )
    return facts_of_space(*drawn)


def _wanted(space: SpaceFacts, recipe: Recipe, stage: StageConfig) -> dict[str, Any]:
    """What a cache must say of itself to be what a stage would encode."""
    return {"space": space, "size": stage.size, "crop": recipe.data.augmentation.crop, "decoder": DECODER}


def _checked(source: Source) -> FootageSource:
    if not isinstance(source, FootageSource):
        raise UserError(
            f"data.latents=true, and the built-in source '{source.name}' has no latents: they lie beside prepared shards; "
            "leave the source out, or data.latents"
        )
    if source.backend != DECODER:
        raise UserError(
            f"data.latents=true, and data.decoder comes to {source.backend} here, whose pixels are not quite those that the "
            f"latents were made of; set data.decoder={DECODER}"
        )
    return source


def _find(source: FootageSource, wanted: dict[str, Any]) -> LatentCache:
    """The cache of a source that is of what is wanted; of several the most precise."""
    parent = source.manifest.path.absolute().parent / FOLDER
    folders = sorted(path.parent for path in parent.glob(f"*/{FACTS}"))
    if not folders:
        raise UserError(
            f"data.latents=true, and there are no latents beside {source.manifest.path}: {_command(wanted)} makes them "
            f"(for a manifest that nextvid scan has written)"
        )
    wanted = {**wanted, "manifest": source.manifest.digest}
    made = {folder: read_facts(folder)["made"] for folder in folders}
    fitting = [folder for folder in folders if not _unlike(made[folder], wanted)]
    if not fitting:
        unlike = {folder: _unlike(made[folder], wanted) for folder in folders}
        listed = "; ".join(
            f"{folder.name}: {', '.join(unlike[folder])}" for folder in sorted(folders, key=lambda f: len(unlike[f]))
        )
        raise UserError(
            f"data.latents=true, and the latents in {parent} are not those that the recipe would encode ({listed}): "
            f"{_command(wanted)} makes them"
        )
    return LatentCache(sorted(fitting, key=lambda folder: made[folder]["precision"])[-1])


def _unlike(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In what a cache is not what is wanted."""
    found = [
        f"its {name} is {made['space'].get(name)}, not {value}"
        for name, value in wanted["space"].items()
        if made["space"].get(name) != value
    ]
    if made["manifest"] != wanted["manifest"]:
        found.append("it is of other clips than the manifest's")
    return found + [
        f"its {name} is {made[name]}, not {wanted[name]}"
        for name in ("size", "crop", "decoder")
        if made[name] != wanted[name]
    ]


def _command(wanted: dict[str, Any]) -> str:
    return (
        f"nextvid prepare MANIFEST -o SHARDS --latents {wanted['space']['name']}:WEIGHTS --latents-size {wanted['size']} "
        f"--latents-crop {wanted['crop']}"
    )


def _refuse_other(cache: LatentCache, source: FootageSource, stage: StageConfig, begun: dict[str, Any]) -> None:
    """A run goes on with latents that were made as those that it began with."""
    before = begun.get(source.name, {}).get("latents", {}).get(str(stage.size))
    if before is not None and before != cache.facts["made"]:
        other = [name for name, value in before.items() if cache.facts["made"].get(name) != value]
        raise UserError(
            f"the latents in {cache.folder} are not those that this run began with: they differ in {', '.join(other)}. Put the "
            "old ones back, or start another run"
        )
