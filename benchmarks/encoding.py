"""Clips and videos that the paper's encoders encode a second, at the shapes of the four official recipes.

    python benchmarks/encoding.py --device cuda -o benchmarks/results/encoding.json

A video costs as many clips as the recipe has segments, in training; weights are random, which costs the same. bfloat16 on CUDA,
float32 elsewhere. ``--sizes tiny --size 32`` tries the script on a small machine.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nextvid.evaluation.probe import autocast
from nextvid.evaluation.protocol import EVAL_RECIPES, load_protocol
from nextvid.files import replace_json
from nextvid.models.encoder import Encoder
from nextvid.models.sizes import ENCODERS

OFFICIAL = ("kinetics400", "imagenet1k", "ssv2", "diving48")


def main() -> None:
    """Measure every size at every recipe's shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["vit_l", "vit_h", "vit_g"], choices=list(ENCODERS))
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--batch", type=int, default=8, help="clips at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/encoding.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    found: dict[str, Any] = {"device": _name_of(device), "torch": torch.__version__, "pixels": options.size}
    for size in options.sizes:
        encoder = Encoder(ENCODERS[size]).to(device).eval()
        found[size] = {name: _speed(encoder, name, options, device) for name in OFFICIAL}
        Console().print(size, found[size])
    replace_json(options.out, found)


def _speed(encoder: Encoder, name: str, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    recipe = load_protocol(str(EVAL_RECIPES / f"{name}.yaml"), name, [])
    shape = (options.batch, recipe.frames or 16, 3, options.size, options.size)
    frames = torch.rand(shape, device=device) * 2 - 1
    seconds = []
    for round_ in range(options.rounds + 1):
        started = time.perf_counter()
        with torch.inference_mode(), autocast(device, "bfloat16" if device.type == "cuda" else "float32"):
            encoder(frames)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if round_:
            seconds.append(time.perf_counter() - started)
    clips = options.batch / statistics.median(seconds)
    return {"frames": shape[1], "clips_per_second": clips, "videos_per_second": clips / recipe.segments}


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
