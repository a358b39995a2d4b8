import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvid.errors import UserError
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers import arrow, crossing
from nextvid.evaluation.readers.arrow import arrow_of_time, score_arrow
from nextvid.evaluation.readers.crossing import folds_of, paced
from nextvid.evaluation.readers.order import ORDERS, clip_order, place_codes, score_order

QUICK = ProbeConfig(epochs=5, lrs=(1e-2, 3e-3))


def growing(videos: int, clips: int, frames: int = 4, seed: int = 0) -> torch.Tensor:
    """Each clip a pattern of its video that grows by a like step from frame to frame, and noise: ``(clips, frames, 16)``."""
    draw = torch.Generator().manual_seed(seed)
    content = torch.randn(videos, 1, 16, generator=draw).repeat_interleave(clips, 0)
    drift = torch.zeros(16)
    drift[:4] = 1.0
    time = torch.arange(frames)[:, None] * drift
    return content + time + 0.3 * torch.randn(videos * clips, frames, 16, generator=draw)


def both_ways(clips: torch.Tensor, seen) -> torch.Tensor:
    return torch.stack([seen(clips), seen(clips.flip(1))], dim=1)


def test_an_encoder_that_sees_order_tells_the_arrow_and_one_that_adds_frames_up_does_not():
    videos = torch.arange(24).repeat_interleave(2)
    clips = growing(24, 2)
    changes = both_ways(clips, lambda frames: frames.diff(dim=1))
    found = arrow_of_time(changes, videos, QUICK, progress=False)
    assert found.top1 > 0.9
    assert found.clip_top1 > 0.9
    assert (found.videos, found.clips, found.chance) == (24, 48, 0.5)
    sums = both_ways(clips, lambda frames: frames.double().sum(1, keepdim=True).float().round(decimals=3))
    blind = arrow_of_time(sums, videos, QUICK, progress=False)
    assert blind.top1 == 0.5
    assert blind.clip_top1 == 0.5
    assert blind.ci95[0] < 0.35
    assert blind.ci95[1] > 0.65


def test_noise_tells_no_arrow():
    videos = torch.arange(40).repeat_interleave(2)
    noise = torch.randn(80, 2, 3, 16, generator=torch.Generator().manual_seed(0))
    found = arrow_of_time(noise, videos, QUICK, progress=False)
    assert found.ci95[0] < 0.5 < found.ci95[1]


def test_a_video_is_told_by_the_sum_of_its_clips_margins():
    """Video 4 outweighs one wrong clip; in video 7 a bias that is alike both ways cancels; video 9 is a tie."""
    videos = torch.tensor([4, 4, 7, 9])
    margins = torch.tensor([[3.0, -3.0], [-1.0, 1.0], [5.0, 6.0], [2.0, 2.0]])
    logits = torch.stack([margins, torch.zeros_like(margins)], dim=-1)
    found = score_arrow(logits, videos)
    assert found.top1 == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.clip_top1 == pytest.approx(4 / 8)


@given(st.integers(4, 30), st.integers(1, 4), st.integers(0, 100))
def test_folds_never_part_a_video_and_are_of_one_size(count, clips, seed):
    videos = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).repeat(clips) * 3
    fold = folds_of(videos, 2, seed)
    of_video = {video: set(fold[videos == video].tolist()) for video in videos.tolist()}
    assert all(len(folds) == 1 for folds in of_video.values())
    sizes = [sum(folds == {number} for folds in of_video.values()) for number in (0, 1)]
    assert abs(sizes[0] - sizes[1]) <= 1


def test_no_probe_learns_from_or_chooses_on_a_video_that_it_is_asked_about(monkeypatch):
    """Each fit sees all clips of the videos that it sees, in groups by video, and answers for the others alone."""
    fits = []
    inner = crossing.fit_probe

    def spy(train, task, config, *, groups, **rest):
        fitted = inner(train, task, config, groups=groups, **rest)
        fits.append((set(groups.tolist()), len(groups), train.make(train.rows)))
        return fitted

    monkeypatch.setattr(crossing, "fit_probe", spy)
    videos = torch.arange(10).repeat_interleave(3)
    tokens = videos.float()[:, None, None, None].expand(-1, 2, 2, 16)
    arrow.arrow_of_time(tokens.clone(), videos, QUICK, progress=False)
    (first, rows, seen), (second, _, _) = fits
    assert first.isdisjoint(second)
    assert first | second == set(range(10))
    assert rows == 5 * 3 * 2
    assert set(seen.flatten().tolist()) == {float(video) for video in first}


def test_too_few_videos_cannot_be_crossed():
    with pytest.raises(UserError, match="3 videos cannot be cross-fitted in 2 folds"):
        folds_of(torch.tensor([1, 1, 5, 9]), 2, 0)


def test_few_samples_get_small_batches_and_enough_steps():
    config = ProbeConfig()
    few = paced(config, 24)
    assert few.batch == 8
    assert few.epochs * 3 >= 120
    assert paced(config, 100_000) == config


def test_an_encoder_that_knows_the_time_tells_the_order():
    clips = growing(24, 1, frames=9).unflatten(1, (3, 3))
    found = clip_order(clips, QUICK, progress=False)
    assert found.top1 > 0.8
    assert (found.videos, found.sequences) == (24, 144)
    assert found.ci95[0] < found.top1 <= found.ci95[1]


def test_clips_that_are_alike_give_the_order_by_chance_exactly():
    same = growing(12, 1, frames=1)[:, None].expand(-1, 3, -1, -1)
    found = clip_order(same.clone(), QUICK, progress=False)
    assert found.top1 == pytest.approx(1 / 6)


def test_a_place_has_channels_of_its_own_and_the_width_suits_sixteen_heads():
    for width in (5, 16, 192, 768, 1027):
        codes = place_codes(width)
        assert (width + codes.shape[1]) % 16 == 0
        assert codes.sum(0).eq(1).all()
        assert codes.sum(1).min() >= 4


def test_accuracy_of_orders_by_hand():
    logits = torch.zeros(2, 6, 6)
    logits[0, torch.arange(6), torch.arange(6)] = 1
    logits[1, :, 2] = 1
    assert score_order(logits).top1 == pytest.approx((1 + 1 / 6) / 2)
    assert ORDERS[2] == (1, 0, 2)
