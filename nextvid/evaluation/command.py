"""The verb ``probe``: one encoder, one benchmark, one task, and what stands beside it."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from nextvid.data.view_reader import name_of
from nextvid.errors import UserError
from nextvid.evaluation.encoders import FrozenEncoder, OwnEncoder, open_encoder
from nextvid.evaluation.fitting import result_of
from nextvid.evaluation.kept import load_probe, save_probe
from nextvid.evaluation.measuring import figures_of, measure_encoder
from nextvid.evaluation.page import page_of
from nextvid.evaluation.protocol import EvalRecipe, changed, load_protocol
from nextvid.evaluation.session import Reading, Session, Where
from nextvid.files import replace_json, replacing
from nextvid.inference.load import LoadedEncoder
from nextvid.inference.released import is_released
from nextvid.report.tables import score_words
from nextvid.signals import collected
from nextvid.training.distributed import world_of

FORMAT_VERSION = 1
PATIENCE = 1800.0
"""Seconds that a process waits for the others."""


@dataclass(frozen=True)
class ProbeRequest:
    """What the command line says. ``probe``: score that chosen probe, and train none."""

    encoder: str
    where: Where
    recipe: str | None = None
    overrides: Sequence[str] = ()
    weights: str | None = None
    train_clips: int | None = None
    test_clips: int | None = None
    standardise: bool | None = None
    probe: Path | None = None
    out: Path | None = None

    def protocol(self) -> EvalRecipe:
        """The recipe with what was said beside it. Raises ``UserError``."""
        recipe = load_protocol(self.recipe, self.where.benchmark, list(self.overrides))
        return changed(recipe, train_clips=self.train_clips, test_clips=self.test_clips, standardise=self.standardise)

    def open(self) -> FrozenEncoder:
        """The encoder. Raises ``UserError``."""
        if self.weights not in (None, "ema", "online"):
            raise UserError(f"--weights is ema or online, not '{self.weights}'")
        return open_encoder(self.encoder, cast(Literal["ema", "online"] | None, self.weights))


def probe_run(request: ProbeRequest, console: Console) -> dict[str, Any]:
    """Measure an encoder; figures, page, probe and answers go to its folder, and the figures of a run beside its weights too."""
    recipe, encoder = request.protocol(), request.open()
    with world_of(PATIENCE, recipe.device) as world, collected() as signals:
        session = Session(
            request.where,
            recipe,
            recipe.spec_for(encoder),
            folder_of(request, encoder),
            console,
            world,
            lambda: bool(signals),
        )
        session.check()
        session.say(announcement(session, encoder))
        pages: list[Any] = []

        def look(reading: Reading) -> None:
            if world.first:
                session.folder.mkdir(parents=True, exist_ok=True)
                _write(session, reading)
                pages.append(page_of(session, reading))

        if request.probe is not None:
            figures = _score_again(session, encoder, request.probe)
        else:
            figures = measure_encoder(session, encoder, look).figures
        world.same("their figures", repr(figures["top1"]))
        found = {**_own(encoder), **figures, "command": ["nextvid", *sys.argv[1:]]}
        if world.first:
            session.folder.mkdir(parents=True, exist_ok=True)
            if request.probe is None:
                found["page"] = str(pages[0](found))
                session.say(f"page: {found['page']}")
                _keep(request.encoder, encoder, session.folder, found)
            else:
                replace_json(session.folder / "scored-again.json", found)
        session.clear()
    return found


def folder_of(request: ProbeRequest, encoder: FrozenEncoder) -> Path:
    """Where a probe's files go: ``--out``, or a folder of the benchmark's name in :func:`home_of`."""
    if request.out is not None:
        return request.out
    parts = (request.where.name, request.where.chosen_level, request.where.task, _weights(encoder))
    return home_of(request.encoder, encoder) / "_".join(part for part in parts if part)


def home_of(where: str, encoder: FrozenEncoder) -> Path:
    """Where all that is measured of an encoder goes: ``probes`` in a run's folder, or ``probes/<name>`` here."""
    run = Path(where)
    return run / "probes" if run.is_dir() and isinstance(encoder, OwnEncoder) else Path("probes") / _slug(encoder)


