"""``nextvid probe RUN --on FOLDER``: what needs no labels, beside the same of what has learnt nothing."""

import os
from typing import Any

from rich.console import Console

from nextvid.errors import UserError
from nextvid.evaluation.baseline_encoders import baseline_encoders
from nextvid.evaluation.command import ProbeRequest, home_of
from nextvid.evaluation.protocol import changed, load_protocol
from nextvid.evaluation.unlabelled import measure_footage, table_of
from nextvid.files import replace_json
from nextvid.training.device import device_of

UNREAD = (
    "layers",
    "segments",
    "views",
    "crop_share",
    "augmentation",
    "copies",
    "features",
    "readers",
    "workers",
    "timeout",
    "encode_batch",
    "train_clips",
    "test_clips",
    "cached_as",
    "disk_share",
    "keep_features",
)
"""Settings that are about a benchmark's clips."""
BASELINES = ("middle_frame", "pixels", "optical_flow", "random_init")


def probe_footage(request: ProbeRequest, source: str, console: Console) -> dict[str, Any]:
    """Retrieval, arrow of time and clip order on videos of one's own; the figures go to the encoder's folder.

    Raises ``UserError`` for options that are about labels, and as :func:`nextvid.evaluation.unlabelled.measure_footage` does.
    """
    told = (request.where.level, request.where.task, request.train_clips, request.test_clips, request.probe)
    if any(value is not None for value in told):
        raise UserError(
            "--level, --task, --train-clips, --test-clips and --probe are about a benchmark's labels: with --on leave them out"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--on runs in one process: start it without torchrun")
    recipe, usual = load_protocol(request.recipe, "", list(request.overrides)), load_protocol(None, "", [])
    unread = [name for name in UNREAD if getattr(recipe, name) != getattr(usual, name)]
    if unread:
        raise UserError(f"{unread[0]} says nothing of --on, which reads the last layer of whole clips: leave it out")
    recipe = changed(recipe, standardise=request.standardise)
    encoder = request.open()
    spec = recipe.spec_for(encoder)
    device = device_of(recipe.device)
    wanted = [name for name in recipe.baselines if name in BASELINES]
    others = {made.name: made.to(device).eval() for made in baseline_encoders(encoder, spec, wanted)}
    found = measure_footage(
        encoder.to(device).eval(),
        source,
        spec=spec,
        others=others,
        config=recipe,
        seed=recipe.seed,
        device=device,
    )
    found["encoder"] = {"name": encoder.name, "kind": encoder.kind, "digest": encoder.digest}
    console.print(table_of(found))
    folder = request.out or home_of(request.encoder, encoder) / "footage"
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / "footage.json", found)
    console.print(f"figures: {folder / 'footage.json'}", highlight=False)
    return found
