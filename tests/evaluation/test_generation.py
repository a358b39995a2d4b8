"""Figures of drawn frames, against cases whose answer is known."""

import json
from typing import get_args
from unittest import mock

import pytest
import torch
from builders import Case, make_objective
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvid.data.transforms import normalise
from nextvid.evaluation.generation import Drawn, draw_next_frames, go_on, roll_out
from nextvid.evaluation.likeness import figures, gradient_energy, psnr, roll_out_figures, ssim
from nextvid.objectives.flow import Sampling, Solver
from nextvid.targets.pixels import PixelsConfig

CASE = Case(frames=4, height=2, width=2, patch=8, batch=3)


def clips(frames: int = 8, count: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, frames, 3, 16, 16), dtype=torch.uint8, generator=draw)


@given(st.floats(0.01, 0.5))
@settings(max_examples=20, deadline=None)
def test_psnr_of_a_constant_error(error: float) -> None:
    truth = torch.zeros(2, 1, 3, 8, 8)
    assert psnr(truth + error, truth) == pytest.approx(-20 * torch.tensor(error).log10().item(), abs=1e-3)


def test_ssim_is_one_for_the_truth_and_less_for_noise() -> None:
    truth = torch.rand(2, 2, 3, 16, 16)
    assert ssim(truth, truth) == pytest.approx(1.0, abs=1e-4)
    assert ssim(torch.rand_like(truth), truth) < 0.3


def test_gradient_energy_of_stripes() -> None:
    stripes = torch.arange(8).remainder(2).float().expand(1, 1, 3, 8, 8)
    assert gradient_energy(stripes) == pytest.approx(1.0)
    assert gradient_energy(torch.full((1, 1, 3, 8, 8), 0.4)) == 0.0


def test_copying_repeats_the_frame_before_each_latent_frame() -> None:
    objective = make_objective(CASE)
    frames = clips()
    drawn = draw_next_frames(objective, frames, samples=2, progress=False)
    real = frames.float() / 255
    assert drawn.samples.shape == (2, 3, 6, 3, 16, 16)
    torch.testing.assert_close(drawn.truth, real[:, 2:])
    torch.testing.assert_close(drawn.copied, real[:, [1, 1, 3, 3, 5, 5]])
    assert drawn.samples.min() >= 0
    assert drawn.samples.max() <= 1


def test_a_drawing_depends_on_the_clip_not_on_its_neighbours_and_samples_differ() -> None:
    objective = make_objective(CASE)
    frames = clips()
    whole = draw_next_frames(objective, frames, samples=2, progress=False)
    first = draw_next_frames(objective, frames[:1], samples=2, progress=False)
    torch.testing.assert_close(whole.samples[:, :1], first.samples, rtol=1e-4, atol=1e-4)
    other = draw_next_frames(objective, 255 - frames[:1], samples=2, progress=False)
    assert (other.samples - first.samples).abs().mean() > 1e-4
    assert (whole.samples[0] - whole.samples[1]).abs().mean() > 0.01


def test_the_future_does_not_change_what_is_drawn_before_it() -> None:
    objective = make_objective(CASE)
    frames = clips()
    changed = frames.clone()
    changed[:, 6:] = 255 - changed[:, 6:]
    a, b = (draw_next_frames(objective, f, samples=1, progress=False).samples for f in (frames, changed))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_roll_out_starts_as_the_next_frame_and_then_reads_only_itself() -> None:
    objective = make_objective(CASE)
    frames = clips(12)
    changed = frames.clone()
    changed[:, 4:] = 0
    a, b = (roll_out(objective, f, context=4, window=3) for f in (frames, changed))
    assert a.samples.shape == (1, 3, 8, 3, 16, 16)
    torch.testing.assert_close(a.samples, b.samples, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.truth, frames[:, 4:].float() / 255)
    torch.testing.assert_close(a.copied, frames[:, 3:4].float().expand(-1, 8, -1, -1, -1) / 255)
    assert len(roll_out_figures(a, 2)["psnr"]) == 4


