"""What the alignment with a vision network does to an autoencoder: reconstruction, and what a probe reads from the latents.

    nextvid vae train film --out runs/vae-film
    nextvid vae train film losses.alignment.weight=0 --out runs/vae-not-aligned
    python benchmarks/alignment.py aligned=runs/vae-film "not aligned=runs/vae-not-aligned"

The probe is the project's single-layer attentive probe on frozen latents, sprites moving over film. It learns from a part of the
train clips and is scored on others of them; the test part is not touched.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.features import RenderedClips, features, render
from nextvid.evaluation.fitting import fit_probe
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.scores import wilson
from nextvid.files import read_json, replace_json
from nextvid.targets import load
from nextvid.training.device import processor_name

FORMAT_VERSION = 1
SPEC, BENCHMARK, LEVEL, HELD_OUT = ClipSpec(8, 6, 32), "moving-sprites", "film", 0.375
Encode = Callable[[UInt8[Tensor, "clips frames 3 size size"]], Float[Tensor, "clips latent_frames places channels"]]


def main() -> None:
    """Measure every autoencoder, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", help="NAME=RUN")
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/alignment.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = render(benchmarks.load(BENCHMARK, LEVEL, "train", arguments.clips), SPEC, progress=False)
    rows: dict[str, Any] = {"pixels": {"probe": _read(load("pixels", patch=4).encode, clips)}}
    for text in arguments.rows:
        name, _, run = text.partition("=")
        metrics = read_json(Path(run) / "metrics.json")
        rows[name] = {**metrics["reconstruction"], "steps": metrics["vae"]["steps"]}
        rows[name]["probe"] = _read(load("vae", weights=run).encode, clips)
    for name, row in rows.items():
        print(name, json.dumps(row))
    replace_json(
        arguments.results,
        {
            "format_version": FORMAT_VERSION,
            "command": shlex.join(["python", *sys.argv]),
            "processor": processor_name(),
            "torch": torch.__version__,
            "benchmark": f"{BENCHMARK}/{LEVEL}",
            "clips": arguments.clips,
            "held_out": HELD_OUT,
            "rows": rows,
        },
    )


def _read(encode: Encode, clips: RenderedClips) -> dict[str, Any]:
    config = ProbeConfig(held_out=HELD_OUT, epochs=10)
    seen = features(encode, clips, progress=False)
    found = {}
    for task in clips.tasks:
        best = fit_probe(seen, task, config, progress=False)
        share, count = best.best.held_out_top1, best.held_out_clips
        found[task] = {"top1": share, "ci95": wilson(round(share * count), count)}
    return found


if __name__ == "__main__":
    main()
