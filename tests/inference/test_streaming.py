"""A stream's manners (that it equals the clip is in tests/objectives/test_never_happens.py)."""

import pytest
import torch
from builders import Case, cases, make_encoder, make_video
from hypothesis import given
from hypothesis import strategies as st

from nextvid.inference.streaming import Stream


def push_all(stream: Stream, video: torch.Tensor) -> torch.Tensor:
    return torch.cat([stream.push(pair) for pair in video.split(stream.encoder.config.tubelet, dim=1)], dim=1)


@given(case=cases(min_frames=1), window=st.integers(1, 4))
def test_one_latent_frame_of_tokens_a_push(case: Case, window: int) -> None:
    stream = Stream(make_encoder(case), window)
    for pair in make_video(case).split(case.tubelet, dim=1):
        assert stream.push(pair).shape == (case.batch, 1, case.places, case.model_width)
    for keys, values in stream.cache.layers:
        assert keys.shape == values.shape
        assert keys.shape[2] == min(window - 1, case.frames) * case.places


def test_memory_does_not_grow() -> None:
    case = Case(frames=12)
    stream, sizes = Stream(make_encoder(case), window=3), []
    for pair in make_video(case).split(2, dim=1):
        stream.push(pair)
        sizes.append(sum(k.numel() + v.numel() for k, v in stream.cache.layers))
    assert sizes[2:] == sizes[2:3] * 10


def test_reset_begins_a_new_clip() -> None:
    case = Case()
    stream, video = Stream(make_encoder(case), window=8), make_video(case)
    first = push_all(stream, video)
    assert not torch.equal(push_all(stream, video), first)
    stream.reset()
    assert torch.equal(push_all(stream, video), first)


def test_a_stream_keeps_no_graph() -> None:
    case = Case()
    assert not Stream(make_encoder(case), 2).push(make_video(case)[:, :2]).requires_grad


def test_bytes_and_floats_are_the_same_frames() -> None:
    case = Case()
    encoder, video = make_encoder(case), make_video(case)
    assert torch.equal(push_all(Stream(encoder, 3), video), push_all(Stream(encoder, 3), video.float() / 255))


def test_a_window_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one latent frame, not 0"):
        Stream(make_encoder(Case()), 0)


@pytest.mark.parametrize("attention", ["full", "token_causal"])
def test_only_a_frame_causal_encoder_streams(attention: str) -> None:
    with pytest.raises(ValueError, match=f"only a frame-causal encoder can stream; .*'{attention}'"):
        Stream(make_encoder(Case(), attention=attention), 4)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_push_is_one_tubelet(frames: int) -> None:
    case = Case()
    with pytest.raises(ValueError, match=f"a stream takes 2 frames at a time, not {frames}"):
        Stream(make_encoder(case), 4).push(make_video(case)[:, :frames])


def test_positions_that_end_cannot_stream() -> None:
    with pytest.raises(ValueError, match="'sincos', which end"):
        Stream(make_encoder(Case(), positions="sincos"), window=2)
