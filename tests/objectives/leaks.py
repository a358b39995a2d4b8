"""The five things that must never happen (METHOD), each as a check that raises ``AssertionError`` where it does happen.

Each check looks twice. Changed input: what must not depend on it stays equal to the last bit. Gradient: it is exactly zero.
Each also asserts that what *may* flow does flow, so that it cannot pass on a model that reads nothing.
"""

from contextlib import AbstractContextManager
from unittest import mock

import torch
from builders import WEIGHTS, Case, pixels_at
from torch import Tensor
from torch.nn import functional

from nextvid.data.loader import Batch
from nextvid.data.transforms import normalise, prepare
from nextvid.inference.streaming import Stream
from nextvid.models.attention import frame_causal_mask
from nextvid.models.decoder import Decoder
from nextvid.models.encoder import Encoder
from nextvid.objectives import NextVid
from nextvid.objectives.flow import flow_loss, noisy_latents

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def other(x: Tensor) -> Tensor:
    """Other values of the same kind, everywhere."""
    return -x - 0.5


def differs(a: Tensor, b: Tensor) -> Tensor:
    """Where ``(batch, frames, …)`` differ: ``(batch, frames)``."""
    return (a != b).flatten(2).any(-1)


def reaches(gradient: Tensor) -> Tensor:
    return (gradient != 0).flatten(2).any(-1)


def gradient_of(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output.square().sum(), inputs)


def from_frame(case: Case, frame: int) -> slice:
    """The raw frames of latent frame ``frame`` and of all after it."""
    return slice(frame * case.tubelet, None)


def of_frame(case: Case, frame: int) -> slice:
    return slice(frame * case.tubelet, (frame + 1) * case.tubelet)


def check_encoder_never_sees_the_future(
    encoder: Encoder, case: Case, clip: Tensor, frame: int, visible: Tensor | None = None
) -> None:
    """No pixel of latent frame ``frame`` or later reaches an output before it; it does reach its own and later ones."""
    changed = clip.clone()
    changed[:, of_frame(case, frame)] = other(clip[:, of_frame(case, frame)])
    with torch.no_grad():
        moved = differs(encoder(clip, visible), encoder(changed, visible))
    assert not moved[:, :frame].any(), f"frame {frame} changed an output before it"
    assert moved[:, frame:].all(), f"frame {frame} is not read by itself and all later frames"

    pixels = clip.clone().requires_grad_()
    (gradient,) = gradient_of(encoder(pixels, visible)[:, :frame], pixels)
    assert not gradient[:, from_frame(case, frame)].any(), f"a gradient reaches frame {frame} from an output before it"
    assert reaches(gradient[:, : frame * case.tubelet]).all(), "a gradient does not reach every frame of the past"


def check_prediction_sees_only_the_visible_past(
    objective: NextVid, case: Case, clip: Tensor, visible: Tensor, frame: int
) -> None:
    """``z_frame`` depends on the visible patches of the frames before it, on each of these frames, and on nothing else."""
    shown = pixels_at(case, visible)
    past = torch.zeros(1, clip.shape[1], 1, 1, 1, dtype=torch.bool)
    past[:, : frame * case.tubelet] = True
    readable = (shown & past).expand_as(clip)
    with torch.no_grad():
        z = objective.predict(clip, visible)[:, :frame]
        unread = objective.predict(torch.where(readable, clip, other(clip)), visible)[:, :frame]
        moved = [
            differs(z, objective.predict(_with_frame_changed(case, clip, shown, before), visible)[:, :frame])
            for before in range(frame)
        ]
    assert torch.equal(z, unread), f"z_{frame} or one before it depends on a hidden patch, or on frame {frame} or later"
    assert all(column[:, -1].all() for column in moved), f"z_{frame} does not depend on every frame before it"

    pixels = clip.clone().requires_grad_()
    (gradient,) = gradient_of(objective.predict(pixels, visible)[:, frame - 1], pixels)
    assert not gradient[~readable].any(), (
        f"a gradient reaches a hidden patch, or frame {frame} or later, from z_{frame}"
    )
    assert reaches(gradient[:, : frame * case.tubelet]).all(), f"no gradient from z_{frame} to a frame before it"


def _with_frame_changed(case: Case, clip: Tensor, shown: Tensor, frame: int) -> Tensor:
    changed = clip.clone()
    pixels = clip[:, of_frame(case, frame)]
    changed[:, of_frame(case, frame)] = torch.where(shown, other(pixels), pixels)
    return changed


def check_decoder_stays_inside_the_frame(
    decoder: Decoder, case: Case, noisy: Tensor, z: Tensor, tau: Tensor, frame: int
) -> None:
    """What the decoder draws at ``frame`` reads that frame's noisy latent, condition and time, whole, and no other's."""
    inputs = (noisy, z, tau)
    with torch.no_grad():
        drawn = decoder(noisy, z, tau, *case.grid)
        for position, name in enumerate(("noisy latent", "condition", "time")):
            changed = list(inputs)
            changed[position] = inputs[position].clone()
            changed[position][:, frame] = 1 - changed[position][:, frame] / 2
            moved = differs(drawn, decoder(*changed, *case.grid))
            assert moved[:, frame].all(), f"the {name} of frame {frame} is not read"
            moved[:, frame] = False
            assert not moved.any(), f"the {name} of frame {frame} changed another frame"

    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = gradient_of(decoder(*leaves, *case.grid)[:, frame, 0], *leaves)
    for gradient in gradients:
        inside = gradient[:, frame].clone()
        gradient[:, frame] = 0
        assert not gradient.any(), f"a gradient reaches another frame from what is drawn at frame {frame}"
        a_place = inside if inside.ndim > 1 else inside[:, None]
        assert (a_place != 0).any(-1).all(), "not every place of the frame is read"


