"""The picture of a schedule: drawn from training's own arrays, stage by stage."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from nano import nano_recipe

from nextvid.config import load_recipe
from nextvid.errors import UserError
from nextvid.planning.picture import draw_schedule, schedule_figure
from nextvid.training.stages import schedule_of

PARTS = ["encoder", "predictor", "decoder"]


def lines_of(axes: Axes, steps: int) -> dict[str, np.ndarray]:
    """What is drawn, at every step, by name; NaN where nothing is."""
    found: dict[str, np.ndarray] = {}
    for line in axes.get_lines():
        key = next(name for name, colour in colours(axes).items() if colour == line.get_color())
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        values = found.setdefault(key, np.full(steps, np.nan))
        inside = np.arange(int(x[0]), int(x[-1]) + 1)
        values[inside - 1] = np.interp(inside, x, y)
    return found


def colours(axes: Axes) -> dict[str, object]:
    return {str(x.get_label()): x.get_color() for x in axes.get_lines() if not str(x.get_label()).startswith("_")}


def test_what_is_drawn_is_what_training_follows() -> None:
    recipe = load_recipe("tiny")
    schedule = schedule_of(recipe, PARTS)
    _, rates, weights, momentum, sizes = schedule_figure(recipe).axes
    drawn = lines_of(rates, len(schedule))
    assert set(drawn) == set(PARTS)
    for part in PARTS:
        np.testing.assert_allclose(drawn[part], schedule.lr[part], rtol=1e-9, atol=1e-12)
    for term, values in lines_of(weights, len(schedule)).items():
        np.testing.assert_allclose(values, schedule.weights[term])
    ema = np.array([stage.ema for stage in recipe.stages])[schedule.stage]
    np.testing.assert_allclose(lines_of(momentum, len(schedule))["ema"], ema)
    assert set(lines_of(sizes, len(schedule))) == {"batch", "frames", "draws"}


def test_stages_are_named_and_shaded_in_turn() -> None:
    recipe = nano_recipe()
    names, rates, *_ = schedule_figure(recipe).axes
    assert [text.get_text() for text in names.texts] == ["first", "second"]
    (shade,) = rates.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (6.5, 12.5)


def test_a_method_without_average_has_no_panel_for_it() -> None:
    titles = [axes.get_title(loc="left") for axes in schedule_figure(load_recipe("videomae-tiny")).axes]
    assert titles == ["", "learning rate", "loss weight", "batch, frames (logarithmic)"]


def test_files(tmp_path: Path) -> None:
    draw_schedule(nano_recipe(), tmp_path / "new" / "schedule.png")
    assert (tmp_path / "new" / "schedule.png").stat().st_size > 10_000
    with pytest.raises(UserError, match=r"--plot .*schedule.jpeg: a picture ends in .png"):
        draw_schedule(nano_recipe(), tmp_path / "schedule.jpeg")
