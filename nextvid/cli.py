"""The command line: one function a verb; each parses, calls and prints."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nextvid.errors import LostError, Stopped, UserError

UNSOUND, INPUT_IS_WRONG, STOPPED = 1, 2, 75

app = typer.Typer(
    help="Learn video encoders from unlabelled footage by masked next-frame prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
bench_app = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
vae_app = typer.Typer(help="Autoencoders: spaces to draw in, made for footage of one's own.", no_args_is_help=True)
app.add_typer(vae_app, name="vae")
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else on standard output.")]


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a packaged one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, on top of the recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/<recipe>.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="End after this many steps in all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's seed.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage of the recipe; may be repeated.")] = None,
    flops_of: Annotated[
        str | None, typer.Option(help="Fit the longest stage so that all costs what this recipe or run costs.")
    ] = None,
    allow: Annotated[bool, typer.Option("--allow", help="Go on with a run though its recipe has changed.")] = False,
    as_json: Json = False,
) -> None:
    """Pretrain an encoder; the same command on the same folder goes on where it stopped. On many devices: by torchrun.

    Example: nextvid pretrain recipes/tiny.yaml data.sources='[{path: my_videos, weight: 1.0}]' --out runs/mine
    """
    from nextvid.config import load_recipe, only_stages, recipe_of  # noqa: PLC0415
    from nextvid.evaluation.show import report_run  # noqa: PLC0415
    from nextvid.training import loop  # noqa: PLC0415
    from nextvid.training.compute import total_flops, with_flops  # noqa: PLC0415

    chosen = load_recipe(recipe, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])])
    if stage:
        chosen = only_stages(chosen, stage)
    if flops_of is not None:
        chosen = with_flops(chosen, total_flops(recipe_of(flops_of)))
    console = Console(stderr=as_json)
    folder = out or Path("runs") / chosen.name
    figures = loop.pretrain(chosen, folder, steps, console, allow=allow)
    if _rank() == 0:
        _print(figures, as_json)
        console.print(f"page: {report_run(folder, console)}", highlight=False)


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
    _print(scan_footage(sources, out, settings, recipe, workers, timeout, against, level, console), as_json)


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
    _print(prepare_shards(manifest, out, settings, wanted, workers, ray, verify, timeout, console), as_json)


@app.command()
def probe(
    run: Annotated[str, typer.Argument(help="A run's folder, an encoder.safetensors, or nextvid-tiny.")],
    benchmark: Annotated[str, typer.Option(help="moving-sprites, camera-moves, motion-capture, ego-motion.")],
    level: Annotated[str | None, typer.Option(help="A level of the benchmark; by default its first.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of the benchmark; by default its first.")] = None,
    weights: Annotated[str | None, typer.Option(help="ema or online; by default ema where there is one.")] = None,
    train_clips: Annotated[int | None, typer.Option(min=20, help="By default the benchmark's length.")] = None,
    test_clips: Annotated[int | None, typer.Option(min=1, help="By default the benchmark's length.")] = None,
    standardise: Annotated[bool, typer.Option(help="Standardise features per channel first.")] = True,
    as_json: Json = False,
) -> None:
    """Read a frozen encoder with a single-layer attentive probe, beside its baselines.

    Example: nextvid probe runs/demo --benchmark moving-sprites --task digit
    """
    from nextvid.evaluation.command import probe_run  # noqa: PLC0415

    figures = probe_run(
        run, benchmark, level, task, weights, train_clips, test_clips, standardise, Console(stderr=as_json)
    )
    _print(figures, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another run: give it another folder.")] = 0,
    as_json: Json = False,
) -> None:
    """Pretrain a small encoder for minutes, go on from the released one, and show what each reads and draws on a page.

    Example: nextvid demo
    """
    from nextvid.demo import run_demo  # noqa: PLC0415

    _print(run_demo(out, seed, Console(stderr=as_json)), as_json)


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
    _print(draw(run, video, said, Console(stderr=as_json), against, out), as_json)


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
    _print(found, as_json)


@app.command()
def doctor(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; without one, this machine.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where runs are to go: its disk is examined.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="A run (or more, one an option) to compare the curves of RUN with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine this machine, or a run: what is there, what is wrong, and how to mend it (exit code 1 where anything is).

    Example: nextvid doctor runs/demo
    """
    from nextvid.doctor import examine_machine, examine_run, report, table  # noqa: PLC0415

    if run is not None and folder is not None:
        raise UserError(
            "--folder is about this machine's disk; a run is examined where it is: leave out one of the two"
        )
    if run is None and against:
        raise UserError(
            "--against compares a run's curves: say which run, as in nextvid doctor RUN --against OTHER_RUN"
        )
    checks = examine_machine(folder or Path()) if run is None else examine_run(run, against or [])
    Console(stderr=as_json).print(table(checks))
    found = report(checks)
    _print(found, as_json)
    if not found["sound"]:
        raise typer.Exit(UNSOUND)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a packaged one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, on top of the recipe.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many devices train together.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="Their kind: h100, rtx4090, cpu, …; by default as here.")] = None,
    utilisation: Annotated[float | None, typer.Option(help="The share of their peak that they reach.")] = None,
    hours: Annotated[float | None, typer.Option(help="What the run takes: says the share that this implies.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="What a device costs an hour.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the schedule to this file (.png, .svg, .pdf).")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """What a run costs before it is spent: parameters, operations, memory of a device, hours, money and disk.

    Example: nextvid plan vit_g --gpus 96 --gpu h100
    """
    from nextvid.config import load_recipe  # noqa: PLC0415
    from nextvid.files import replace_json  # noqa: PLC0415
    from nextvid.planning import WIDTH, Offer, draw_schedule, tables_of  # noqa: PLC0415
    from nextvid.planning import plan as plan_run  # noqa: PLC0415

    console, chosen = Console(stderr=as_json), load_recipe(recipe, overrides)
    if plot is not None:
        draw_schedule(chosen, plot)
    found = plan_run(chosen, Offer(gpus, gpu, utilisation, hours, price), console)
    if out is not None:
        replace_json(out, found)
    console.width = max(console.width, WIDTH)
    console.print(tables_of(found))
    _print(found, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, whose name ends in .safetensors.")],
    step: Annotated[int | None, typer.Option(min=0, help="That checkpoint; by default the last that is whole.")] = None,
    precision: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="The encoders, and no other part.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's weights to one safetensors file, for nextvid.load and for init, with the recipe in it.

    Example: nextvid export runs/demo -o demo.safetensors
    """
    from nextvid.training.export import export_run, sentence_of, table_of  # noqa: PLC0415

    console = Console(stderr=as_json)
    found = export_run(run, out, step, precision, encoder_only, console)
    console.print(sentence_of(found), highlight=False, markup=False)
    console.print(table_of(found))
    _print(found, as_json)


@bench_app.command()
def step(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a packaged one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, on top of the recipe.")] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Timed steps, once without and once with a clock at every part.")
    ] = 20,
    stage: Annotated[str | None, typer.Option(help="A stage of the recipe; by default its longest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """Where a training step's time goes, its floating-point operations, and the share of this machine's peak.

    Example: nextvid bench step tiny training.threads=1
    """
    from nextvid.config import load_recipe  # noqa: PLC0415
    from nextvid.training.profile import profile_step, table_of  # noqa: PLC0415

    console = Console(stderr=as_json)
    figures = profile_step(load_recipe(recipe, overrides), steps, stage, console, out)
    console.print(table_of(figures))
    _print(figures, as_json)


@vae_app.command("train")
def vae_train(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or a packaged one: film, f8, f16d32.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, on top of the recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/vae-<recipe>.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="End after this many steps in all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's seed.")] = None,
    allow: Annotated[bool, typer.Option("--allow", help="Go on with a run though its recipe has changed.")] = False,
    as_json: Json = False,
) -> None:
    """Train an autoencoder whose latents are a target to draw in; the same command on the same folder goes on.

    Example: nextvid vae train f8 data.sources='[{path: my_videos}]' --out runs/my-vae
    """
    from nextvid.vae.config import load_vae_recipe  # noqa: PLC0415
    from nextvid.vae.loop import train_vae  # noqa: PLC0415

    chosen = load_vae_recipe(recipe, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])])
    console = Console(stderr=as_json)
    folder = out or Path("runs") / f"vae-{chosen.name}"
    _print(train_vae(chosen, folder, steps, console, allow=allow), as_json)


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))


def main() -> None:
    """Run a verb; exit codes: 0 done, 2 wrong input, 75 stopped with everything saved, 1 anything else."""
    # Threads that spin at a barrier while another process holds their core make a step many times slower; threads that
    # sleep at once make every step slower. A short spin has neither fault. Read when torch is imported, so set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "RANK" in os.environ:
        # Every process would be told that it need not look for unused parameters (training/parallel.py).
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except UserError as error:
        _say_error(error)
        sys.exit(INPUT_IS_WRONG)
    except Stopped as stopped:
        if _rank() == 0:
            said = f"nextvid: {stopped}; the same command goes on"
            Console(stderr=True).print(said, highlight=False, markup=False, soft_wrap=True)
        sys.exit(STOPPED)
    except LostError as lost:
        Console(stderr=True).print(f"nextvid: {lost}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(UNSOUND)


def _say_error(error: UserError) -> None:
    """Of processes that ``torchrun`` has started one a machine says what is wrong for all, and each what is wrong for it."""
    alone = getattr(error, "rank", None)
    if alone is None and os.environ.get("LOCAL_RANK", "0") != "0":
        return
    who = f"nextvid: rank {alone}:" if alone is not None else "nextvid:"
    Console(stderr=True).print(f"{who} {error}", style="red", highlight=False, markup=False, soft_wrap=True)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
