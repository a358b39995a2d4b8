"""The verb ``generate``: read, draw, measure, and write films, a contact sheet and figures."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.evaluation.generation import load_drawing
from nextvid.files import replace_file, replace_json
from nextvid.generation.drawing import Drawing, Scene, draw, stage_scene, visible_places
from nextvid.generation.films import write_mp4
from nextvid.generation.material import Footage, Material, find_material, read_material
from nextvid.generation.measuring import measure, remarks_of, table_of
from nextvid.generation.page import write_page
from nextvid.generation.pictures import contact_sheet, film, films_alone
from nextvid.generation.request import (
    Plan,
    Request,
    check_alike,
    draws_of,
    plan_of,
    refuse_what_changes_nothing,
)
from nextvid.objectives.nextvid import NextVid
from nextvid.report.pictures import gif, png
from nextvid.training.device import device_of

FORMAT_VERSION = 1
SHEET, FILM, ANIMATION, FIGURES, ALONE = "contact.png", "drawn.mp4", "drawn.gif", "generation.json", "sample_{}.mp4"
PAGE = "report.html"


def generate(
    run: str, video: str, request: Request, console: Console, against: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Draw what a model makes of a video, a picture or a benchmark's clips, and write it to a folder.

    Returns what ``generation.json`` holds. Raises ``UserError`` for a model that draws nothing, for footage that cannot be
    read, and for options that cannot be met or change nothing.
    """
    material = find_material(video)
    objective, recipe = _load(run)
    other = _load_other(against, run, recipe) if against is not None else None
    models = [objective, *([other[0]] if other else [])]
    refuse_what_changes_nothing(request, models, material)
    plan = plan_of(request, objective, recipe, material.kind)
    footage = read_material(material, plan.cut)
    clips = footage.clips if plan.ahead is not None else footage.clips[:, : _whole(footage, recipe)]
    visible = visible_places(objective, recipe, clips, plan)
    drawing = draw(objective, clips, visible, plan, plan.samples)
    beside = draw(other[0], clips, visible, plan, draws_of(request, other[0])) if other else None
    if beside is not None and beside.samples.shape[-2:] != drawing.samples.shape[-2:]:
        raise UserError(f"--against {against} draws in another resolution than {run}: compare models that draw in one")
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": run,
        "decoder": objective.config.generation,
        **({"against": {"model": against, "decoder": other[0].config.generation}} if other else {}),
        "mode": "next frames" if plan.ahead is None else "roll-out",
        "material": _described(material, footage),
        "settings": _settings(plan),
        "figures": measure(drawing, beside, plan.ahead is not None, recipe.encoder.tubelet, console),
    }
    folder = out or _folder(run, material)
    scene = stage_scene(objective, clips, visible, plan)
    pictures = _write(folder, scene, drawing, beside, plan, _title(found))
    found["files"] = [*pictures.names, PAGE]
    write_page(folder / PAGE, found, _title(found), pictures.sheet, pictures.film, _left_out(footage))
    replace_json(folder / FIGURES, found)
    console.print(table_of(found))
    for remark in [*remarks_of(found), *_left_out(footage)]:
        console.print(f"· {remark}", highlight=False, markup=False)
    console.print(f"written: {', '.join(found['files'])} and {FIGURES} in {folder}", highlight=False, markup=False)
    return found


def _load(origin: str) -> tuple[NextVid, Recipe]:
    objective, recipe = load_drawing(origin)
    return objective.to(device_of("auto")), recipe


def _load_other(against: str, run: str, recipe: Recipe) -> tuple[NextVid, Recipe]:
    other = _load(against)
    check_alike(run, recipe, against, other[1])
    return other


def _whole(footage: Footage, recipe: Recipe) -> int:
    """As many frames as make whole latent ones."""
    frames, tubelet = footage.clips.shape[1], recipe.encoder.tubelet
    return frames - frames % tubelet


def _described(material: Material, footage: Footage) -> dict[str, Any]:
    clips, frames, _, size, _ = footage.clips.shape
    return {
        "name": material.name,
        "kind": material.kind,
        "clips": clips,
        "frames": frames,
        "size": size,
        **({"videos": footage.names} if material.kind == "videos" else {}),
        **({"left_out": footage.left_out} if footage.left_out else {}),
    }


def _settings(plan: Plan) -> dict[str, Any]:
    rolled = {"frames": plan.ahead, "context": plan.context, "window": plan.window} if plan.ahead is not None else {}
    return {
        **rolled,
        "fps": plan.cut.spec.fps,
        "start": plan.cut.start,
        "mask": plan.mask,
        "samples": plan.samples,
        "seed": plan.seed,
        "sampling": asdict(plan.sampling),
    }


def _folder(run: str, material: Material) -> Path:
    return (Path(run) if Path(run).is_dir() else Path()) / "generated" / material.stem


def _title(found: dict[str, Any]) -> str:
    settings, sampling = found["settings"], found["settings"]["sampling"]
    what = (
        f"{settings['frames']} frames rolled out after {settings['context']} real ones"
        if found["mode"] == "roll-out"
        else "next frames, each drawn from the real ones before it"
    )
    steps = f"{sampling['solver']}, {sampling['steps']} steps, temperature {sampling['temperature']:g}"
    if sampling["solver"] == "adaptive":
        steps = f"adaptive, tolerance {sampling['tolerance']:g}, temperature {sampling['temperature']:g}"
    how = f" ({steps})" if found["decoder"] == "flow" else " (regression)"
    return f"{Path(found['model']).name} on {Path(found['material']['name']).name}: {what}{how}"


@dataclass(frozen=True)
class Written:
    """The names of the pictures' files, and what the contact sheet (PNG) and the moving one (GIF) hold."""

    names: list[str]
    sheet: bytes
    film: bytes


def _write(folder: Path, scene: Scene, drawing: Drawing, other: Drawing | None, plan: Plan, title: str) -> Written:
    """All pictures. A single clip's samples are films of their own too."""
    folder.mkdir(parents=True, exist_ok=True)
    fps, moving = plan.cut.spec.fps, film(scene, drawing, other)
    sheet = png(contact_sheet(scene, drawing, other, fps, title))
    animation = gif(moving, milliseconds=round(1000 / fps))
    replace_file(folder / SHEET, sheet)
    replace_file(folder / ANIMATION, animation)
    write_mp4(folder / FILM, moving, fps)
    alone = films_alone(scene, drawing) if len(scene.real) == 1 else []
    names = [ALONE.format(number + 1) for number in range(len(alone))]
    for name, pictures in zip(names, alone, strict=True):
        write_mp4(folder / name, pictures, fps)
    for old in folder.glob(ALONE.format("*")):
        if old.name not in names:
            old.unlink()
    return Written([SHEET, FILM, ANIMATION, *names], sheet, animation)


def _left_out(footage: Footage) -> list[str]:
    return [f"left out: {reason}" for reason in list(footage.left_out.values())[:5]]
