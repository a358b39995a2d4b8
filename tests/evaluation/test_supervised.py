import pytest
import torch
from pydantic import ValidationError
from torch import nn

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.features import render
from nextvid.evaluation.supervised import SupervisedConfig, _schedule, fresh_clips, train_supervised
from nextvid.models.encoder import patchify

SPEC = ClipSpec(frames=4, fps=8.0, size=12)


class PatchEncoder(nn.Module):
    """Tokens ``(B, T, N, 16)``: a linear map of each tubelet patch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(2 * 3 * 16, 16)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.embed(patchify(frames, 4, 2))


@pytest.fixture
def train_it(colour_clips):
    def train(encoder: nn.Module, **settings: float):
        config = SupervisedConfig(**{"steps": 60, "warmup": 10, "lr": 3e-3, "curve_every": 25, **settings})
        test = render(colour_clips(90), SPEC, progress=False)
        return train_supervised(encoder, 16, fresh_clips(colour_clips(400), SPEC, 16), test, config, progress=False)

    return train


def test_the_ceiling_learns_all_tasks_at_once_and_reports_them(train_it):
    encoder = PatchEncoder()
    before = encoder.embed.weight.detach().clone()
    result = train_it(encoder)
    assert result.tasks["tint"].top1 > 0.9
    assert set(result.tasks) == {"tint", "place"}
    assert (result.tasks["place"].classes, result.tasks["place"].test_clips) == (3, 90)
    assert result.tasks["tint"].ci95[0] < result.tasks["tint"].top1 <= result.tasks["tint"].ci95[1]
    assert [point.step for point in result.curve] == [25, 50, 60]
    assert result.curve[-1].loss < result.curve[0].loss
    assert result.curve[-1].top1["tint"] > 0.9
    assert not torch.equal(encoder.embed.weight, before)


def test_the_ceiling_is_a_function_of_the_seed(train_it):
    first, again = (train_it(PatchEncoder(), steps=5) for _ in range(2))
    assert (first.tasks, first.curve) == (again.tasks, again.curve)


def test_batches_are_keyed_by_step_and_seed(colour_clips):
    draw = fresh_clips(colour_clips(400), SPEC, 8, seed=1)
    frames, labels = draw(3)
    assert frames.shape == (8, 4, 3, 12, 12)
    assert torch.equal(frames, draw(3)[0])
    assert torch.equal(labels["place"], draw(3)[1]["place"])
    assert not torch.equal(frames, draw(4)[0])
    assert not torch.equal(frames, fresh_clips(colour_clips(400), SPEC, 8, seed=2)(3)[0])


def test_the_rate_rises_then_falls_to_nothing():
    config = SupervisedConfig(steps=100, warmup=10)
    rates = [_schedule(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_a_loss_that_is_no_number_stops_it(train_it):
    broken = PatchEncoder()
    broken.embed.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not a number at step 0.*lower lr"):
        train_it(broken)
    with pytest.raises(ValidationError):
        SupervisedConfig(steps=0)
