"""What a recipe would make of some footage: how many clips, and how often each file comes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextvid.config import Recipe


def prospect(rows: pa.Table, recipe: Recipe) -> list[dict[str, Any]]:
    """For every stage of ``recipe``, were the usable rows all its footage.

    ``clip_seconds``: what a clip lasts; ``clips``: how many fit side by side, a shorter video and a picture counting
    for one; ``shorter``: videos shorter than a clip, which are played back and forth; ``draws``: samples of the stage;
    ``epochs``: how often each file is drawn.
    """
    usable = rows.filter(pc.equal(rows["status"], "usable"))
    seconds = usable["seconds"].to_numpy()
    moving = np.array(pc.equal(usable["kind"], "video").to_pylist(), dtype=bool)
    found = []
    for stage in recipe.stages:
        length = stage.frames / stage.fps
        found.append(
            {
                "stage": stage.name,
                "frames": stage.frames,
                "fps": stage.fps,
                "clip_seconds": length,
                "clips": int(np.maximum(1, np.floor(seconds / length)).sum()),
                "shorter": int((moving & (seconds < length)).sum()),
                "draws": stage.steps * stage.batch,
                "epochs": stage.steps * stage.batch / max(1, len(seconds)),
            }
        )
    return found
