"""Figures of what was drawn: beside the truth, copying the last frame, and another model."""

from typing import Any

from rich.console import Console
from rich.table import Table

from nextvid.errors import UserError
from nextvid.evaluation.frechet import frechet_figures
from nextvid.evaluation.generation import Drawn
from nextvid.evaluation.likeness import diversity, figures, gradient_energy, likeness, roll_out_figures
from nextvid.generation.drawing import Drawing

COLUMNS = ("", "PSNR dB", "SSIM", "sharpness", "Fréchet")


def measure(drawing: Drawing, other: Drawing | None, rolled: bool, tubelet: int, console: Console) -> dict[str, Any]:
    """All that can be measured; without a truth, of the drawings alone.

    Of a roll-out the likeness of the samples' mean is ``rollout.mean`` in place of ``next_frame``.
    """
    if drawing.measured is None:
        return _without_truth(drawing, other)
    found = figures(drawing.measured)
    if rolled:
        found["rollout"] = {"mean": found.pop("next_frame"), **roll_out_figures(drawing.measured, tubelet)}
    if other is not None and other.measured is not None:
        found["against"] = _of_another(other.measured)
        found["sharpness"]["against"] = gradient_energy(other.samples[0])
    console.print("measuring Fréchet distances …")
    found["frechet"] = _frechet(drawing.measured, other.measured if other else None, console)
    return found


def _without_truth(drawing: Drawing, other: Drawing | None) -> dict[str, Any]:
    sharpness = {"generated": gradient_energy(drawing.samples[0])}
    if other is not None:
        sharpness["against"] = gradient_energy(other.samples[0])
    shape = {"clips": drawing.samples.shape[1], "samples": len(drawing.samples)}
    return {**shape, "sharpness": sharpness, "diversity": diversity(drawing.samples)}


def _of_another(drawn: Drawn) -> dict[str, Any]:
    return {
        "samples": len(drawn.samples),
        "mean": likeness(drawn.mean, drawn.truth),
        "single_sample": likeness(drawn.samples[0], drawn.truth),
        "diversity": diversity(drawn.samples),
    }


def _frechet(drawn: Drawn, other: Drawn | None, console: Console) -> dict[str, Any] | None:
    clips, frames = drawn.truth.shape[:2]
    clip_of = [clip for clip in range(clips) for _ in range(frames)]
    single, truth, copied = (pictures.flatten(0, 1) for pictures in (drawn.samples[0], drawn.truth, drawn.copied))
    others = {"against": other.samples[0].flatten(0, 1)} if other is not None else {}
    try:
        return frechet_figures(single, truth, copied, clip_of, others)
    except UserError as error:
        console.print(f"no Fréchet distance: {error}", style="yellow", highlight=False, markup=False)
        return None


def table_of(found: dict[str, Any]) -> Table:
    """The figures for a terminal."""
    table = Table(title=f"{found['model']} on {found['material']['name']}: {_what(found)}")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for row in rows_of(found):
        table.add_row(*row)
    return table


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """A row for everything that was measured."""
    measured, rolled = found["figures"], found["mode"] == "roll-out"
    mean = measured.get("rollout", {}).get("mean") if rolled else measured.get("next_frame")
    sharp, distance = measured["sharpness"], measured.get("frechet") or {}
    rows = []
    if mean and measured["samples"] > 1:
        rows.append([f"mean of {measured['samples']} samples", *_likeness(mean), "–", "–"])
    name = "a single sample" if measured["samples"] > 1 else "drawn"
    rows.append([name, *_row(measured.get("single_sample"), sharp["generated"], distance.get("single_sample"))])
    if "against" in sharp:
        title = f"against: {found['against']['model']} ({found['against']['decoder']})"
        beside = measured.get("against", {}).get("mean")
        rows.append([title, *_row(beside, sharp["against"], distance.get("against"))])
    if "copy_last" in measured:
        rows.append(["copying the last frame", *_row(measured["copy_last"], None, distance.get("copy_last"))])
        rows.append(["the truth", "–", "–", _number(sharp["truth"], 4), "0"])
    return rows


def remarks_of(found: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    measured, remarks = found["figures"], []
    if measured["samples"] > 1:
        remarks.append(f"samples differ by {100 * measured['diversity']:.2f}% of the full range (deviation)")
    distance = measured.get("frechet")
    if distance and distance["biased"]:
        remarks.append(
            f"the Fréchet distances are of {distance['frames']} frames and {distance['channels']} channels: so few are biased "
            "upwards, alike for all rows"
        )
    if distance and distance["halves"]:
        half = distance["halves"]
        remarks.append(
            f"Fréchet distance from the true frames of other clips: drawn {_distance(half['single_sample'])}, true "
            f"{_distance(half['truth'])} "
            f"({half['frames'][0]} and {half['frames'][1]} frames)"
        )
    return remarks


def _what(found: dict[str, Any]) -> str:
    if found["mode"] == "next frames":
        return "next frames"
    return "{frames} frames rolled out after {context}".format(**found["settings"])


def _row(found: dict[str, float | None] | None, sharpness: float | None, distance: float | None) -> list[str]:
    return [*_likeness(found), _number(sharpness, 4), _distance(distance)]


def _likeness(found: dict[str, float | None] | None) -> list[str]:
    found = found or {"psnr": None, "ssim": None}
    return [_number(found["psnr"], 2), _number(found["ssim"], 3)]


def _distance(value: float | None) -> str:
    return "–" if value is None else f"{value:,.{0 if value >= 100 else 2}f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
