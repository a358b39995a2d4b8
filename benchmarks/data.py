"""How fast footage is read, always against a limit or a peer in the same run, and what ten million files cost.

    python benchmarks/data.py --film bbb.mp4

``--film``: a film of 720 lines or more, by default the built-in one scaled up, which decodes faster than a real one. Of its
first minutes 8 originals of 30 s are made (H.264 by x264's own settings: a key frame every 250 frames at most). Parts:

``loader``: clips a second of the loader, and of as many processes that make the same clips and throw them away.
``shards``: clips a second of the loader and of training (the tiny recipe, one worker) from prepared shards, and from the
originals.
``peers``: the loader beside loaders written as V-JEPA 2's and VideoMAE's are (decord where it is installed, and PyAV).
``scale``: start-up, time a sample, private memory of a worker and time of a scan a file with a thousand and ten million rows.

Writes ``benchmarks/results/data.json``. Leave the machine alone meanwhile.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.video.frame import PictureType
from data_peers import peers
from data_scale import scale
from rich.console import Console

from nextvid.config import load_recipe
from nextvid.data.clip import ClipSpec
from nextvid.data.film import load_film, resize
from nextvid.data.footage import FootageSource
from nextvid.data.loader import BatchPlan, batches
from nextvid.data.manifest import Manifest
from nextvid.data.mixture import Mixture
from nextvid.data.transforms import Augmentation
from nextvid.files import replace_json
from nextvid.footage.prepare import prepare_footage
from nextvid.footage.scan import scan
from nextvid.training import loop
from nextvid.training.device import describe

RESULTS = Path(__file__).parent / "results" / "data.json"
CONSOLE = Console(quiet=True)
FILES, SECONDS, FPS = 8, 30, 24
SPEC = ClipSpec(frames=16, fps=4.0, size=224)
AUGMENTATION = Augmentation(crop_scale=(0.3, 1.0), crop_aspect=(0.75, 1.35), flip=0.5)
BATCH = 8
PARTS = ("loader", "shards", "peers", "scale")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    parts = chosen.only or PARTS
    found: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.only and chosen.out.is_file() else {}
    found |= {
        "command": f"python benchmarks/data.py{' --film ' + chosen.film.name if chosen.film else ''}",
        "machine": {**describe(torch.device("cpu")), "av": av.__version__},
        "workers": chosen.workers,
        "clip": f"{SPEC.frames} frames at {SPEC.fps:g} fps, {SPEC.size} px, batches of {BATCH}",
    }
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if set(parts) & {"loader", "shards", "peers"}:
            originals, prepared = make_footage(chosen.film, home)
            found["footage"] = describe_footage(chosen.film, originals, prepared)
        if "loader" in parts:
            found["loader"] = against_bare(prepared, chosen.workers, chosen.repeats)
        if "shards" in parts:
            found["shards"] = against_originals(originals, prepared, home, chosen.workers, chosen.repeats)
        if "peers" in parts:
            found["peers"] = peers(originals, chosen.workers, chosen.repeats, our_rate)
        if "scale" in parts:
            found["scale"] = scale(home, chosen.rows)
    replace_json(chosen.out, found)
    print(json.dumps({part: found[part] for part in parts}, indent=1))


def make_footage(film: Path | None, home: Path) -> tuple[Path, Path]:
    """The manifests of the originals and of the shards that are prepared from them."""
    folder = home / "originals"
    folder.mkdir()
    pictures = _film_frames(film)
    for number in range(FILES):
        _write(folder / f"{number}.mp4", pictures)
    originals = home / "originals.parquet"
    scan([str(folder)], originals, console=CONSOLE)
    prepare_footage(originals, home / "shards", console=CONSOLE)
    return originals, home / "shards" / "manifest.parquet"


def _film_frames(film: Path | None) -> Iterator[av.VideoFrame]:
    """Frames of 720 lines; of the built-in film each is scaled up."""
    if film is None:
        for picture in load_film().frames:
            yield av.VideoFrame.from_ndarray(resize(picture[None], 720, 1280)[0], format="rgb24")
        return
    with av.open(str(film)) as container:
        container.seek(60 * av.time_base)
        for frame in container.decode(video=0):
            yield frame.reformat(1280, 720, "yuv420p")


def _write(path: Path, pictures: Iterator[av.VideoFrame]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number, picture in zip(range(FPS * SECONDS), pictures, strict=False):
            frame = picture.reformat(format="yuv420p")
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, FPS), PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def describe_footage(film: Path | None, *manifests: Path) -> dict[str, Any]:
    """What was measured on."""
    found: dict[str, Any] = {"film": film.name if film else "built-in, scaled up"}
    for name, manifest in zip(("originals", "prepared"), manifests, strict=True):
        rows = Manifest(manifest)
        summary = rows.summary
        found[name] = {"files": len(rows), "hours": summary["hours"], "bytes": summary["bytes"]}
    return found


def mixture_of(manifest: Path) -> Mixture:
    """The footage of a manifest as one source."""
    return Mixture([FootageSource(Manifest(manifest), augmentation=AUGMENTATION)], [1.0], seed=0)


def our_rate(manifest: Path, workers: int, clips: int) -> float:
    """Clips a second of the loader, once it runs."""
    plans = [BatchPlan(number * BATCH, BATCH, SPEC.frames, SPEC.fps, SPEC.size) for number in range(clips // BATCH + 4)]
    stream = iter(batches([mixture_of(manifest)], plans, workers))
    for _ in range(4):
        next(stream)
    start = time.perf_counter()
    count = sum(len(batch.keys) for batch in stream)
    return count / (time.perf_counter() - start)


def bare_rate(manifest: Path, workers: int, clips: int) -> float:
    """Clips a second of processes that make the same clips and throw them away."""
    context = torch.multiprocessing.get_context("fork")
    ready, go = context.Barrier(workers + 1), context.Barrier(workers + 1)
    made = [
        context.Process(target=_make, args=(mixture_of(manifest), range(worker, clips, workers), ready, go))
        for worker in range(workers)
    ]
    for process in made:
        process.start()
    ready.wait()
    start = time.perf_counter()
    go.wait()
    for process in made:
        process.join()
    return clips / (time.perf_counter() - start)


def _make(mixture: Mixture, numbers: range, ready: Any, go: Any) -> None:
    torch.set_num_threads(1)
    mixture.attempt(10**6, 0, SPEC)
    ready.wait()
    go.wait()
    for number in numbers:
        mixture.attempt(4 * BATCH + number, 0, SPEC)


def against_bare(manifest: Path, workers: int, repeats: int) -> dict[str, Any]:
    """The loader against bare decoding, in turn."""
    pairs = [(our_rate(manifest, workers, 400), bare_rate(manifest, workers, 400)) for _ in range(repeats)]
    return _compared("loader", "bare", pairs)


def _compared(one: str, other: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        one: [round(pair[0], 2) for pair in pairs],
        other: [round(pair[1], 2) for pair in pairs],
        "ratio": round(statistics.median(pair[0] / pair[1] for pair in pairs), 3),
    }


def against_originals(originals: Path, prepared: Path, home: Path, workers: int, repeats: int) -> dict[str, Any]:
    """Prepared shards against the originals: the loader alone, and training a tiny encoder."""
    loaded = [(our_rate(prepared, workers, 240), our_rate(originals, workers, 48)) for _ in range(repeats)]
    trained = [
        (_training_rate(prepared, home / f"prepared-{turn}"), _training_rate(originals, home / f"originals-{turn}"))
        for turn in range(repeats)
    ]
    return {
        "loader": _compared("prepared", "originals", loaded),
        "training": _compared("prepared", "originals", trained),
    }


def _training_rate(manifest: Path, out: Path) -> float:
    """Clips a second of ``pretrain``: the tiny recipe with its own worker and clips, from the second logged row on."""
    sources = f"data.sources=[{{path: {manifest}}}]"
    recipe = load_recipe("tiny", [sources, "training.log_every=5", "training.threads=1"])
    loop.pretrain(recipe, out, 25, CONSOLE)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[1], rows[-1]
    return (last["clips"] - first["clips"]) / (last["time"]["seconds"] - first["time"]["seconds"])


if __name__ == "__main__":
    main()