def check_targets_take_no_gradient(objective: NextVid, batch: Batch) -> None:
    """``c'`` and ``h1`` are constants: no graph behind them, and the losses' gradients are those with constants there."""
    pixels = normalise(batch.frames).requires_grad_()
    reference, h1 = objective.reference_tokens(pixels), objective.target.encode(pixels)
    assert not reference.requires_grad, "a gradient can pass through the reference representation"
    assert not h1.requires_grad, "a gradient can pass through the target latents"

    objective.zero_grad()
    objective(batch, WEIGHTS).total.backward()
    for name in ("reference", "target"):
        reached = [key for key, p in getattr(objective, name).named_parameters() if p.grad is not None and p.grad.any()]
        assert not reached, f"a gradient reaches the {name}: {reached[:3]}"
    trained = [(key, p) for members in objective.parts().values() for key, p in members]
    unreached = [key for key, p in trained if p.grad is None or not p.grad.any()]
    assert not unreached, f"no gradient reaches {unreached[:3]}"

    by_the_book = torch.autograd.grad(loss_with_constants(objective, batch), [p for _, p in trained])
    for (key, parameter), expected in zip(trained, by_the_book, strict=True):
        error = (parameter.grad - expected).abs().max() / expected.abs().max()
        assert error < 1e-3, f"the gradient of {key} is not that of constant targets"


def loss_with_constants(objective: NextVid, batch: Batch) -> Tensor:
    """``0.5 L_flow + 1.0 L_align`` written out, over targets that are plain numbers."""
    clip = normalise(batch.frames)
    grid = objective.encoder.grid(clip)[1:]
    teacher = objective.encoder if objective.config.reference == "online" else objective.reference
    reference = functional.layer_norm(teacher(clip)[:, 1:], (teacher.config.width,)).detach()
    h1 = objective.target.encode(clip)[:, 1:].detach()
    masks, draws = objective.settings.masks, objective.settings.draws
    total = clip.new_zeros(())
    for index, mask in enumerate(masks):
        z = objective.predict(clip, objective.draw_visible(clip, mask, batch.keys, index))
        total = total + (z - reference).square().mean() / len(masks)
        tau, h0 = objective._draw_flow(h1, batch.keys, index)
        for t, noise in zip(tau.chunk(draws), h0.chunk(draws), strict=True):
            output = objective.decoder(noisy_latents(h1, noise, t), z, t, *grid)
            total = total + 0.5 * flow_loss(output, h1, noise, t, objective.config.prediction) / draws / len(masks)
    return total


def stream_whole(encoder: Encoder, case: Case, video: Tensor, window: int, first_frame: int = 0) -> Tensor:
    """The tokens of all frames, pushed one latent frame at a time."""
    stream = Stream(encoder, window)
    stream.cache.next_frame = first_frame
    return torch.cat([stream.push(part) for part in video.split(case.tubelet, dim=1)], dim=1)


@torch.no_grad()
def check_stream_equals_clip(encoder: Encoder, case: Case, video: Tensor, window: int) -> None:
    """Frame by frame through the cache gives the whole clip's tokens while the clip fits in the window."""
    assert case.frames <= window
    whole = encoder(prepare(video, case.tubelet))
    torch.testing.assert_close(stream_whole(encoder, case, video, window), whole, **ROUNDING)


@torch.no_grad()
def check_stream_slides(encoder: Encoder, case: Case, video: Tensor, window: int) -> None:
    """Beyond the window it gives what a clip gives in which every layer reads the last ``window`` frames only.

    It depends on the ``(window - 1) * depth + 1`` last frames and on none before, and a clock that has run for a million
    frames makes no difference.
    """
    streamed = stream_whole(encoder, case, video, window)
    with reading_the_last(window):
        limited = encoder(prepare(video, case.tubelet))
    torch.testing.assert_close(streamed, limited, **ROUNDING)

    field = (window - 1) * case.depth + 1
    assert case.frames > field, "the clip must be longer than what a stream can remember"
    older, oldest_seen = case.frames - field - 1, case.frames - field
    assert torch.equal(_last_token_after_change(encoder, case, video, window, older), streamed[:, -1])
    assert not torch.equal(_last_token_after_change(encoder, case, video, window, oldest_seen), streamed[:, -1])

    late = stream_whole(encoder, case, video, window, first_frame=1_000_000)
    torch.testing.assert_close(late, streamed, **ROUNDING)


def _last_token_after_change(encoder: Encoder, case: Case, video: Tensor, window: int, frame: int) -> Tensor:
    changed = video.clone()
    changed[:, of_frame(case, frame)] = 255 - video[:, of_frame(case, frame)]
    return stream_whole(encoder, case, changed, window)[:, -1]


def reading_the_last(window: int) -> AbstractContextManager:
    """Encoders attend with a mask under which a frame reads itself and the ``window - 1`` frames before it."""

    def attend_in_window(q: Tensor, k: Tensor, v: Tensor, query_frames: int, key_frames: int, pattern: str) -> Tensor:
        shape = (query_frames, key_frames, q.shape[2], k.shape[2])
        a_frame = q.shape[2] // query_frames
        frame = torch.arange(q.shape[2]) // a_frame
        near = frame[:, None] - frame[None, :] < window
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=frame_causal_mask(*shape) & near)

    return mock.patch("nextvid.models.layers.attend", attend_in_window)
