"""Verbs that look at footage and make it ready."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nextvid.cli.common import Json, app, print_figures


@app.command()
def scan(
    sources: Annotated[
        list[str], typer.Argument(help="Folders, globs, lists (csv, txt, parquet), tars, URLs, NAME:ROOT.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest, a Parquet file.")] = Path("footage.parquet"),
    everything: Annotated[bool, typer.Option(help="Decode every frame of large files too.")] = False,
    min_frames: Annotated[int, typer.Option(min=1, help="A video of fewer frames is too short: the tubelet.")] = 2,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a file may take.")] = 60.0,
    recipe: Annotated[str, typer.Option(help="Say what this recipe would make of it.")] = "tiny",
    against: Annotated[
        str | None, typer.Option(help="Name what is also in this benchmark's test split; NAME, or NAME:ROOT.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="With --against: a level of the benchmark.")] = None,
    as_json: Json = False,
) -> None:
    """Open every file of some footage and write down what is in it; the same command goes on where it stopped.

    Example: nextvid scan my_videos -o footage.parquet
    """
    from nextvid.footage.command import scan_footage  # noqa: PLC0415
    from nextvid.footage.scan import ScanSettings  # noqa: PLC0415

    settings = ScanSettings(everything, min_frames)
    console = Console(stderr=as_json)
    print_figures(scan_footage(sources, out, settings, recipe, workers, timeout, against, level, console), as_json)


@app.command()
def prepare(
    manifest: Annotated[Path, typer.Argument(help="A manifest that nextvid scan has written.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the shards.")],
    short_side: Annotated[int, typer.Option(help="Pixels of the short side, where there are as many.")] = 256,
    seconds: Annotated[float, typer.Option(help="The longest clip.")] = 10.0,
    min_seconds: Annotated[float, typer.Option(help="Shorter shots are left out, unless a video has no other.")] = 0.5,
    keyframes: Annotated[int, typer.Option(help="Frames from one key frame to the next.")] = 12,
    crf: Annotated[int, typer.Option(help="The encoder's quality: lower is better and larger.")] = 23,
    codec: Annotated[str, typer.Option(help="libx264 or libx265.")] = "libx264",
    fps: Annotated[float | None, typer.Option(help="Frames a second at most; by default all are kept.")] = None,
    shard_mb: Annotated[float, typer.Option(help="About how many million bytes make a shard.")] = 128.0,
    quality: Annotated[int, typer.Option(help="Of the JPEGs that pictures become.")] = 95,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes here, or of --ray local; one a core.")] = None,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster's address, or local; all must see the paths.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds without a new clip that a file may take.")] = 600.0,
    verify: Annotated[bool, typer.Option("--verify", help="Read all shards, and make damaged ones anew.")] = False,
    latents: Annotated[str | None, typer.Option(help="Store latents too, of this space: NAME or NAME:WEIGHTS.")] = None,
    latents_with: Annotated[list[str] | None, typer.Option(help="A further setting of the space: key=value.")] = None,
    latents_size: Annotated[int | None, typer.Option(min=1, help="By default --short-side.")] = None,
    latents_crop: Annotated[str | None, typer.Option(help="center (the default) or none.")] = None,
    latents_patch: Annotated[int | None, typer.Option(min=1, help="The encoder's patch (for features).")] = None,
    latents_precision: Annotated[str | None, typer.Option(help="float32 (the default) or float16.")] = None,
    as_json: Json = False,
) -> None:
    """Re-encode footage to small clips that read fast, cut where shots begin; the same command goes on where it stopped.

    Example: nextvid prepare footage.parquet -o shards --latents vae:runs/my-vae --latents-size 64
    """
    from nextvid.footage.command import latents_asked_for, prepare_shards  # noqa: PLC0415
    from nextvid.footage.plan import PrepareSettings  # noqa: PLC0415

    settings = PrepareSettings(short_side, seconds, min_seconds, keyframes, crf, codec, fps, shard_mb, quality)
    wanted = latents_asked_for(latents, latents_size, latents_crop, latents_patch, latents_precision, latents_with)
    console = Console(stderr=as_json)
    print_figures(prepare_shards(manifest, out, settings, wanted, workers, ray, verify, timeout, console), as_json)
