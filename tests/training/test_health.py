"""What a row says of features, and what it raises an alarm about."""

import pytest
import torch
from nano import nano_recipe
from rich.console import Console

from nextvid.objectives.nextvid import copying
from nextvid.objectives.protocol import Health, Losses, distance
from nextvid.training import health
from nextvid.training.rows import Rows
from nextvid.training.trainer import StepResult, build_trainer


def features(clips: int = 4) -> torch.Tensor:
    return torch.randn(clips, 3, 4, 8, generator=torch.Generator().manual_seed(0))


def test_the_distance_is_a_share_of_the_weights_length() -> None:
    weights = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    assert distance(weights, [w.clone() for w in weights]) == 0
    assert distance(weights, [torch.tensor([3.0, 4.0]), torch.tensor([[-1.0]])]) == pytest.approx(1.0)


def test_copying_tells_which_frame_predictions_are_nearer_to() -> None:
    truth = features()
    before = torch.cat([truth[:, :1], truth[:, :-1]], dim=1)
    assert copying(truth + 0.1, truth) < 0.1
    assert copying(before + 0.1, truth) > 10
    assert copying(torch.zeros_like(truth), truth) == pytest.approx(1.0, abs=0.2)


def test_one_clip_has_no_spread_and_no_rival() -> None:
    found = health.figures(Health(features(1), {"alignment": 1.0}), {"alignment": 0.5, "flow": 2.0})
    assert set(found) == {"effective_rank", "alignment_over_flow"}
    assert found["alignment_over_flow"] == 0.25


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"feature_spread": 0.01, "effective_rank": 5.0}, {"collapse"}),
        ({"feature_spread": 0.5, "effective_rank": 1.2}, {"collapse"}),
        ({"feature_spread": 0.5, "effective_rank": 5.0, "copying": 2.5}, {"copying"}),
        ({"feature_spread": 0.01, "copying": 2.5}, {"collapse", "copying"}),
        ({"feature_spread": 0.5, "effective_rank": 5.0, "copying": 1.1}, set()),
        ({"loss": 1.0}, set()),
    ],
)
def test_collapse_and_copying_are_named(row: dict[str, float], named: set[str]) -> None:
    assert set(health.alarms(row)) == named


def test_an_alarm_sounds_once_after_several_rows_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = build_trainer(nano_recipe())
    rows = Rows(trainer, Console())
    zero = torch.zeros(())
    same = features(1).expand(4, -1, -1, -1)
    for step, collapsed in enumerate([True, False, True, True, True, True], start=1):
        trainer.progress.step = step
        found = Health(same if collapsed else features())
        rows.row(StepResult(Losses(zero, {}, lambda found=found: found), {"loss": 0.0}, {}, False), {})
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("collapse at step") == 1
    assert "collapse at step 5: feature_spread is 0" in said
