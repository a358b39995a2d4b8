"""A plan as tables, within a hundred columns."""

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nextvid.planning.numbers import OPERATIONS, amount, lasting, short

GIB, GB = 2**30, 1e9
WORDS = {
    "weights": "weights",
    "moving_average": "moving average",
    "moments": "moments of AdamW",
    "gradients": "gradients",
    "cast_weights": "weights cast to bfloat16",
    "gathered_blocks": "gathered blocks",
    "kept_for_backward": "kept for the backward pass",
    "transient": "transient",
    "batch": "batch in flight",
    "buffers": "buffers",
}
MAY_BE_ABSENT = ("moving_average", "cast_weights", "gathered_blocks", "buffers")
WIDTH = 100


def tables_of(found: dict[str, Any]) -> Group:
    """Parameters, work, input, memory, and what it comes to."""
    tables = (_parameters(found), _work(found), _input(found), _memory(found))
    apart: list[RenderableType] = [part for table in tables for part in (table, Text())]
    return Group(*apart, *(Text(sentence) for sentence in _sentences(found)))


def _parameters(found: dict[str, Any]) -> Table:
    parameters = found["parameters"]
    table = _table(f"{found['recipe']}: parameters", [*parameters["parts"], "trained", "all"])
    counts = [part["parameters"] for part in parameters["parts"].values()]
    table.add_row("", *(amount(count) for count in (*counts, parameters["trained"], parameters["total"])))
    return table


def _work(found: dict[str, Any]) -> Table:
    columns = ["steps", "clips", "16-frame", "tokens", "FLOP/step", "FLOP", "s/step", "time", "clips/s"]
    table = _table("what is to be computed", columns)
    for stage in found["stages"]:
        table.add_row(stage["name"], *_work_cells(stage), f"{stage['loader_clips_per_second_and_device']:.3g}")
    total = found["total"]
    table.add_section()
    table.add_row(
        "total",
        *(amount(total[name]) for name in ("steps", "clips", "samples", "tokens")),
        "",
        amount(total["flops"], OPERATIONS),
        "",
        lasting(total["hours"]),
        "",
    )
    table.caption = (
        "16-frame: clips in 16 frames; tokens: visual, before masking; clips/s: what a device's loader must give"
    )
    return table


def _work_cells(stage: dict[str, Any]) -> list[str]:
    counts = [amount(stage[name]) for name in ("steps", "clips", "samples", "tokens")]
    operations = [amount(stage[name], OPERATIONS) for name in ("step_flops", "flops")]
    return [*counts, *operations, f"{stage['step_seconds']:.3g}", lasting(stage["hours"])]


def _input(found: dict[str, Any]) -> Table:
    stages = found["stages"]
    rates = list(stages[0]["lr"])
    extra = [name for name in ("draws", "ema") if stages[0][name] is not None]
    table = _table("what a step is", ["clip", "batch", *extra, *(f"LR {part}" for part in rates)])
    for stage in stages:
        clip = f"{stage['frames']}×{stage['size']}²@{stage['fps']:g}"
        lr = [_line(*stage["lr"][part]) for part in rates]
        table.add_row(stage["name"], clip, f"{stage['batch']}", *(f"{stage[name]:g}" for name in extra), *lr)
    table.caption = "clip: frames × pixels @ frames a second"
    return table


def _line(start: float, end: float) -> str:
    return short(start) if start == end else f"{short(start)}→{short(end)}"


def _memory(found: dict[str, Any]) -> Table:
    stages, machine, training = found["stages"], found["machine"], found["training"]
    spread = training["parallel"] if machine["devices"] > 1 else "one device"
    how = f"{spread}, {training['precision']}, "
    how += "activations computed again" if training["activation_checkpointing"] else "activations kept"
    table = _table("memory of a device at its peak, GiB", [stage["name"] for stage in stages])
    for key, words in WORDS.items():
        values = [stage["memory"]["bytes"][key] for stage in stages]
        if any(values) or key not in MAY_BE_ABSENT:
            table.add_row(words, *(f"{value / GIB:.3f}" for value in values))
    table.add_section()
    table.add_row("all", *(_fits(stage["memory"]) for stage in stages), style="bold")
    table.add_row("clips of a device", *(str(stage["memory"]["clips"]) for stage in stages))
    table.add_row("micro batch", *(str(stage["memory"]["micro_batch"]) for stage in stages))
    table.add_row("largest that fits", *(str(stage["memory"]["largest_micro_batch"] or "none") for stage in stages))
    room = (1 - machine["reserve"]) * machine["memory_bytes"] / GIB
    table.caption = (
        f"{how}; to fit: {room:.1f} GiB, {100 * (1 - machine['reserve']):.0f}% of {machine['memory_bytes'] / GIB:.1f}"
    )
    return table


def _fits(memory: dict[str, Any]) -> str:
    total = f"{memory['total_bytes'] / GIB:.2f}"
    return total if memory["fits"] else f"[red]{total} too much[/red]"


def _sentences(found: dict[str, Any]) -> list[str]:
    machine, total, disk = found["machine"], found["total"], found["disk"]
    peak = f"{amount(machine['peak_flops_per_second'], OPERATIONS)}FLOP/s {found['training']['precision']}"
    share = f"{100 * machine['utilisation']:.3g}%"
    said = [
        f"time   {lasting(total['hours'])} on {machine['devices']} × {machine['title']}, {amount(total['device_hours'])} device "
        f"hours, at {share} of {peak} (utilisation: {machine['utilisation_source']}; peak: {machine['peak_source']})"
    ]
    if machine["utilisation"] > 1:
        said.append("       more than the peak: so many devices cannot do it in that time")
    if total["cost"] is None:
        said.append("cost   not said: give --price, what a device costs an hour")
    else:
        said.append(f"cost   {total['cost']:,.2f} at {total['price_per_device_hour']:g} a device hour")
    said.append(
        f"disk   a checkpoint {disk['checkpoint_bytes'] / GB:.3g} GB, {disk['checkpoints_kept']} kept, "
        f"{disk['bytes_at_most'] / GB:.4g} GB at most with the one being written"
    )
    errors = {
        name: " to ".join(f"{100 * end:+.1f}%" for end in ends) for name, ends in found["measured"]["errors"].items()
    }
    said.append(
        f"error  against measured steps of {', '.join(found['measured']['utilisation'])} on a CPU: memory "
        f"{errors['memory_to_allocated']} of what is allocated ({errors['memory_to_resident']} of the process), time "
        f"{errors['time']} with one recipe's utilisation for another; never measured on a GPU"
    )
    return said


def _table(title: str, columns: list[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
