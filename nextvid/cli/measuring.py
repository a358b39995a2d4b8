"""Verbs that say what an encoder has learned."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nextvid.cli.common import Json, app, print_figures, rank
from nextvid.errors import UserError


@app.command()
def probe(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, an exported file, nextvid-tiny, hf:FOLDER of a transformers model, or module:function."
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, on top of the protocol's recipe.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="moving-sprites, camera-moves, motion-capture, ego-motion, or NAME:ROOT.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Videos of one's own, without labels: retrieval, arrow of time, clip order.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="A level of the benchmark; by default its first.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of the benchmark; by default its first.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A protocol: a YAML file, or a packaged name; by default the benchmark's.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="ema or online; by default ema where there is one.")] = None,
    train_clips: Annotated[int | None, typer.Option(min=20, help="By default the benchmark's length.")] = None,
    test_clips: Annotated[int | None, typer.Option(min=1, help="By default the benchmark's length.")] = None,
    standardise: Annotated[bool | None, typer.Option(help="Standardise features per channel first (or not).")] = None,
    probe: Annotated[Path | None, typer.Option(help="Score this probe.safetensors again, and train none.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder of figures, page and probe.")] = None,
    as_json: Json = False,
) -> None:
    """Read a frozen encoder by a benchmark's protocol, beside its baselines. On many devices: by torchrun.

    Example: nextvid probe runs/demo --benchmark moving-sprites --task digit
    """
    from nextvid.evaluation.command import ProbeRequest, print_probe, probe_run  # noqa: PLC0415
    from nextvid.evaluation.footage import probe_footage  # noqa: PLC0415
    from nextvid.evaluation.session import Where  # noqa: PLC0415

    if (benchmark is None) == (on is None):
        raise UserError(
            "say what to probe on: --benchmark NAME, or --on FOLDER of videos without labels (one of the two)"
        )
    console = Console(stderr=as_json)
    where = Where(benchmark or "", level, task)
    request = ProbeRequest(
        run, where, recipe, overrides or [], weights, train_clips, test_clips, standardise, probe, out
    )
    if on is not None:
        print_figures(probe_footage(request, on, console), as_json)
        return
    found = probe_run(request, console)
    if rank() == 0:
        print_probe(found, console)
        print_figures(found, as_json)


@app.command()
def leaderboard(
    encoders: Annotated[
        list[str], typer.Argument(help="Runs, files, hf:FOLDER, module:function; and key=value for the protocol.")
    ],
    benchmark: Annotated[str, typer.Option(help="A built-in benchmark, or NAME:ROOT.")],
    level: Annotated[str | None, typer.Option(help="A level of the benchmark; by default its first.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of the benchmark; by default its first.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A protocol; by default the benchmark's.")] = None,
    train_clips: Annotated[int | None, typer.Option(min=20, help="By default the benchmark's length.")] = None,
    test_clips: Annotated[int | None, typer.Option(min=1, help="By default the benchmark's length.")] = None,
    standardise: Annotated[bool | None, typer.Option(help="Standardise features per channel first (or not).")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; its figures go beside it as JSON.")] = Path(
        "leaderboard.html"
    ),
    as_json: Json = False,
) -> None:
    """Any encoders by one protocol on the same clips: one table, with intervals, beside what needs no learning.

    Example: nextvid leaderboard runs/demo nextvid-tiny hf:models/videomae --benchmark moving-sprites
    """
    from nextvid.evaluation.command import ProbeRequest  # noqa: PLC0415
    from nextvid.evaluation.leaderboard import WIDTH, leaderboard_of, table_of  # noqa: PLC0415
    from nextvid.evaluation.session import Where  # noqa: PLC0415

    names = [name for name in encoders if "=" not in name]
    overrides = [name for name in encoders if "=" in name]
    console = Console(stderr=as_json)
    where = Where(benchmark, level, task)
    request = ProbeRequest("", where, recipe, overrides, None, train_clips, test_clips, standardise)
    found = leaderboard_of(names, request, out, console)
    if rank() == 0:
        console.width = max(console.width, WIDTH)
        console.print(table_of(found))
        for remark in found["remarks"]:
            console.print(f"· {remark}", highlight=False, markup=False)
        console.print(f"page: {out}", highlight=False)
        print_figures(found, as_json)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Runs' folders, or nextvid-tiny: two or more.")],
    benchmark: Annotated[str | None, typer.Option(help="Probe what was not probed yet on this benchmark.")] = None,
    level: Annotated[str | None, typer.Option(help="A level of the benchmark; by default its first.")] = None,
    train_clips: Annotated[int | None, typer.Option(min=20, help="By default the benchmark's length.")] = None,
    test_clips: Annotated[int | None, typer.Option(min=1, help="By default the benchmark's length.")] = None,
    out: Annotated[Path, typer.Option(help="The page; its figures go beside it as JSON.")] = Path("compare.html"),
    as_json: Json = False,
) -> None:
    """Runs side by side: what each has cost, what a probe reads from it, how it went, and in what the recipes differ.

    Example: nextvid compare runs/tiny runs/videomae-tiny --benchmark moving-sprites
    """
    from nextvid.comparison import compare_runs, table_of  # noqa: PLC0415

    console = Console(stderr=as_json)
    found = compare_runs(runs, benchmark, level, train_clips, test_clips, out, console)
    console.print(table_of(found))
    for remark in found["remarks"]:
        console.print(f"· {remark}", highlight=False, markup=False)
    console.print(f"page: {out}", highlight=False)
    print_figures(found, as_json)


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="A run's folder, a released file, or nextvid-tiny.")],
    video: Annotated[str, typer.Argument(help="A video, a picture, a folder or glob of videos, or BENCHMARK:LEVEL.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default RUN/generated/VIDEO.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Roll out so many frames; by default, next frames.")] = None,
    mask: Annotated[bool, typer.Option("--mask", help="Hide from the encoder what the recipe's mask hides.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Drawings of every frame; by default 8.")] = None,
    solver: Annotated[str | None, typer.Option(help="euler (the default), heun or adaptive.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of euler or heun; by default 25.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Of adaptive; by default 0.001.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Deviation of the first noise; by default 1.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed draws others; by default 0.")] = None,
    start: Annotated[float | None, typer.Option(min=0, help="Seconds into the video; by default 0.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Real frames before a roll-out.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; by default as the model was trained.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side; by default as trained.")] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Of a benchmark or a folder; by default 24.")] = None,
    against: Annotated[str | None, typer.Option(help="Another run, such as one whose decoder regresses.")] = None,
    as_json: Json = False,
) -> None:
    """Draw what a model expects after a video or a picture: films, a contact sheet, and how like the truth they are.

    Example: nextvid generate nextvid-tiny moving-sprites:still
    """
    from nextvid.generation import Request  # noqa: PLC0415
    from nextvid.generation import generate as draw  # noqa: PLC0415

    said = Request(frames, mask, samples, solver, steps, temperature, tolerance, seed, start, context, fps, size, clips)
    print_figures(draw(run, video, said, Console(stderr=as_json), against, out), as_json)
