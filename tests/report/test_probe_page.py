"""The page of a probe: complete, self-contained, bounded, and honest about what is missing."""

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import references
from PIL import Image

from nextvid.evaluation.looking import Attended, FeatureMap2d, Look, Misread, Neighbour, Neighbours
from nextvid.evaluation.scores import Scores, score
from nextvid.report.probe_page import reader_rows, verdict, write_probe_page
from nextvid.report.probe_pictures import (
    attended_films,
    confusion_heat,
    evenly,
    film_of,
    grid_heat,
    heated,
    map_figure,
    most_confused,
    shorts,
)

MOST_BYTES = 6_000_000
EVIL = "<script>alert('$x_1$')</script>"


def found(**more: Any) -> dict[str, Any]:
    """What a probe must say, and no more."""
    return {
        "encoder": {"name": "my encoder", "kind": "function"},
        "benchmark": "moving-sprites",
        "level": "film",
        "task": "motion",
        "top1": 0.42,
        "ci95": [0.40, 0.44],
        "classes": 16,
        "train_clips": 2400,
        "test_clips": 2000,
        "baselines": {},
        **more,
    }


def everything() -> dict[str, Any]:
    return found(
        top5=0.8, top5_ci95=[0.78, 0.82], mean_class=0.41, mean_class_ci95=[0.39, 0.43],
        held_out_top1=0.456, best_lr=0.003, best_weight_decay=0.1, depth=4, heads=16, standardised=True,
        standardise_effect={"with": 0.456, "without": 0.321},
        protocol={"frames": 8, "fps": 6.0, "size": 32, "segments": 2, "views": 3, "layers": [3, 5], "batch": 64,
                  "epochs": 20, "precision": "bfloat16", "augmentation": None},
        baselines={"chance": {"top1": 0.07, "ci95": [0.07, 0.07]}, "middle_frame": {"top1": 0.11, "ci95": [0.1, 0.12]},
                   "optical_flow": {"top1": 0.43, "ci95": [0.41, 0.45]}, "supervised": {"top1": 0.95, "ci95": [0.94, 0.96]}},
        readers={"linear": {"scores": {"top1": 0.33, "ci95": [0.31, 0.35]}, "setting": "C", "chosen": 0.01, "held_out_top1": 0.3},
                 "knn": {"top1": 0.22, "ci95": [0.2, 0.24], "k": 20},
                 "few_shot": [{"shots": 1, "top1": 0.1, "ci95": [0.09, 0.11]}, {"shots": 5, "top1": 0.2, "ci95": [0.19, 0.21]}]},
        grid=[{"lr": lr, "weight_decay": decay, "held_out_top1": lr * 100, "held_out_loss": None if lr == 0.001 else 1.0}
              for lr in (0.003, 0.001) for decay in (0.1, 0.4)],
        broken={"train": 3, "test": 0}, remarks=["three train clips could not be read"],
    )  # fmt: skip


def scores(classes: int, clips: int) -> tuple[Scores, list[str]]:
    draw = torch.Generator().manual_seed(0)
    names = [f"class {number}" for number in range(classes)]
    truth = torch.arange(clips) % classes
    logits = torch.randn(clips, classes, generator=draw)
    logits[torch.arange(clips), truth] += 2
    return score(logits.softmax(-1), truth, names), names


