"""The objective: what it adds up, what its switches do, and that a sample's loss is its own."""

from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
from builders import WEIGHTS, Case, make_batch, make_clip, make_objective, small_recipe
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nextvid.data.loader import Batch
from nextvid.data.transforms import normalise
from nextvid.masking import MaskConfig
from nextvid.objectives import NextVid, Objective
from nextvid.objectives.flow import Sampling, flow_loss, noisy_latents

CASE = Case(frames=3, height=3, width=3, batch=4)
FEW_STEPS = Sampling(steps=3)
MASKS = [MaskConfig(2, 0.2), MaskConfig(1, 0.5)]


def objective(case: Case = CASE, draws: int = 1, ema: float = 0.9, **switches: Any) -> NextVid:
    made = make_objective(case, **switches)
    made.settings.masks, made.settings.draws, made.settings.ema = MASKS, draws, ema
    return made


def part_of(batch: Batch, chosen: list[int]) -> Batch:
    return Batch(batch.frames[chosen], [batch.keys[i] for i in chosen])


def test_the_loss_is_that_of_the_method() -> None:
    """Written out mask by mask and draw by draw."""
    model, batch = objective(draws=3), make_batch(CASE)
    clip = normalise(batch.frames)
    with torch.no_grad():
        losses = model(batch, {"flow": 0.25, "alignment": 2.0})
        c = functional.layer_norm(model.reference(clip)[:, 1:], (CASE.model_width,))
        h1 = model.target.encode(clip)[:, 1:]
        flow, alignment = [], []
        for index, mask in enumerate(MASKS):
            z = model.predict(clip, model.draw_visible(clip, mask, batch.keys, index))
            alignment.append((z - c).square().mean())
            tau, h0 = model._draw_flow(h1, batch.keys, index)
            for t, noise in zip(tau.chunk(3), h0.chunk(3), strict=True):
                output = model.decoder(noisy_latents(h1, noise, t), z, t, *CASE.grid)
                flow.append((output - (h1 - noise)).square().mean())
    assert losses.terms["flow"].item() == pytest.approx(torch.stack(flow).mean().item(), rel=1e-5)
    assert losses.terms["alignment"].item() == pytest.approx(torch.stack(alignment).mean().item(), rel=1e-5)
    assert losses.total.item() == pytest.approx(
        0.25 * losses.terms["flow"].item() + 2.0 * losses.terms["alignment"].item(), rel=1e-5
    )


@pytest.mark.parametrize(
    "switches",
    [{}, {"prediction": "clean"}, {"generation": "regression"}, {"reference": "online"}, {"tau_logit": (-0.5, 1.0)}],
    ids=str,
)
@given(draws=st.integers(1, 3), order=st.permutations(range(4)))
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(switches: dict[str, Any], draws: int, order: list[int]) -> None:
    model, batch = objective(draws=draws, **switches), make_batch(CASE)
    with torch.no_grad():
        whole = model(batch, WEIGHTS)
        halves = [model(part_of(batch, half), WEIGHTS) for half in (order[:2], order[2:])]
    for name, term in whole.terms.items():
        assert term.item() == pytest.approx(sum(half.terms[name].item() for half in halves) / 2, rel=1e-4)


def test_a_key_draws_masks_times_and_noise() -> None:
    model, batch = objective(), make_batch(CASE)
    with torch.no_grad():
        first, again, others = (
            model(Batch(batch.frames, keys), WEIGHTS).total for keys in (batch.keys, batch.keys, [7, 8, 9, 10])
        )
    assert first == again
    assert first != others


@given(draws=st.integers(1, 3))
def test_flow_draws_are_a_samples_own(draws: int) -> None:
    model = objective(draws=draws)
    h1 = torch.zeros(3, 2, 9, 4)
    tau, h0 = (x.unflatten(0, (draws, 3)) for x in model._draw_flow(h1, [1, 2, 3], 0))
    alone_tau, alone_h0 = model._draw_flow(h1[:1], [2], 0)
    assert torch.equal(tau[:, 1], alone_tau)
    assert torch.equal(h0[:, 1], alone_h0)
    assert len(tau.unique()) == tau.numel()


