"""The page of a run: complete, self-contained, and honest about what is missing."""

import html
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import references, small_recipe
from PIL import Image

from nextvid.config import save_recipe
from nextvid.errors import UserError
from nextvid.report import Drawings, FeatureMaps, Pictures, RollOut, save_figures, write_report
from nextvid.report.curves import running_mean
from nextvid.report.pictures import CLEAR, DRAWN_BORDER, drawing_sheet, gif, png, roll_out_film

SCORE = {"top1": 0.42, "ci95": [0.4, 0.44]}


def pictures(clips: int = 2) -> Pictures:
    draw = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return draw.integers(0, 256, (*shape, 3), dtype=np.uint8)

    return Pictures(
        FeatureMaps(clips=noise(clips, 4, 16, 16), maps=noise(clips, 2, 2, 2)),
        Drawings(noise(clips, 4, 16, 16), noise(clips, 2, 8, 8), noise(clips, 2, 8, 8), "the next frames"),
        RollOut(truth=noise(clips, 8, 8, 8), drawn=noise(clips, 8, 8, 8), context=4),
    )


def drawings() -> Drawings:
    found = pictures().drawings
    assert found is not None
    return found


def rollout() -> RollOut:
    found = pictures().rollout
    assert found is not None
    return found


def row(step: int) -> dict[str, Any]:
    health = {"feature_spread": 0.9, "effective_rank": 20.0, "alignment_skill": 0.1}
    rates = {"encoder": 1e-3, "predictor": 1e-3, "decoder": 5e-4}
    return {"step": step, "stage": "first", "flow": 2 / step, "alignment": 1.0, "grad_norm": 0.5, "lr": rates, **health}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with all that a page is made of."""
    (tmp_path / "recipe.yaml").write_text(save_recipe(small_recipe()))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(1, 40)))
    task = {
        **SCORE,
        "benchmark": "moving-sprites",
        "level": "plain",
        "classes": 16,
        "train_clips": 80,
        "test_clips": 40,
    }
    baselines = {
        "random_init": {"top1": 0.31, "ci95": [0.29, 0.33]},
        "supervised": {"top1": 0.951, "ci95": [0.94, 0.96]},
    }
    metrics = {
        "pretrain": {"steps": 39, "clips": 1234, "seconds": 600.0},
        "probe": {"motion": {**task, "baselines": baselines, "reference": {"top1": 0.615, "ci95": [0.6, 0.63]}}},
        "generation": {
            "model": "nextvid-tiny", "benchmark": "moving-sprites", "level": "still", "samples": 8,
            "next_frame": {"psnr": 27.125, "ssim": 0.9}, "copy_last": {"psnr": 25.5, "ssim": 0.88},
            "diversity": 0.05, "rollout": {"clips": 12, "samples": 1, "psnr": [24.0], "copy_psnr": [23.0]},
        },
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def test_the_page_holds_every_figure(run: Path) -> None:
    page = write_report(run, pictures()).read_text()
    for text in (
        "42.0 (40.0–44.0)",
        "31.0 (29.0–33.0)",
        "95.1 (94.0–96.0)",
        "61.5 (60.0–63.0)",
        "27.12 dB",
        "25.50 dB",
    ):
        assert text in page
    for text in ("1,234 clips", "10 minutes", "nextvid-tiny on moving-sprites, still", "24.0 (23.0)", "chance 6.2"):
        assert text in page


def test_what_a_probe_left_in_the_folder_is_on_the_page(run: Path) -> None:
    found = {
        "task": "digit",
        "benchmark": "moving-sprites",
        "level": "film",
        "classes": 10,
        "train_clips": 8,
        "test_clips": 4,
    }
    found |= {"top1": 0.123, "ci95": [0.1, 0.15], "baselines": {}}
    (run / "probe_moving-sprites_film_digit_ema.json").write_text(json.dumps(found))
    page = write_report(run).read_text()
    assert "digit (film)" in page
    assert "12.3 (10.0–15.0)" in page
    assert "42.0 (40.0–44.0)" in page


def test_the_command_can_be_pasted(run: Path) -> None:
    command = ["nextvid", "pretrain", "tiny", "data.sources=[{path: my videos}]"]
    environment = {"command": command, "processor": "x86_64", "threads": 1, "python": "3.11"}
    (run / "environment.json").write_text(json.dumps(environment))
    page = html.unescape(write_report(run).read_text())
    assert shlex.split(page[page.rindex("<code>nextvid pretrain") :].split("<code>")[1].split("</code>")[0]) == command


def test_there_is_no_number_where_nothing_differs(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["generation"]["copy_last"] = {"psnr": None, "ssim": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "PSNR –, SSIM –" in write_report(run).read_text()


def test_the_page_needs_nothing_beside_it(run: Path) -> None:
    found = references(write_report(run, pictures()).read_text())
    assert found
    assert all(text.startswith(("data:image/", "#")) for text in found)


def test_bars_stand_where_the_figures_say(run: Path) -> None:
    page = write_report(run).read_text()
    assert 'width:42.00%"></i><b style="left:40.00%;width:4.00%"' in page


def test_a_name_cannot_write_into_the_page(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "name": "<script>alert(1)</script>"}))
    page = write_report(run).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        write_report(tmp_path)
    (tmp_path / "recipe.yaml").write_text(save_recipe(small_recipe()))
    page = write_report(tmp_path).read_text()
    for sentence in ("No rows in metrics.jsonl yet", "Nothing was probed yet", "No pictures"):
        assert sentence in page


def test_images_of_the_page_can_be_opened(run: Path) -> None:
    import base64  # noqa: PLC0415

    page = write_report(run, pictures()).read_text()
    images = re.findall(r"data:image/(png|gif);base64,([A-Za-z0-9+/=]+)", page)
    opened = [Image.open(io.BytesIO(base64.b64decode(text))) for kind, text in images]
    assert [image.format for image in opened].count("GIF") == 1
    assert [image.format for image in opened].count("PNG") == 6


def test_a_method_that_draws_nothing_has_a_page_of_features(run: Path, tmp_path: Path) -> None:
    features = Pictures(pictures().features)
    page = write_report(run, features).read_text()
    assert "What the encoder tells apart" in page
    assert "Roll-out" not in page
    assert "three rows" not in page
    assert {file.name for file in save_figures(run, features, tmp_path / "figures")} == {"curves.png", "features.png"}


def test_a_sheet_of_whole_clips_has_no_gaps() -> None:
    shown = drawings()
    whole = Drawings(shown.masked_input, shown.masked_input, shown.masked_input, "all of it")
    assert not (drawing_sheet(whole, 0, side=32)[:32, 1] == CLEAR).all(axis=-1).any()
    assert (drawing_sheet(whole, 0, side=32)[34 + 1, 1] == shown.masked_input[0, 0, 0, 0]).all()


def test_a_sheet_shows_the_pixels_it_was_given() -> None:
    shown = drawings()
    sheet = drawing_sheet(shown, 1, side=32)
    assert sheet.shape == (3 * 32 + 2 * 2, 4 * 32 + 3 * 2, 3)
    assert (sheet[2, 2] == shown.masked_input[1, 0, 1, 1]).all()
    assert (sheet[34 + 1, 2 * 34 + 1] == shown.drawn[1, 0, 0, 0]).all()
    assert (sheet[68 + 1, 3 * 34 + 1] == shown.truth[1, 1, 0, 0]).all()


def test_places_without_a_picture_are_transparent() -> None:
    sheet = drawing_sheet(drawings(), 0, side=32)
    assert (sheet[40, 2] == CLEAR).all()
    alpha = np.asarray(Image.open(io.BytesIO(png(sheet))))[..., 3]
    assert alpha[40, 2] == 0
    assert alpha[2, 2] == 255


def test_the_film_has_a_picture_a_frame_and_marks_what_is_drawn() -> None:
    film = roll_out_film(rollout(), side=16, columns=2)
    moving = Image.open(io.BytesIO(gif(film)))
    assert moving.n_frames == 8
    marked = [(picture == DRAWN_BORDER).all(axis=-1).any() for picture in film]
    assert marked == [False] * 4 + [True] * 4


def test_figures_are_saved_for_other_pages(run: Path, tmp_path: Path) -> None:
    files = save_figures(run, pictures(), tmp_path / "figures")
    assert {file.name for file in files} == {
        "curves.png",
        "features.png",
        "next-frames.png",
        "roll-out.gif",
        "roll-out.png",
    }
    assert all(Image.open(file).width > 60 for file in files)


def test_a_running_mean_keeps_constants_and_ends() -> None:
    assert np.allclose(running_mean(np.full(20, 3.0)), 3.0)
    assert running_mean(np.arange(20.0))[10] == pytest.approx(10.0)
    assert running_mean(np.arange(20.0))[0] == pytest.approx(2.0)


def test_a_running_mean_goes_on_after_a_row_that_is_not_a_number() -> None:
    values = np.ones(40)
    values[3] = np.nan
    assert np.allclose(running_mean(values), 1.0)


def test_the_films_colours_serve_all_of_its_pictures() -> None:
    film = [np.full((8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255), (214, 84, 43))]
    moving = Image.open(io.BytesIO(gif(film)))
    moving.seek(0)
    assert np.abs(np.asarray(moving.convert("RGB"), dtype=int)[0, 0] - (255, 0, 0)).max() < 12