def _slug(encoder: FrozenEncoder) -> str:
    """A name for a folder; those that are not ours may be called alike, and get some of what tells them apart."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in encoder.name).strip("-.")
    return name if isinstance(encoder, OwnEncoder) else f"{name or 'encoder'}-{encoder.digest[:8]}"


def _weights(encoder: FrozenEncoder) -> str:
    return str(encoder.loaded.settings["loaded"]) if isinstance(encoder, OwnEncoder) else ""


def _own(encoder: FrozenEncoder) -> dict[str, Any]:
    """What is known of one of our own encoders: the step and the weights it comes from."""
    if not isinstance(encoder, OwnEncoder):
        return {}
    return {"step": encoder.loaded.settings["step"], "weights": _weights(encoder)}


def announcement(session: Session, encoder: FrozenEncoder) -> str:
    """What will be measured, before anything is."""
    recipe, spec, where = session.recipe, session.spec, session.where
    train, test = (len(session.clips[split]) for split in ("train", "test"))
    members = len(recipe.members())
    return (
        f"{encoder.name} on {where.name}, {where.chosen_level}: {session.task} ({len(session.classes)} classes). {train:,} "
        f"train clips, {recipe.held_out:.0%} of them held out to choose one of {members} probe{'s' if members > 1 else ''}; "
        f"{test:,} test clips, scored once. {spec.frames} frames at {spec.fps:g} fps, {spec.size} px; {recipe.segments} "
        f"segments, {recipe.views} views; layers {', '.join(map(str, session.layers(encoder)))}; depth {recipe.depth}; "
        f"{recipe.epochs} epochs of batches of {recipe.batch}; features {session.kind_of_features(encoder)}"
    )


def _score_again(session: Session, encoder: FrozenEncoder, file: Path) -> dict[str, Any]:
    """A kept probe's scores on the test split. Raises ``UserError`` where it was trained on clips of another form."""
    fitted, about = load_probe(file, encoder, session.classes)
    recipe = session.recipe = changed(session.recipe, layers=about["layers"], baselines=[], readers=[])
    fitted.probe.to(session.device)
    trained = {**about["clip"], "segments": about["segments"], "crop_share": about["crop_share"]}
    here = {**_clip(session), "segments": recipe.segments, "crop_share": recipe.crop_share}
    if trained != here:
        wanted = " ".join(f"{name}={value:g}" for name, value in trained.items())
        raise UserError(f"{file} was trained on clips of another form: ask for {wanted}")
    test = session.fresh(encoder, "test")
    places, probabilities = fitted.probabilities(test, f"testing {session.task}", world=session.world)
    truth = test.labels[session.task][places]
    result = result_of(fitted, test, truth, session.task, probabilities)
    reading = Reading(encoder, about["layers"], fitted, result, places, places, truth, probabilities, test, test)
    broken = {split: len(files) for split, files in session.broken().items()}
    figures = {**figures_of(session, reading), "train_clips": about["train_clips"]}
    figures["protocol"] |= about["settings"]
    return {**figures, "baselines": {}, "broken": broken, "probe": str(file)}


def _clip(session: Session) -> dict[str, Any]:
    return {"frames": session.spec.frames, "fps": session.spec.fps, "size": session.spec.size}


