"""The curves of a run: every quantity that rows have is drawn, with what parts good from bad."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from nextvid.report.curves import Band, Line, curves, overlay, panels, svg


def rows(count: int = 30) -> list[dict[str, Any]]:
    found = []
    for number in range(1, count + 1):
        row: dict[str, Any] = {
            "step": 10 * number,
            "stage": "first",
            "flow": 2 / number,
            "alignment": 1.0,
            "grad_norm": 1.0,
            "grad_norms": {"encoder": 0.5, "predictor": 0.8, "decoder": 0.1 / number},
            "skipped": (number > 5) + 2 * (number > 20),
            "lr": {"encoder": 1e-3, "predictor": 1e-3, "decoder": 5e-4},
            "alignment_over_flow": 0.5,
            "ema_distance": 0.1,
            "copying": 0.8,
        }
        found.append({**row, **({"probe": 0.2} if number % 10 == 0 else {})})
    return found


def axes_by_title(found: list[dict[str, Any]], band: dict[str, Band] | None = None) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in curves(found, band=band).axes}


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def levels(axes: Axes) -> list[float]:
    """Where a line goes all the way across."""
    across = [line for line in axes.lines if line.get_transform() == axes.get_yaxis_transform(which="grid")]
    return [float(line.get_ydata()[0]) for line in across]


def test_every_quantity_has_a_panel() -> None:
    titles = set(axes_by_title(rows()))
    assert {"gradient norm by part", "probe", "alignment over flow", "distance to the moving average"} <= titles
    assert {"flow loss", "alignment loss", "gradient norm", "learning rate"} <= titles
    assert not {"skipped loss", "grad_norms loss"} & titles
    assert len(panels(rows())) == len(titles)


def test_parts_have_a_line_each_on_a_logarithmic_axis() -> None:
    axes = axes_by_title(rows())["gradient norm by part"]
    assert {"encoder", "predictor", "decoder"} <= set(labels(axes))
    assert axes.get_yscale() == "log"
    assert axes_by_title(rows())["learning rate"].get_yscale() == "linear"


def test_a_part_without_any_gradient_does_not_spoil_the_panel() -> None:
    found = [{**row, "grad_norms": {"encoder": 1.0, "decoder": 0.0}} for row in rows()]
    assert axes_by_title(found)["gradient norm by part"].get_yscale() == "log"
    none = [{**row, "grad_norms": {"encoder": 0.0}} for row in rows()]
    assert all(svg(figure) for figure in panels(none))


def test_copying_begins_at_one() -> None:
    drawn = axes_by_title(rows())
    copying = next(axes for title, axes in drawn.items() if title.startswith("copying"))
    assert levels(copying) == [1.0]
    assert levels(drawn["flow loss"]) == []


def test_rows_with_skipped_steps_have_a_tick() -> None:
    ticks = [line for line in axes_by_title(rows())["flow loss"].lines if line.get_marker() == "|"]
    assert [list(line.get_xdata()) for line in ticks] == [[60, 210]]
    quiet = [{**row, "skipped": 0} for row in rows()]
    assert not [line for line in axes_by_title(quiet)["flow loss"].lines if line.get_marker() == "|"]
    assert "skipped steps" in labels(axes_by_title(rows())["learning rate"])
    assert "skipped steps" not in labels(axes_by_title(quiet)["learning rate"])


def test_rows_whose_steps_were_all_skipped_are_gaps() -> None:
    found = rows()
    for key in ("flow", "alignment", "grad_norm", "grad_norms", "copying"):
        del found[4][key]
    lines = axes_by_title(found)["gradient norm by part"].lines
    assert [len(line.get_xdata()) for line in lines if line.get_label() == "encoder"] == [29]


def test_what_is_healthy_is_shaded_as_far_as_the_run_is() -> None:
    steps = np.arange(10.0, 1001, 10)
    drawn = axes_by_title(rows(), {"flow": (steps, steps * 0, steps * 0 + 3)})
    (shade,) = [part for part in drawn["flow loss"].collections if isinstance(part, PolyCollection)]
    assert shade.get_paths()[0].vertices[:, 0].max() == 300
    assert shade.get_paths()[0].vertices[:, 1].max() == 3
    assert not drawn["alignment loss"].collections


def test_runs_side_by_side_share_lines_and_leave_parts_out() -> None:
    figures = overlay([Line(rows(), np.arange(30.0), colour) for colour in ("red", "blue")])
    titles = [figure.axes[0].get_title(loc="left") for figure in figures]
    assert "gradient norm by part" not in titles
    assert "probe" in titles
    copying = next(figure.axes[0] for figure in figures if figure.axes[0].get_title(loc="left").startswith("copying"))
    assert levels(copying) == [1.0]