def noise(seed: int, frames: int = 8, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def a_look(names: list[str], frames: int = 8, side: int = 32, clips: int = 40, shown: int = 2) -> Look:
    weights = np.full((4, 2, 2), 1 / 16, np.float32)
    return Look(
        [Misread(noise(i, frames, side), names[0], names[1], 0.93, 0.021) for i in range(shown)],
        [
            Neighbours(noise(i, frames, side), names[2], [Neighbour(noise(9 + i, frames, side), names[0], 0.876)] * 4)
            for i in range(shown // 2)
        ],
        [Attended(noise(i, frames, side), weights, names[1], names[2]) for i in range(shown // 2)],
        FeatureMap2d(
            np.random.default_rng(0).normal(size=(clips, 2)),
            np.arange(clips, dtype=np.int64) % len(names),
            tuple(names),
        ),
    )


def test_the_page_holds_every_figure(tmp_path: Path) -> None:
    made, names = scores(16, 320)
    page = html.unescape(write_probe_page(tmp_path / "p.html", everything(), made, names, a_look(names)).read_text())
    for text in (
        "my encoder on motion", "42.0%", "42.0 (40.0–44.0)", "80.0 (78.0–82.0)", "41.0 (39.0–43.0)", "95.0 (94.0–96.0)",
        "33.0 (31.0–35.0)", "C 0.01", "k 20", "few shot, 5 clips a class", "45.6", "without 32.1",
        "learning rate 0.003, weight decay 0.1",
        "8 frames at 6 a second of 32 × 32 pixels", "after layers 3, 5, together", "3 views of a test clip", "4 layers, 16 heads",
        "3 train", "three train clips could not be read", "scored once", "93%", "0.88", "precision",
    ):  # fmt: skip
        assert text in page, text
    assert page.count("<picture>") == 2 + 1 + 4 + 2


def test_the_verdict_goes_by_the_intervals() -> None:
    words = verdict(everything())
    assert "It beats chance (7.0) and the middle frame alone (11.0)." in words
    assert "It cannot be told from optical flow (43.0)" in words
    assert "It stays below trained with labels (ceiling) (95.0)." in words
    assert "beats chance (6.2)" in verdict(found())


@pytest.mark.parametrize("look", [False, True])
def test_what_is_missing_is_left_out_or_said(tmp_path: Path, look: bool) -> None:
    empty = Look([], [], [], None) if look else None
    page = write_probe_page(tmp_path / "p.html", found(), None, ["a"] * 16, empty).read_text()
    assert "No baseline was measured" in page
    assert "no scores by class" in page
    assert ("No clips were looked at" in page) is not look
    for title in ("Other readers", "The probes that were tried", "Where the probe looks", "A map of"):
        assert title not in page


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    made, names = scores(16, 320)
    page = write_probe_page(tmp_path / "p.html", everything(), made, names, a_look(names)).read_text()
    refers = references(page)
    assert refers
    assert all(text.startswith(("data:image/", "#")) for text in refers)
    assert "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def test_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    made, names = scores(16, 320)
    bad = [f"{name} {EVIL}" for name in names]
    bad[3] = "_under $ and & % {{ 7 * 7 }}"
    renamed = made.model_copy(
        update={"per_class": [c.model_copy(update={"name": n}) for c, n in zip(made.per_class, bad, strict=True)]}
    )
    evil = {**everything(), "encoder": {"name": EVIL}, "remarks": [EVIL], "task": EVIL}
    page = write_probe_page(tmp_path / "p.html", evil, renamed, bad, a_look(bad)).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "_under $ and &amp; %" in page
    assert "49" not in re.sub(r"data:[^\"]*", "", page[page.index("A map of") :]).split("_under")[1][:40]


@pytest.mark.slow
def test_many_classes_and_large_clips_stay_within_bounds(tmp_path: Path) -> None:
    made, names = scores(174, 1000)
    look = a_look(names, frames=16, side=160, clips=1000, shown=6)
    page = write_probe_page(tmp_path / "p.html", found(classes=174), made, names, look)
    assert page.stat().st_size < MOST_BYTES
    text = page.read_text()
    assert "Of 174 classes, the 30 that most mistakes are about" in text
    assert "<details><summary>All 174 classes" in text
    assert text.count('<tr class="class">') == 174
    assert "154 other classes" in text


def test_pictures_of_the_page_can_be_opened(tmp_path: Path) -> None:
    made, names = scores(16, 320)
    page = write_probe_page(tmp_path / "p.html", found(), made, names, a_look(names)).read_text()
    contents = [base64.b64decode(text) for text in re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page)]
    images = [Image.open(io.BytesIO(content)) for content in contents]
    assert {image.format for image in images} == {"WEBP"}
    assert sum(getattr(image, "n_frames", 1) > 1 for image in images) == 9


def test_a_film_keeps_small_clips_pixel_by_pixel_and_large_ones_within_the_limit() -> None:
    clip = noise(0, 5, 16)
    film = film_of(clip, 100.0, 200_000)
    moving = Image.open(io.BytesIO(base64.b64decode(film.moving.split(",")[1])))
    assert moving.n_frames == 5
    for number in range(5):
        moving.seek(number)
        assert np.array_equal(np.asarray(moving.convert("RGB")), clip[number])
    large = film_of(noise(0, 40, 160), 100.0, 30_000)
    assert large.size < 4 / 3 * 30_000 + 100
    assert not large.sharp


def test_frames_are_taken_evenly_with_the_last_one() -> None:
    assert evenly(8, 16) == list(range(8))
    assert evenly(8, 4) == [1, 3, 5, 7]
    assert evenly(64, 16)[-1] == 63


def test_heat_is_where_the_weight_is() -> None:
    weights = np.zeros((2, 2, 2), np.float32)
    weights[0, 0, 1] = weights[1, 1, 0] = 0.5
    hot = heated(np.full((4, 8, 8, 3), 90, np.uint8), weights).astype(int)
    colour = hot[..., 0] - hot[..., 2]
    assert (colour[:2, :4, 4:] > 100).all()
    assert (colour[2:, 4:, :4] > 100).all()
    assert (colour[:2, :, :4] == 0).all()
    assert (colour[2:, :4] == 0).all()


def test_the_share_of_each_latent_frame_is_said() -> None:
    weights = np.zeros((4, 1, 1), np.float32)
    weights[:, 0, 0] = [0.1, 0.2, 0.3, 0.4]
    films = attended_films(Attended(noise(0), weights, "a", "a"), 100.0, 50_000)
    assert [round(tile.share, 3) for tile in films.tiles] == [0.1, 0.2, 0.3, 0.4]


def test_the_classes_that_mistakes_are_about() -> None:
    confusion = np.array([[9, 0, 0, 0], [0, 5, 3, 0], [0, 1, 8, 0], [0, 0, 0, 2]])
    assert most_confused(confusion, 2) == [1, 2]
    heat = confusion_heat(confusion, list("abcd"), [1, 2])
    assert [(cell.row, cell.column, cell.words, cell.own) for cell in heat.cells] == [
        (0, 0, "5", True), (0, 1, "3", False), (1, 0, "1", False), (1, 1, "8", True),
    ]  # fmt: skip
    assert heat.cells[1].tip == "b → c: 3 of 8"
    assert heat.cells[1].strength == pytest.approx(3 / 8)


def test_the_grid_marks_the_chosen_probe_and_says_what_diverged() -> None:
    told = everything()
    heat = grid_heat(told["grid"], told)
    assert heat.rows == ["0.003", "0.001"]
    assert [(cell.row, cell.column) for cell in heat.cells if cell.marked] == [(0, 0)]
    assert [cell.words for cell in heat.cells] == ["30.0", "30.0", "–", "–"]


def test_names_that_would_be_alike_are_told_apart() -> None:
    names = [f"Pretending to put something {how} the other thing" for how in ("near", "over")] + ["short"]
    cut = shorts(names, [0, 1, 2])
    assert len(set(cut)) == 3
    assert cut[2] == "short"
    assert all(len(name) < 32 for name in cut)


def test_a_map_of_any_number_of_classes() -> None:
    for classes in (1, 20, 21):
        names = tuple(f"_{number} $" for number in range(classes))
        points = np.random.default_rng(0).normal(size=(60, 2))
        figure = map_figure(FeatureMap2d(points, np.arange(60, dtype=np.int64) % classes, names))
        titles = [text.get_text() for text in figure.legends[0].get_texts()]
        assert titles[0] == "_0 $"
        assert len(titles) == min(classes, 21)
        assert ("1 other classes" in titles) == (classes == 21)


def test_readers_are_found_however_deep() -> None:
    rows = list(reader_rows({"knn": {"5": {"top1": 0.2}, "20": {"top1": 0.3, "ci95": [0.2, 0.4]}}, "note": "none"}))
    assert [row.title for row in rows] == ["nearest neighbours, 5", "nearest neighbours, 20"]
    assert rows[0].cell is not None
    assert rows[0].cell.low == rows[0].cell.high == 20
