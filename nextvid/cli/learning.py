"""Verbs that train, and those that say what training takes and leaves."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nextvid.cli.common import Json, app, print_figures, rank
from nextvid.errors import UserError

UNSOUND = 1

bench_app = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
vae_app = typer.Typer(help="Autoencoders: spaces to draw in, made for footage of one's own.", no_args_is_help=True)
app.add_typer(vae_app, name="vae")


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
    if rank() == 0:
        print_figures(figures, as_json)
        console.print(f"page: {report_run(folder, console)}", highlight=False)


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

    print_figures(run_demo(out, seed, Console(stderr=as_json)), as_json)


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
    print_figures(found, as_json)


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
    print_figures(found, as_json)


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
    print_figures(found, as_json)
    if not found["sound"]:
        raise typer.Exit(UNSOUND)


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
    print_figures(figures, as_json)


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
    print_figures(train_vae(chosen, folder, steps, console, allow=allow), as_json)