def test_tau_is_uniform_or_logit_normal() -> None:
    h1, keys = torch.zeros(500, 4, 1, 1), list(range(500))
    tau, _ = objective()._draw_flow(h1, keys, 0)
    assert torch.histc(tau, 4, 0, 1).sub(500).abs().max() < 100
    tau, _ = objective(tau_logit=(-0.8, 0.5))._draw_flow(h1, keys, 0)
    assert tau.logit().mean().item() == pytest.approx(-0.8, abs=0.05)
    assert tau.logit().std().item() == pytest.approx(0.5, abs=0.05)


def test_draws_share_one_prediction_and_masks_one_reference() -> None:
    model, calls = objective(draws=4), Counter()
    for name in ("predictor", "reference", "decoder"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    model(make_batch(CASE), WEIGHTS)
    assert calls == {"predictor": 2, "reference": 1, "decoder": 1}


def test_a_loss_without_weight_is_not_computed() -> None:
    model, batch = objective(), make_batch(CASE)
    for weights in ({"flow": 0.0, "alignment": 1.0}, {"alignment": 1.0}):
        with mock.patch.object(model.decoder, "forward", side_effect=AssertionError):
            losses = model(batch, weights)
        assert set(losses.terms) == {"alignment"}
        assert losses.total == losses.terms["alignment"]
    assert set(model(batch, {"flow": 1.0}).terms) == {"flow"}


def test_parts_are_every_trained_parameter_once_and_never_the_reference() -> None:
    model = small_recipe().objective.build(small_recipe().encoder)
    members = [(name, p) for part in model.parts().values() for name, p in part]
    assert list(model.parts()) == ["encoder", "predictor", "decoder"]
    assert len({id(p) for _, p in members}) == len(members)
    named = dict(model.named_parameters())
    assert all(named[name] is p for name, p in members)
    assert {name for name in named if name not in dict(members)} == {
        f"reference.{name}" for name, _ in model.encoder.named_parameters()
    }
    assert all(p.requires_grad == (not name.startswith("reference.")) for name, p in named.items())


def test_the_reference_starts_as_the_encoder() -> None:
    model = small_recipe().objective.build(small_recipe().encoder)
    assert isinstance(model, NextVid)
    for ours, theirs in zip(model.reference.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs


@given(ema=st.floats(0, 1))
def test_the_moving_average(ema: float) -> None:
    model = objective(ema=ema)
    before = [p.clone() for p in model.reference.parameters()]
    online = [p.clone() for p in model.encoder.parameters()]
    model.after_step(0)
    for now, old, new, trained in zip(
        model.reference.parameters(), before, online, model.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(now, ema * old + (1 - ema) * new, rtol=1e-4, atol=1e-5)
        assert torch.equal(trained, new)
        if ema == 1:
            assert torch.equal(now, old)


def test_a_reference_that_stands_still() -> None:
    model = objective(ema=1.0)
    before = [p.clone() for p in model.reference.parameters()]
    model.after_step(0)
    assert all(torch.equal(now, old) for now, old in zip(model.reference.parameters(), before, strict=True))


# Switches.


def test_reference_norms() -> None:
    clip = make_clip(CASE)
    raw = objective().reference(clip)[:, 1:]
    none, layer, batch = (objective(reference_norm=name).reference_tokens(clip) for name in ("none", "layer", "batch"))
    assert torch.equal(none, raw.detach())
    torch.testing.assert_close(layer.mean(-1), torch.zeros(layer.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.var(-1, correction=0), torch.ones(layer.shape[:-1]), rtol=0, atol=1e-3)
    torch.testing.assert_close(batch.mean(0), torch.zeros(batch.shape[1:]), rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.std(0), layer.std(0) / (layer.std(0) + 1e-3), rtol=0, atol=1e-3)
    assert not layer.requires_grad


def test_the_online_encoder_as_reference() -> None:
    clip, model = make_clip(CASE), objective(reference="online", reference_norm="none")
    assert torch.equal(model.reference_tokens(clip), model.encoder(clip)[:, 1:].detach())
    assert not torch.equal(model.reference_tokens(clip), model.reference(clip)[:, 1:])


def test_regression_draws_the_target_at_once() -> None:
    model, clip = objective(generation="regression"), make_clip(CASE)
    z = model.predict(clip, model.draw_visible(clip, MASKS[0], [1, 2, 3, 4], 0))
    h1 = model.target.encode(clip)[:, 1:]
    drawn = model.sample(z, CASE.grid, [1, 2, 3, 4])
    loss = model.generation_loss([z], h1, CASE.grid, [1, 2, 3, 4])
    assert loss.item() == pytest.approx((drawn - h1).square().mean().item(), rel=1e-5)
    assert torch.equal(drawn, model.sample(z, CASE.grid, [5, 6, 7, 8]))


def test_the_clean_prediction_switch_changes_the_loss_and_the_sampler() -> None:
    velocity, clean = objective(), objective(prediction="clean")
    clip, keys = make_clip(CASE), [1, 2, 3, 4]
    z = velocity.predict(clip, velocity.draw_visible(clip, MASKS[0], keys, 0)).detach()
    h1 = velocity.target.encode(clip)[:, 1:]
    tau, h0 = clean._draw_flow(h1, keys, 0)
    output = clean.decoder(noisy_latents(h1, h0, tau), z, tau, *CASE.grid)
    assert torch.equal(clean.generation_loss([z], h1, CASE.grid, keys), flow_loss(output, h1, h0, tau, "clean"))
    assert not torch.equal(clean.sample(z, CASE.grid, keys, FEW_STEPS), velocity.sample(z, CASE.grid, keys, FEW_STEPS))


def test_a_sample_depends_on_its_key_and_not_on_its_batch() -> None:
    model, clip, keys = objective(), make_clip(CASE), [1, 2, 3, 4]
    z = model.predict(clip, model.draw_visible(clip, MASKS[0], keys, 0)).detach()
    drawn = model.sample(z, CASE.grid, keys, FEW_STEPS)
    torch.testing.assert_close(model.sample(z[2:3], CASE.grid, [3], FEW_STEPS), drawn[2:3], rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.sample(z, CASE.grid, [9, 2, 3, 4], FEW_STEPS)[0], drawn[0])


def test_a_stage_is_taken_over() -> None:
    recipe = small_recipe()
    model = recipe.objective.build(recipe.encoder)
    assert isinstance(model, NextVid)
    stage = recipe.stages[0].model_copy(update={"masks": MASKS, "draws": 3, "ema": 0.5})
    model.begin_stage(stage)
    assert (model.settings.masks, model.settings.draws, model.settings.ema) == (MASKS, 3, 0.5)


# Anything that a loader gives.


def test_bfloat16_comes_close_to_float32() -> None:
    model, batch = objective(draws=2), make_batch(CASE)
    exact = model(batch, WEIGHTS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, WEIGHTS)
    assert rounded.total.dtype == torch.float32
    for name, term in exact.terms.items():
        assert rounded.terms[name].item() == pytest.approx(term.item(), rel=0.03)


def test_a_still_clip_passes() -> None:
    batch = make_batch(CASE)
    still = Batch(batch.frames[:, :1].repeat(1, batch.frames.shape[1], 1, 1, 1), batch.keys)
    losses = objective()(still, WEIGHTS)
    losses.total.backward()
    assert losses.total.isfinite()


@given(frames=st.integers(2, 5), side=st.integers(1, 4), batch=st.integers(1, 3))
def test_other_lengths_and_sizes_pass(frames: int, side: int, batch: int) -> None:
    case = Case(frames=frames, height=side, width=side, batch=batch)
    losses = objective()(make_batch(case), WEIGHTS)
    assert losses.total.isfinite()
    assert losses.health is not None
    assert losses.health().features.shape == (batch, frames - 1, side * side, case.model_width)


def test_the_cosine_basis_is_measured_before_training() -> None:
    recipe = small_recipe(objective={**small_recipe().objective.model_dump(), "target": {"basis": "dct"}})
    model: Objective = recipe.objective.build(recipe.encoder)
    assert isinstance(model, NextVid)
    batch = make_batch(Case(height=4, width=4, batch=8))
    model.before_training(batch)
    latents: Tensor = model.target.encode(normalise(batch.frames))
    assert latents.std().item() == pytest.approx(1.0, abs=0.05)
