"""METHOD, "What must never happen": on random shapes, masks, lengths and weights; and each check fails where it should."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import leaks
import pytest
import torch
from builders import (
    Case,
    cases,
    make_batch,
    make_clip,
    make_decoder,
    make_encoder,
    make_objective,
    make_video,
    make_visible,
    seeded,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nextvid.masking import MaskConfig
from nextvid.models.attention import attend
from nextvid.models.encoder import _keep_last, gather_places
from nextvid.models.positions import placed
from nextvid.objectives import NextVid
from nextvid.targets.pixels import Pixels

Patch = AbstractContextManager
often = settings(max_examples=3 * settings().max_examples)


def some_frame(data: st.DataObject, case: Case) -> int:
    return data.draw(st.integers(1, case.frames - 1), "frame")


def some_places(data: st.DataObject, case: Case, fewest: int = 1) -> Tensor:
    return make_visible(case, data.draw(st.integers(fewest, case.places), "kept"))


def in_layers(broken: Callable[..., Any]) -> Patch:
    return mock.patch("nextvid.models.layers.attend", broken)


# The mechanisms, broken on purpose.


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


def attend_one_frame_ahead(q: Tensor, k: Tensor, v: Tensor, query_frames: int, key_frames: int, *_: Any) -> Tensor:
    a_query_frame, a_key_frame = q.shape[2] // query_frames, k.shape[2] // key_frames
    query_frame = torch.arange(q.shape[2]) // a_query_frame + key_frames - query_frames
    mask = torch.arange(k.shape[2])[None] // a_key_frame <= query_frame[:, None] + 1
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


# A pixel of frame t changes an encoder output of a frame < t.


@often
@given(case=cases(), data=st.data())
def test_encoder_never_sees_the_future(case: Case, data: st.DataObject) -> None:
    visible = data.draw(st.sampled_from([None, some_places(data, case)]), "visible")
    leaks.check_encoder_never_sees_the_future(
        make_encoder(case), case, make_clip(case), some_frame(data, case), visible
    )


def test_encoder_never_sees_the_future_under_a_mask_as_back_end() -> None:
    case = Case(frames=4)

    def with_a_mask(q: Tensor, k: Tensor, v: Tensor, query_frames: int, key_frames: int, pattern: str) -> Tensor:
        return attend(q, k, v, query_frames, key_frames, pattern, backend="mask")

    with in_layers(with_a_mask):
        leaks.check_encoder_never_sees_the_future(make_encoder(case), case, make_clip(case), 2)


@pytest.mark.parametrize("broken", [attend_to_all, attend_one_frame_ahead])
def test_an_encoder_that_sees_the_future_is_caught(broken: Callable[..., Any]) -> None:
    case = Case()
    with in_layers(broken), pytest.raises(AssertionError, match="changed an output before it"):
        leaks.check_encoder_never_sees_the_future(make_encoder(case), case, make_clip(case), 2)


def test_an_encoder_that_reads_nothing_is_caught() -> None:
    case = Case()
    encoder = make_encoder(case)
    torch.nn.init.zeros_(encoder.patch_embed.weight)
    with pytest.raises(AssertionError, match="not read"):
        leaks.check_encoder_never_sees_the_future(encoder, case, make_clip(case), 2)


# A pixel of a frame >= t, or of a hidden patch, changes z_t.


@often
@given(case=cases(), data=st.data())
def test_prediction_sees_only_the_visible_past(case: Case, data: st.DataObject) -> None:
    visible, frame = some_places(data, case), some_frame(data, case)
    leaks.check_prediction_sees_only_the_visible_past(make_objective(case), case, make_clip(case), visible, frame)


def unshifted_context(objective: NextVid) -> Patch:
    """The query of frame t reads the context of frames <= t."""
    strict = objective.predictor.forward

    def forward(context: Tensor, *rest: Any) -> Tensor:
        return strict(torch.cat([context[:, 1:], context[:, -1:]], dim=1), *rest)

    return mock.patch.object(objective.predictor, "forward", forward)


def a_glimpse_of_hidden_patches(_objective: NextVid) -> Patch:
    def gather(patches: Tensor, visible: Tensor) -> Tensor:
        return gather_places(patches, visible) + 1e-3 * patches.mean(dim=2, keepdim=True)

    return mock.patch("nextvid.models.encoder.gather_places", gather)


def one_frame_too_many(_objective: NextVid) -> Patch:
    return in_layers(attend_one_frame_ahead)


@pytest.mark.parametrize("broken", [unshifted_context, a_glimpse_of_hidden_patches, one_frame_too_many])
def test_a_prediction_that_sees_more_is_caught(broken: Callable[[NextVid], Patch]) -> None:
    case = Case()
    objective = make_objective(case)
    with broken(objective), pytest.raises(AssertionError, match="depends on a hidden patch, or on frame"):
        leaks.check_prediction_sees_only_the_visible_past(objective, case, make_clip(case), make_visible(case, 3), 2)


def test_a_prediction_from_a_non_causal_encoder_is_caught() -> None:
    case = Case()
    objective = make_objective(case, attention="full")
    with pytest.raises(AssertionError, match="depends on a hidden patch, or on frame"):
        leaks.check_prediction_sees_only_the_visible_past(objective, case, make_clip(case), make_visible(case, 3), 2)


def test_a_prediction_that_forgets_the_past_is_caught() -> None:
    case = Case()
    objective = make_objective(case)
    strict = objective.predictor.forward

    def blind(context: Tensor, *rest: Any) -> Tensor:
        return strict(torch.zeros_like(context), *rest)

    with (
        mock.patch.object(objective.predictor, "forward", blind),
        pytest.raises(AssertionError, match="every frame before"),
    ):
        leaks.check_prediction_sees_only_the_visible_past(objective, case, make_clip(case), make_visible(case, 3), 2)


# The decoder's output at frame t depends on another frame's noisy latent.


def decoder_inputs(case: Case, channels: int = 5, condition_width: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    draw = seeded(case.seed + 3)
    shape = (case.batch, case.frames, case.places)
    noisy, z = (torch.randn(*shape, size, generator=draw) for size in (channels, condition_width))
    return noisy, z, torch.rand(shape[:2], generator=draw)


@often
@given(case=cases(), data=st.data())
def test_decoder_stays_inside_the_frame(case: Case, data: st.DataObject) -> None:
    frame = some_frame(data, case)
    leaks.check_decoder_stays_inside_the_frame(make_decoder(case), case, *decoder_inputs(case), frame)


def test_a_decoder_that_attends_across_frames_is_caught() -> None:
    case = Case()

    def across(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        rows = q.shape[0]
        q, k, v = (x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v)[0]
        return out.unflatten(1, (rows, -1)).transpose(0, 1)

    with in_layers(across), pytest.raises(AssertionError, match="noisy latent of frame 2 changed another frame"):
        leaks.check_decoder_stays_inside_the_frame(make_decoder(case), case, *decoder_inputs(case), 2)


@pytest.mark.parametrize(("position", "name"), [(0, "noisy latent"), (1, "condition"), (2, "time")])
def test_a_decoder_that_reads_a_neighbour_is_caught(position: int, name: str) -> None:
    case = Case()
    decoder = make_decoder(case)
    isolated = decoder.forward

    def forward(*inputs: Any) -> Tensor:
        mixed = list(inputs)
        mixed[position] = inputs[position] + 1e-3 * inputs[position].roll(1, dims=1)
        return isolated(*mixed)

    caught = pytest.raises(AssertionError, match=f"the {name} of frame 2 changed another frame")
    with mock.patch.object(decoder, "forward", forward), caught:
        leaks.check_decoder_stays_inside_the_frame(decoder, case, *decoder_inputs(case), 2)


def test_a_decoder_that_ignores_its_condition_is_caught() -> None:
    case = Case()
    decoder = make_decoder(case)
    decoder.input.weight.data[:, decoder.channels :] = 0
    with pytest.raises(AssertionError, match="the condition of frame 2 is not read"):
        leaks.check_decoder_stays_inside_the_frame(decoder, case, *decoder_inputs(case), 2)


# A gradient reaches the reference encoder, the target space or (through c') anything at all.


def square_case(side: int, **others: int) -> Case:
    return Case(height=side, width=side, **others)


square_cases = st.builds(
    square_case,
    side=st.integers(2, 3),
    frames=st.integers(2, 4),
    batch=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
SWITCHES: list[dict[str, Any]] = [{}, {"reference": "online"}, {"prediction": "clean"}]


def objective_and_batch(case: Case, **switches: Any) -> tuple[NextVid, Any]:
    objective = make_objective(case, **switches)
    objective.reference.requires_grad_(False)
    objective.settings.masks = [MaskConfig(2, 0.3), MaskConfig(1, 0.5)]
    objective.settings.draws = 2
    return objective, make_batch(case)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@given(case=square_cases)
def test_targets_take_no_gradient(switches: dict[str, Any], case: Case) -> None:
    leaks.check_targets_take_no_gradient(*objective_and_batch(case, **switches))


@pytest.mark.parametrize(("owner", "name"), [(NextVid, "reference_tokens"), (Pixels, "encode")])
@pytest.mark.parametrize("switches", SWITCHES[:2], ids=str)
def test_a_target_with_a_graph_behind_it_is_caught(owner: type, name: str, switches: dict[str, Any]) -> None:
    objective, batch = objective_and_batch(Case(height=2, width=2), **switches)
    broken = mock.patch.object(owner, name, without_no_grad(getattr(owner, name)))
    with broken, pytest.raises(AssertionError, match="a gradient can pass through"):
        leaks.check_targets_take_no_gradient(objective, batch)


def without_no_grad(method: Callable[..., Any]) -> Callable[..., Any]:
    """What ``@torch.no_grad()`` was put around."""
    bare = inspect.unwrap(method)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            return bare(*args, **kwargs)

    return call


def test_a_gradient_through_the_reference_is_caught_in_the_losses_too() -> None:
    """Pixels without a graph, so that only the sum of the gradients can tell."""
    objective, batch = objective_and_batch(Case(height=2, width=2), reference="online")
    stopped, calls = objective.reference_tokens, []

    def leaking(frames: Tensor) -> Tensor:
        calls.append(frames)
        if len(calls) == 1:
            return stopped(frames)
        return functional.layer_norm(objective.encoder(frames)[:, 1:], (objective.encoder.config.width,))

    caught = pytest.raises(AssertionError, match="is not that of constant targets")
    with mock.patch.object(objective, "reference_tokens", leaking), caught:
        leaks.check_targets_take_no_gradient(objective, batch)


def test_a_trained_reference_is_caught() -> None:
    objective, batch = objective_and_batch(Case(height=2, width=2))
    objective.reference.requires_grad_(True)
    stopped, calls = objective.reference_tokens, []

    def leaking(frames: Tensor) -> Tensor:
        calls.append(frames)
        return stopped(frames) if len(calls) == 1 else objective.reference(frames)[:, 1:]

    caught = pytest.raises(AssertionError, match="a gradient reaches the reference")
    with mock.patch.object(objective, "reference_tokens", leaking), caught:
        leaks.check_targets_take_no_gradient(objective, batch)


# The encoder, frame by frame with a cache, differs from the whole clip.


@often
@given(case=cases(min_frames=1), spare=st.integers(0, 2))
def test_stream_equals_clip(case: Case, spare: int) -> None:
    leaks.check_stream_equals_clip(make_encoder(case), case, make_video(case), case.frames + spare)


@often
@given(case=cases(), window=st.integers(1, 3), more=st.integers(1, 2))
def test_stream_slides(case: Case, window: int, more: int) -> None:
    frames = (window - 1) * case.depth + 1 + more
    case = Case(**{**vars(case), "frames": frames})
    leaks.check_stream_slides(make_encoder(case), case, make_video(case), window)


def cache_that_drops_a_frame() -> Patch:
    return mock.patch(
        "nextvid.models.encoder._keep_last", lambda kv, window, a_frame: _keep_last(kv, window - 1, a_frame)
    )


def cache_that_keeps_one_frame_more() -> Patch:
    return mock.patch(
        "nextvid.models.encoder._keep_last", lambda kv, window, a_frame: _keep_last(kv, window + 1, a_frame)
    )


def clock_that_stands_still() -> Patch:
    return mock.patch("nextvid.models.encoder.placed", lambda *given: placed(*given[:-1], 0))


@pytest.mark.parametrize("broken", [cache_that_drops_a_frame, clock_that_stands_still])
def test_a_stream_that_differs_is_caught(broken: Callable[[], Patch]) -> None:
    case = Case(frames=3)
    with broken(), pytest.raises(AssertionError, match="not close"):
        leaks.check_stream_equals_clip(make_encoder(case), case, make_video(case), window=3)


@pytest.mark.parametrize("broken", [cache_that_drops_a_frame, cache_that_keeps_one_frame_more])
def test_a_stream_of_another_window_is_caught(broken: Callable[[], Patch]) -> None:
    case = Case(frames=5)
    with broken(), pytest.raises(AssertionError, match="not close"):
        leaks.check_stream_slides(make_encoder(case), case, make_video(case), window=2)
