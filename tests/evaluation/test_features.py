import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.features import Standardise, encode_all, extract, features, frozen, normalise, render, track

SPEC = ClipSpec(frames=4, fps=8.0, size=12)


def mean_colour(frames: torch.Tensor) -> torch.Tensor:
    """A token a latent frame and corner, ``(B, T, 1, 3)``: enough to recognise a clip by."""
    return frames.float().unflatten(1, (-1, 2)).mean((2, 4, 5))[:, :, None]


def test_rendering_keeps_order_labels_and_pixels(colour_clips):
    clips = colour_clips(7)
    rendered = render(clips, SPEC, progress=False)
    assert rendered.frames.shape == (7, 4, 3, 12, 12)
    assert rendered.frames.dtype == torch.uint8
    for index in range(7):
        expected = torch.from_numpy(clips.clip(index, SPEC)).permute(0, 3, 1, 2)
        assert torch.equal(rendered.frames[index], expected)
        assert {task: int(labels[index]) for task, labels in rendered.labels.items()} == clips.labels(index)
    assert rendered.tasks == clips.tasks


def test_chosen_clips_come_in_the_order_asked_for(colour_clips):
    whole = render(colour_clips(7), SPEC, progress=False)
    some = render(colour_clips(7), SPEC, [5, 0, 2], progress=False)
    assert torch.equal(some.frames, whole.frames[[5, 0, 2]])
    assert torch.equal(some.labels["place"], whole.labels["place"][[5, 0, 2]])


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_features_do_not_depend_on_the_batch(colour_clips, batch):
    whole = mean_colour(render(colour_clips(7), SPEC, progress=False).frames).flatten(1, 2)
    made = extract(mean_colour, colour_clips(7), SPEC, batch, progress=False)
    assert torch.equal(made.tokens, whole)
    assert made.tokens.shape == (7, 2, 3)


def test_encoders_share_rendered_clips_and_leave_no_gradient(colour_clips):
    rendered = render(colour_clips(5), SPEC, progress=False)
    before = rendered.frames.clone()
    encoder = nn.Sequential(nn.Flatten(2), nn.Linear(3 * 12 * 12, 8))
    made = features(frozen(encoder), rendered, progress=False)
    assert not encoder.training
    assert made.tokens.shape == (5, 4, 8)
    assert not made.tokens.requires_grad
    assert torch.equal(rendered.frames, before)
    half = encode_all(frozen(encoder), rendered.frames, progress=False, dtype=torch.float16)
    torch.testing.assert_close(half.float(), made.tokens, atol=1e-2, rtol=1e-2)


def test_bytes_become_minus_one_to_one():
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 1)
    assert normalise(ends)[0, :, 0, 0, 0].tolist() == [-1.0, 1.0]


def test_no_clips_is_said(colour_clips):
    with pytest.raises(UserError, match=r"colours.*no clips"):
        render(colour_clips(0), SPEC)
    with pytest.raises(UserError, match="no clips"):
        encode_all(mean_colour, torch.empty(0, 4, 3, 12, 12, dtype=torch.uint8))


@given(
    seed=st.integers(0, 2**31),
    shift=st.floats(-100, 100),
    scale=st.floats(0.01, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_standardised_channels_have_mean_0_and_deviation_1(seed, shift, scale, dtype):
    draw = torch.Generator().manual_seed(seed)
    tokens = (torch.randn(40, 5, 3, generator=draw) * scale * torch.tensor([1.0, 10.0, 0.1]) + shift).to(dtype)
    standard = Standardise.fit(tokens).apply(tokens)
    torch.testing.assert_close(standard.mean((0, 1)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(standard.std((0, 1), correction=0), torch.ones(3), atol=0.02, rtol=0)


def test_statistics_over_many_chunks_are_those_of_the_whole():
    tokens = torch.randn(700, 3, 5, generator=torch.Generator().manual_seed(0))
    fitted = Standardise.fit(tokens)
    torch.testing.assert_close(fitted.mean[0], tokens.mean((0, 1)))
    torch.testing.assert_close(fitted.deviation[0], tokens.std((0, 1), correction=0))


def test_a_channel_that_never_changes_is_only_centred():
    tokens = torch.full((10, 4, 2), 7.3)
    tokens[..., 1] = torch.randn(10, 4)
    standard = Standardise.fit(tokens).apply(tokens)
    assert standard.isfinite().all()
    assert standard[..., 0].abs().max() < 1e-5


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("progress", [False, True])
def test_progress_goes_to_standard_error_and_only_if_wanted(monkeypatch, capsys, progress, terminal):
    monkeypatch.setattr("nextvid.evaluation.features.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("nextvid.evaluation.features.LINE_SECONDS", 0.0)
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: terminal))
    seen = []
    for item in track(range(3), 3, "counting", progress):
        seen.append(item)
        time.sleep(0.01)
    assert seen == [0, 1, 2]
    written = capsys.readouterr()
    assert written.out == ""
    assert ("counting" in written.err) == progress


def test_quick_work_shows_nothing(capsys):
    assert list(track("abc", 3, "counting")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