def test_a_roll_out_reads_what_it_drew_and_no_more_than_its_window() -> None:
    objective = make_objective(CASE)
    read: list[torch.Tensor] = []
    predict = objective.predict

    def spy(frames: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        read.append(frames)
        return predict(frames, visible)

    with mock.patch.object(objective, "predict", spy):
        rolled = roll_out(objective, clips(12), context=4, window=2)
    real, drawn = normalise(clips(12)[:, :4]), rolled.samples[0] * 2 - 1
    seen = torch.cat([real, drawn], dim=1)
    for step, frames in enumerate(read):
        # two latent frames that it may read, and a third that only says where to predict
        torch.testing.assert_close(frames[:, :-2], seen[:, 2 * step : 2 * step + 4])
    one = draw_next_frames(objective, clips(12)[:, :6], samples=1, progress=False)
    assert one.samples.shape[2] == 4
    assert not torch.equal(rolled.samples[:, :, :2], rolled.samples[:, :, 2:4])


def test_where_nothing_differs_there_is_no_psnr_and_tiny_pictures_have_no_ssim() -> None:
    picture = torch.rand(2, 2, 3, 4, 4)
    assert psnr(picture, picture) is None
    assert ssim(picture, picture) is None
    still = figures(
        Drawn(torch.rand(2, 2, 2, 3, 8, 8), torch.full((2, 2, 3, 8, 8), 0.5), torch.full((2, 2, 3, 8, 8), 0.5))
    )
    assert still["copy_last"]["psnr"] is None
    json.dumps(still, allow_nan=False)


def test_figures_say_which_of_two_drawings_is_better() -> None:
    truth = torch.rand(2, 4, 3, 16, 16)
    noise = 0.2 * torch.randn(8, *truth.shape)
    found = figures(Drawn((truth + noise).clamp(0, 1), truth, torch.rand_like(truth)))
    assert found["next_frame"]["psnr"] > found["single_sample"]["psnr"] + 3 > found["copy_last"]["psnr"]
    assert found["sharpness"]["generated"] > found["sharpness"]["truth"]
    assert 0.1 < found["diversity"] < 0.2


def test_equal_seeds_give_equal_drawings_and_others_give_others() -> None:
    objective = make_objective(CASE)
    begun = clips(4)
    first, again, other = (go_on(objective, begun, 2, 3, samples=2, seed=seed, progress=False) for seed in (1, 1, 2))
    assert first.shape == (2, 3, 4, 3, 16, 16)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.01
    assert (first[0] - first[1]).abs().mean() > 0.01
    alone = go_on(objective, begun[:1], 2, 3, samples=1, seed=1, progress=False)
    torch.testing.assert_close(alone, first[:1, :1], rtol=1e-4, atol=1e-4)


def test_at_temperature_0_all_samples_are_one() -> None:
    objective = make_objective(CASE)
    for solver in get_args(Solver):
        cold = Sampling(solver, 4, temperature=0.0, tolerance=0.1)
        drawn = draw_next_frames(objective, clips(), samples=2, seed=3, progress=False, sampling=cold)
        assert torch.equal(drawn.samples[0], drawn.samples[1])


def test_solvers_of_one_flow_agree_as_their_steps_get_finer() -> None:
    objective = make_objective(CASE)
    one = clips(4, 1)
    fine = [Sampling("euler", 100), Sampling("heun", 40), Sampling("adaptive", tolerance=1e-3)]
    a, b, c = (draw_next_frames(objective, one, 1, progress=False, sampling=how).samples for how in fine)
    coarse = draw_next_frames(objective, one, 1, progress=False, sampling=Sampling("euler", 4)).samples
    assert (b - c).abs().mean() < 0.01
    assert (a - b).abs().mean() < 0.02
    assert (coarse - b).abs().mean() > 2 * (a - b).abs().mean()


def test_what_a_mask_hides_changes_nothing_that_is_rolled_out() -> None:
    objective = make_objective(CASE)
    begun, visible = clips(4), torch.tensor([[0, 3]] * 3)
    other = begun.clone()
    other[..., :8, 8:] = 0  # place 1 of 2 x 2
    a, b = (go_on(objective, frames, 2, 3, 1, visible=visible, progress=False) for frames in (begun, other))
    assert torch.equal(a, b)
    open_eyed = go_on(objective, begun, 2, 3, 1, progress=False)
    assert not torch.equal(a, open_eyed)


def test_any_target_space_is_drawn_at_its_own_resolution() -> None:
    objective = make_objective(CASE, target=PixelsConfig(downsample=2))
    drawn = draw_next_frames(objective, clips(), samples=1, progress=False)
    assert drawn.samples.shape[-2:] == drawn.truth.shape[-2:] == (8, 8)
    torch.testing.assert_close(drawn.truth[0, 0, 0, 0, 0], clips()[0, 2, 0, :2, :2].float().mean() / 255)
    rolled = roll_out(objective, clips(), context=4, window=3)
    assert rolled.samples.shape[-2:] == rolled.truth.shape[-2:] == rolled.copied.shape[-2:] == (8, 8)
