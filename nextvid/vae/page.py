"""The page of an autoencoder's training: figures, curves, and pictures beside what they became."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from markupsafe import Markup

from nextvid.files import read_json, replace_file
from nextvid.models.autoencoder import Autoencoder
from nextvid.report.curves import panels, svg
from nextvid.report.page import read_rows
from nextvid.report.pictures import Picture, png, stack, strip
from nextvid.report.template import template
from nextvid.vae.evaluation import Judge, redraw

FORMAT_VERSION = 1
SHOWN, A_ROW, SIDE = 24, 8, 112


def write_vae_page(run: Path, judge: Judge, network: Autoencoder) -> Path:
    """Write ``report.html``, which needs nothing beside it, and ``reconstructions.png``."""
    picture = reconstructions(judge, network)
    replace_file(run / "reconstructions.png", png(picture))
    metrics, recipe = read_json(run / "metrics.json"), yaml.safe_load((run / "recipe.yaml").read_text())
    rows = read_rows(run)
    text = template("vae.html.j2").render(
        format_version=FORMAT_VERSION,
        name=recipe["name"],
        figures=_figures(metrics),
        held_out=judge.held_out,
        pictures="data:image/png;base64," + base64.b64encode(png(picture)).decode(),
        curves=[Markup(svg(figure)) for figure in panels(rows)] if rows else [],
        recipe=yaml.safe_dump(recipe, sort_keys=False),
    )
    replace_file(run / "report.html", text.encode())
    return run / "report.html"


def reconstructions(judge: Judge, network: Autoencoder) -> Picture:
    """Rows of pictures, each above a row of what they became."""
    shown = judge.pictures[:SHOWN]
    drawn = (redraw(network, shown, progress=False) * 255).round().to(torch.uint8)
    rows = []
    for start in range(0, len(shown), A_ROW):
        for part in (shown, drawn):
            row = part[start : start + A_ROW].permute(0, 2, 3, 1).numpy()
            missing = A_ROW - len(row)
            if missing:
                row = np.concatenate([row, np.full((missing, *row.shape[1:]), 255, np.uint8)])
            rows.append(strip(row, SIDE))
    return stack(rows)


def _figures(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    vae, found = metrics["vae"], metrics["reconstruction"]
    ssim = found["ssim"]
    sharpness = found["sharpness"]
    return [
        ("PSNR", f"{found['psnr']:.2f} dB over all pixels, {found['psnr_mean']:.2f} dB a mean over pictures"),
        ("SSIM", "–" if ssim is None else f"{ssim:.3f}"),
        ("Fréchet distance on EfficientNet-Lite0", f"{found['frechet']:.2f} ({found['pictures']:,} pictures)"),
        ("sharpness", f"{sharpness['drawn']:.4f} drawn, {sharpness['truth']:.4f} true (gradient energy)"),
        (
            "latent",
            f"{vae['latent_channels']} channels every {vae['stride']} pixels: {vae['compression']:.3g} times fewer values",
        ),
        ("parameters", f"{vae['parameters'] / 1e6:.2f} M"),
        ("training", f"{vae['steps']:,} steps, {vae['pictures']:,} pictures, {vae['seconds'] / 60:.0f} minutes"),
    ]