def _write(session: Session, reading: Reading) -> None:
    """The probe itself, its answers, and how classes are confused."""
    about = {
        "benchmark": session.where.name,
        "level": session.where.chosen_level,
        "task": session.task,
        "classes": list(session.classes),
        "layers": reading.layers,
        "train_clips": reading.result.train_clips,
        "clip": _clip(session),
        "segments": session.recipe.segments,
        "crop_share": session.recipe.crop_share,
        "settings": session.recipe.settings(),
    }
    save_probe(session.folder / "probe.safetensors", reading.fitted, reading.encoder, about)
    best = reading.probabilities.topk(min(5, reading.probabilities.shape[1]), dim=-1)
    clips = session.clips["test"]
    table = pa.table(
        {
            "clip": reading.samples.numpy(),
            "file": [name_of(clips, int(sample)) for sample in reading.samples],
            "truth": [session.classes[label] for label in reading.truth.tolist()],
            "answer": [session.classes[label] for label in best.indices[:, 0].tolist()],
            "probability": best.values[:, 0].numpy(),
            "best": [[session.classes[label] for label in row] for row in best.indices.tolist()],
        }
    )
    with replacing(session.folder / "answers.parquet") as beside:
        pq.write_table(table, beside)
    with replacing(session.folder / "confusion.csv") as beside, beside.open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["truth", *session.classes])
        rows.writerows([name, *row] for name, row in zip(session.classes, reading.result.confusion, strict=True))


def _keep(run: str, encoder: FrozenEncoder, folder: Path, found: dict[str, Any]) -> None:
    replace_json(folder / "probe.json", found)
    if isinstance(encoder, OwnEncoder):
        keep_probe(run, encoder.loaded, found)


def keep_probe(run: str, encoder: LoadedEncoder, figures: dict[str, Any]) -> dict[str, Any]:
    """``figures`` with the encoder's step and weights, also written beside the weights of a run (not of a released encoder)."""
    weights = encoder.settings["loaded"]
    own = {"step": encoder.settings["step"], "weights": weights, "clip": encoder.settings["clip"]}
    found = {"format_version": FORMAT_VERSION, **own, **figures}
    if not is_released(run):
        folder = Path(run) if Path(run).is_dir() else Path(run).parent
        name = "_".join((found["benchmark"], found["level"], found["task"], weights))
        replace_json(folder / f"probe_{name}.json", found)
    return found


def table_of(tasks: dict[str, dict[str, Any]]) -> Table:
    """A table of probe figures: a row an encoder, a column a task."""
    depths = {str(figures.get("depth", 1)) for figures in tasks.values()}
    table = Table(title=f"attentive probe of depth {' or '.join(sorted(depths))}, top-1 in percent (95% interval)")
    table.add_column("encoder")
    for name, figures in tasks.items():
        table.add_column(f"{name}: {figures['benchmark']} {figures['level']}", justify="right")
    for row in dict.fromkeys(row for figures in tasks.values() for row in _scores(figures)):
        cells = [_scores(figures).get(row) for figures in tasks.values()]
        table.add_row(row.replace("_", " "), *[score_words(cell) for cell in cells])
    return table


def _scores(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every encoder's score on a task: this one, other trained ones, then other ways to read this one, then the baselines."""
    others = {name: value for name, value in figures.items() if isinstance(value, dict) and "top1" in value}
    readers = {
        f"  this encoder, {name}": value
        for name, value in figures.get("readers", {}).items()
        if isinstance(value, dict)
    }
    shots = {f"  this encoder, {s['shots']} a class": s for s in figures.get("readers", {}).get("few_shot", [])}
    return {"this encoder": figures, **others, **readers, **shots, **figures["baselines"]}


def details_of(found: dict[str, Any]) -> list[str]:
    """Lines below the table: the other accuracies, the choice, and what one should know."""
    lines = []
    if found.get("top5") is not None:
        lines.append(f"top-5 {score_words({'top1': found['top5'], 'ci95': found['top5_ci95']})}")
    lines.append(f"mean over classes {score_words({'top1': found['mean_class'], 'ci95': found['mean_class_ci95']})}")
    lines.append(
        f"chosen on {found['held_out_clips']:,} held-out train clips ({100 * found['held_out_top1']:.1f} there): rate "
        f"{found['best_lr']:g}, weight decay {found['best_weight_decay']:g}"
    )
    return [*lines, *found.get("remarks", [])]


def print_probe(found: dict[str, Any], console: Console) -> None:
    """The table of one probe and what belongs to it."""
    console.print(table_of({found["task"]: found}))
    for line in details_of(found):
        console.print(f"· {line}", highlight=False, markup=False)
