"""``report.html``: what a run was trained on, how it went, what a probe reads from it, and what it draws."""

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from nextvid.errors import UserError
from nextvid.files import read_json, replace_file
from nextvid.inference.released import default_weights
from nextvid.report import pictures as draw
from nextvid.report.curves import curves, panels, svg
from nextvid.report.pictures import Pictures, RollOut
from nextvid.report.tables import generation_rows, probe_rows, setting_rows, stage_rows
from nextvid.report.template import template

FORMAT_VERSION = 1


def write_report(run: Path, pictures: Pictures | None = None) -> Path:
    """Write ``report.html`` into a run's folder from its files, and from ``pictures`` where there are some.

    A section whose figures or pictures are missing says what would fill it. Raises ``UserError`` where there is no run.
    """
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} holds no recipe.yaml; a page is made of a run's folder")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    metrics, environment = read_json(run / "metrics.json"), read_json(run / "environment.json")
    rows = read_rows(run)
    text = template("page.html.j2").render(
        format_version=FORMAT_VERSION,
        name=recipe["name"],
        method=recipe["objective"]["name"],
        init=_origin(recipe.get("init")),
        settings=setting_rows(recipe, metrics, environment),
        stages=stage_rows(recipe),
        curves=[Markup(svg(panel)) for panel in panels(rows)],
        probe=probe_rows({**_probes_beside(run), **metrics.get("probe", {})}),
        generation=generation_rows(metrics.get("generation", {})),
        generation_of=_where_drawn(metrics.get("generation", {})),
        drawn_by=metrics.get("generation", {}).get("model", recipe["name"]),
        shown=_shown(pictures) if pictures else None,
        command=shlex.join(["nextvid", *environment.get("command", [])[1:]]),
    )
    page = run / "report.html"
    replace_file(page, text.encode())
    return page


def _origin(init: dict[str, Any] | str | None) -> str | None:
    """What a run started from, where it did; earlier versions stored the origin alone."""
    return init["origin"] if isinstance(init, dict) else init


def save_figures(run: Path, pictures: Pictures, folder: Path) -> list[Path]:
    """The page's pictures as files: curves, drawings, the roll-out as a film and at rest, feature maps; what there is."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = range(min(3, len(pictures.features.clips)))
    files = {"features.png": draw.png(draw.stack([draw.feature_sheet(pictures.features, clip) for clip in clips]))}
    if pictures.drawings:
        files["next-frames.png"] = draw.png(draw.stack([draw.drawing_sheet(pictures.drawings, clip) for clip in clips]))
    if pictures.rollout:
        files["roll-out.gif"] = draw.gif(draw.roll_out_film(pictures.rollout))
        files["roll-out.png"] = draw.png(draw.stack([draw.roll_out_sheet(pictures.rollout, clip) for clip in clips]))
    for name, content in files.items():
        replace_file(folder / name, content)
    rows = read_rows(run)
    if rows:
        curves(rows).savefig(folder / "curves.png", dpi=110, facecolor="white")
    return sorted([folder / name for name in files] + ([folder / "curves.png"] if rows else []))


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``, without a last line that was cut short."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []


def _shown(pictures: Pictures) -> dict[str, Any]:
    features = pictures.features
    shown: dict[str, Any] = {
        "features": [_image(draw.png(draw.feature_sheet(features, clip))) for clip in range(len(features.maps))]
    }
    if pictures.drawings:
        clips = range(len(pictures.drawings.truth))
        shown["drawings"] = [_image(draw.png(draw.drawing_sheet(pictures.drawings, clip))) for clip in clips]
        shown["meaning"] = pictures.drawings.meaning
    return {**shown, **(_rolled(pictures.rollout) if pictures.rollout else {})}


def _rolled(rollout: RollOut) -> dict[str, Any]:
    return {
        "film": _image(draw.gif(draw.roll_out_film(rollout)), "gif"),
        "rolled": [_image(draw.png(draw.roll_out_sheet(rollout, clip))) for clip in range(len(rollout.truth))],
        "context": rollout.context,
        "frames": rollout.truth.shape[1],
    }


def _image(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _probes_beside(run: Path) -> dict[str, Any]:
    """What ``nextvid probe`` has left in the run's folder, by task and level."""
    config = read_json(run / "config.json")
    weights = default_weights(config["weights"]) if config else "ema"
    found = [read_json(file) for file in sorted(run.glob(f"probe_*_{weights}.json"))]
    return {f"{probe['task']} ({probe['level']})": probe for probe in found}


def _where_drawn(generation: dict[str, Any]) -> str:
    if "benchmark" in generation:
        return f"{generation['model']} on {generation['benchmark']}, {generation['level']}, test clips"
    return str(generation.get("footage", "Clips of the run's own sources"))
