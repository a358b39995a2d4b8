"""What a page shows of a run: pictures, and a page even where there can be none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Case, make_objective, small_recipe
from rich.console import Console

from nextvid.config import load_recipe, save_recipe
from nextvid.evaluation import show
from nextvid.evaluation.generation import GREY, hide, hiding_mask
from nextvid.evaluation.show import feature_maps, further_clips, report_run
from nextvid.targets.features import FeaturesConfig
from nextvid.training.footage import build_mixtures
from nextvid.training.loop import pretrain

RECIPE = load_recipe(
    "tiny",
    [
        "data.workers=0",
        "data.sources=[{builtin: film}, {builtin: film-pictures}]",
        "stages.*.steps=1",
        "stages.*.batch=4",
        "stages.*.size=16",
        "training.threads=1",
    ],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    pretrain(RECIPE, out, console=Console(quiet=True))
    return out


def test_a_run_is_drawn_on_clips_that_follow_those_it_was_trained_on(run: Path) -> None:
    mixture = build_mixtures(RECIPE, run, Console(quiet=True))[-1]
    clips = further_clips(RECIPE, mixture, 5)
    last = RECIPE.main_stage
    trained = [
        mixture.sample(number, show.BatchPlan(0, 1, last.frames, last.fps, last.size).spec) for number in range(12)
    ]
    assert clips.shape == (5, last.frames, 3, 16, 16)
    assert not any(torch.equal(clip, sample.frames) for clip in clips for sample in trained)


def test_the_page_survives_footage_that_has_gone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = save_recipe(RECIPE).replace("builtin: film\n", "builtin: null\n    path: nowhere\n", 1)
    monkeypatch.setattr(show, "load_objective", lambda _: (_NeverDrawn, load_recipe(_written(run / "lost.yaml", lost))))
    page = report_run(run, Console()).read_text()
    assert "no footage at nowhere" in capsys.readouterr().out.replace("\n", " ")
    assert "No pictures" in page


class _NeverDrawn:
    @staticmethod
    def to(_device: torch.device) -> None: ...


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_feature_maps_give_one_colour_to_one_feature_and_tell_two_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 16, generator=draw)
    which = torch.randint(0, 4, (3, 2, 5, 5), generator=draw)
    maps = feature_maps(kinds[which])
    colours = {kind: np.unique(maps[which.numpy() == kind], axis=0) for kind in range(4)}
    assert all(len(found) == 1 for found in colours.values())
    assert len({tuple(found[0]) for found in colours.values()}) == 4


def test_the_mask_that_is_shown_is_the_last_that_hides_something() -> None:
    masks = ["stages.2.masks=[{blocks: 3}, {blocks: 5}]", "stages.3.masks=[{blocks: 0}]"]
    assert hiding_mask(load_recipe("tiny", masks)).blocks == 3
    assert hiding_mask(load_recipe("tiny", ["stages.*.masks=[{blocks: 0}]"])).blocks == 0


def test_what_is_hidden_is_grey_and_what_is_seen_is_as_it_was() -> None:
    clips = torch.randint(129, 256, (2, 2, 3, 16, 16), dtype=torch.uint8)
    visible = torch.tensor([[0, 5], [3, 15]])
    hidden = hide(clips, visible, 4, 4)
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, visible, True).view(2, 4, 4)
    for clip in range(2):
        for row in range(4):
            for column in range(4):
                at = (slice(None), slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
                wanted = clips[clip][at] if seen[clip, row, column] else torch.full_like(clips[clip][at], GREY)
                assert torch.equal(hidden[clip][at], wanted)


def test_of_a_space_without_a_way_back_to_frames_there_are_feature_maps_alone() -> None:
    case = Case(frames=2, height=4, width=4)
    objective = make_objective(case, target=FeaturesConfig())
    recipe = small_recipe()
    clips = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    found, pictures = show.show(objective, recipe, clips, clips)
    assert found is None
    assert pictures.drawings is None
    assert pictures.rollout is None
    assert pictures.features.maps.shape == (2, 2, 4, 4, 3)
