"""Any encoders by one protocol on the same clips: the figures, the table, and the page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.command import PATIENCE, ProbeRequest, announcement
from nextvid.evaluation.encoders import FrozenEncoder, open_encoder
from nextvid.evaluation.measuring import measure_encoder
from nextvid.evaluation.protocol import USUAL_CLIP, EvalRecipe, changed
from nextvid.evaluation.session import Session
from nextvid.files import replace_json
from nextvid.report.leaderboard_page import write_leaderboard
from nextvid.report.tables import score_words
from nextvid.signals import collected
from nextvid.training.distributed import World, world_of

FORMAT_VERSION = 1
WIDTH = 110
"""Columns of the table, where the terminal is narrower or there is none."""


def leaderboard_of(names: Sequence[str], request: ProbeRequest, out: Path, console: Console) -> dict[str, Any]:
    """Measure every encoder of ``names``; writes ``out`` (a page) and the figures beside it as JSON.

    All are given clips of the same frames and frames a second, each at its own size. Baselines that depend on pixels alone are
    the first encoder's; each has its own random initialisation. Raises ``UserError``.
    """
    if not names:
        raise UserError(
            "name at least one encoder: a run, an exported file, nextvid-tiny, hf:FOLDER or module:function"
        )
    if out.suffix == ".json":
        raise UserError(
            f"--out {out} is the page; its figures go beside it as JSON: give it a name such as {out.stem}.html"
        )
    encoders = [open_encoder(name) for name in names]
    recipe = same_clips(request.protocol(), encoders)
    specs = [recipe.spec_for(encoder) for encoder in encoders]
    for encoder in encoders:
        recipe.layers_of(encoder)
    rows: list[dict[str, Any]] = []
    baselines: dict[str, Any] = {}
    with world_of(PATIENCE, recipe.device) as world, collected() as signals:
        sessions: dict[ClipSpec, Session] = {}
        for number, (name, encoder, spec) in enumerate(zip(told_apart(encoders), encoders, specs, strict=True)):
            if spec not in sessions:
                folder = out.parent / f".{out.stem}-at-work"
                sessions[spec] = _session(request, recipe, spec, folder, console, world, signals)
            session = sessions[spec]
            session.recipe = recipe if number == 0 else changed(recipe, baselines=_of_its_own(recipe))
            session.say(announcement(session, encoder))
            measured = measure_encoder(session, encoder)
            if number == 0:
                baselines = dict(measured.baselines)
            rows.append(_row(name, measured.figures, measured.baselines.get("random_init")))
        figures = measured.figures
        found = {
            "format_version": FORMAT_VERSION,
            **{key: figures[key] for key in ("benchmark", "level", "task", "classes", "class_map")},
            **{key: figures[key] for key in ("train_clips", "test_clips", "depth", "splits")},
            "protocol": _protocol(figures, recipe),
            "clip": {"frames": specs[0].frames, "fps": specs[0].fps},
            "rows": sorted(rows, key=lambda row: -row["top1"]),
            "baselines": {name: score for name, score in baselines.items() if name != "random_init"},
            "remarks": _remarks(rows),
            "command": ["nextvid", *sys.argv[1:]],
        }
        if world.first:
            out.parent.mkdir(parents=True, exist_ok=True)
            replace_json(out.with_suffix(".json"), found)
            write_leaderboard(out, found)
        for session in sessions.values():
            session.clear()
        if world.first:
            _tidy(out.parent / f".{out.stem}-at-work")
    return found


def same_clips(recipe: EvalRecipe, encoders: Sequence[FrozenEncoder]) -> EvalRecipe:
    """The recipe with frames and frames a second settled: as it says, or as the first encoder that says so was trained."""
    known = next((encoder.clip for encoder in encoders if encoder.clip is not None), USUAL_CLIP)
    return changed(recipe, frames=recipe.frames or known.frames, fps=recipe.fps or known.fps)


def told_apart(encoders: Sequence[FrozenEncoder]) -> list[str]:
    """The names of encoders, numbered where two are called the same."""
    names = [encoder.name for encoder in encoders]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def _session(
    request: ProbeRequest,
    recipe: EvalRecipe,
    spec: ClipSpec,
    folder: Path,
    console: Console,
    world: World,
    signals: list[int],
) -> Session:
    return Session(request.where, recipe, spec, folder, console, world, lambda: bool(signals))


def _protocol(figures: dict[str, Any], recipe: EvalRecipe) -> dict[str, Any]:
    """The settings that all encoders share; which layers those are, each row says."""
    shared = {key: value for key, value in figures["protocol"].items() if key not in ("layers", "features")}
    return {**shared, "layers": recipe.model_dump(mode="json")["layers"]}


def _of_its_own(recipe: EvalRecipe) -> list[str]:
    """The baselines that another encoder does not share."""
    return [name for name in recipe.baselines if name == "random_init"]


def _row(name: str, figures: dict[str, Any], untrained: dict[str, Any] | None) -> dict[str, Any]:
    about = figures["encoder"]
    return {
        "name": name,
        **{key: about[key] for key in ("kind", "width", "layers", "parameters", "digest", "preprocessing")},
        **{
            key: figures[key]
            for key in (
                "top1",
                "ci95",
                "top5",
                "top5_ci95",
                "mean_class",
                "mean_class_ci95",
                "clip",
                "heads",
                "best_lr",
                "best_weight_decay",
                "held_out_top1",
                "standardised",
                "standardise_effect",
                "readers",
            )
        },
        "layers_read": figures["protocol"]["layers"],
        "features": figures["protocol"]["features"],
        "random_init": untrained,
        "remarks": figures["remarks"],
    }


def _remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What holds of single encoders, with their names, or of all."""
    each = [(row["name"], remark) for row in rows for remark in row["remarks"]]
    shared = [
        remark
        for remark in dict.fromkeys(remark for _, remark in each)
        if [r for _, r in each].count(remark) == len(rows)
    ]
    return [*shared, *(f"{name}: {remark}" for name, remark in each if remark not in shared)]


def _tidy(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def table_of(found: dict[str, Any]) -> Table:
    """A row an encoder, best first, then what needs no learning."""
    clip = found["clip"]
    table = Table(
        title=f"{found['benchmark']}, {found['level']}: {found['task']}, attentive probe of depth {found['depth']}, in percent "
        f"(95% interval); {clip['frames']} frames at {clip['fps']:g} fps; {found['test_clips']:,} test clips"
    )
    for title in ("encoder", "size", "top-1", "top-5", "mean over classes", "untrained"):
        table.add_column(title, justify="left" if title == "encoder" else "right", overflow="fold")
    for row in found["rows"]:
        top5 = {"top1": row["top5"], "ci95": row["top5_ci95"]} if row["top5"] is not None else None
        mean = {"top1": row["mean_class"], "ci95": row["mean_class_ci95"]}
        cells = [score_words(score) for score in (row, top5, mean, row["random_init"])]
        table.add_row(row["name"], f"{row['clip']['size']} px", *cells)
    table.add_section()
    for name, score in found["baselines"].items():
        table.add_row(name.replace("_", " "), "", score_words(score), "", "", "")
    return table
