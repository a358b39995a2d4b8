"""VideoMAE: the same loss and gradients as transformers' VideoMAEForPreTraining, and what it may not see."""

from typing import Any

import pytest
import torch
from builders import Case, cases, encoder_config, make_batch, make_clip, make_visible, randomise
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nextvid.data.transforms import normalise
from nextvid.masking import TubeConfig, hidden_places
from nextvid.models.encoder import patchify
from nextvid.models.mae_decoder import MaeDecoderConfig
from nextvid.objectives.videomae import VideoMae, VideoMaeConfig
from nextvid.targets.normalised import normalised_patches, restored_frames

CASE = Case(frames=3, height=4, width=4, batch=3, model_width=32, heads=2)


def make_videomae(case: Case, positions: str = "sincos", **changes: Any) -> VideoMae:
    decoder = MaeDecoderConfig(case.model_width // 2, 2, 1, case.model_width, positions)
    changes = {"attention": "full", "positions": positions, **changes}
    return randomise(VideoMaeConfig(decoder=decoder).build(encoder_config(case, **changes)), case.seed)


# The peer.


class Peer:
    """transformers' model with our weights: our colours in [-1, 1] are its colours, scaled and shifted, so its patch
    embedding is ours, scaled and shifted back; its values of a patch come in another order."""

    def __init__(self, ours: VideoMae, case: Case) -> None:
        from transformers import VideoMAEConfig as TheirConfig  # noqa: PLC0415 (seconds to import)
        from transformers import VideoMAEForPreTraining  # noqa: PLC0415
        from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: PLC0415

        decoder = ours.decoder.config
        self.case = case
        self.mean, self.std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
        self.model = VideoMAEForPreTraining(
            TheirConfig(
                image_size=case.height * case.patch, patch_size=case.patch, tubelet_size=case.tubelet,
                num_frames=case.frames * case.tubelet, hidden_size=case.model_width, num_hidden_layers=case.depth,
                num_attention_heads=case.heads, intermediate_size=2 * case.model_width, layer_norm_eps=1e-6,
                use_mean_pooling=False, decoder_hidden_size=decoder.width, decoder_num_hidden_layers=decoder.depth,
                decoder_num_attention_heads=decoder.heads, decoder_intermediate_size=decoder.mlp_hidden,
            )
        )  # fmt: skip
        self.model.decoder.norm.eps = 1e-6  # the authors' code has it so; transformers leaves PyTorch's 1e-5
        with torch.no_grad():
            for theirs, value in self.paired(ours, lambda p: p.detach()):
                theirs.copy_(value)

    def paired(self, ours: VideoMae, read: Any) -> list[tuple[nn.Parameter, Tensor]]:
        """Each of their parameters, and ``read`` of ours in their terms."""
        theirs, encoder, decoder = self.model.videomae, ours.encoder, ours.decoder
        pairs = [
            (theirs.layernorm.weight, read(encoder.norm.weight)),
            (theirs.layernorm.bias, read(encoder.norm.bias)),
            (self.model.encoder_to_decoder.weight, read(decoder.input.weight)),
            (self.model.mask_token, read(decoder.mask_token)[None, None]),
            (self.model.decoder.norm.weight, read(decoder.norm.weight)),
            (self.model.decoder.norm.bias, read(decoder.norm.bias)),
            (self.model.decoder.head.weight, self._colours_last(read(decoder.output.weight))),
            (self.model.decoder.head.bias, self._colours_last(read(decoder.output.bias))),
        ]
        layers = [*theirs.encoder.layer, *self.model.decoder.decoder_layers]
        for layer, block in zip(layers, [*encoder.blocks, *decoder.blocks], strict=True):
            pairs += _block_pairs(layer, block, read)
        return pairs + self._embedding_pairs(ours, read)

    def _embedding_pairs(self, ours: VideoMae, read: Any) -> list[tuple[nn.Parameter, Tensor]]:
        """``W x + b = W' x' + b'`` with ``x = a x' + c`` gives ``W' = W a``; gradients go the other way."""
        projection = self.model.videomae.embeddings.patch_embeddings.projection
        embed = ours.encoder.patch_embed
        shape = (self.case.model_width, self.case.tubelet, 3, self.case.patch, self.case.patch)
        scale, shift = 2 * self.std, 2 * self.mean - 1
        weight, bias = read(embed.weight).view(shape), read(embed.bias)
        if read(embed.weight).data_ptr() == embed.weight.data_ptr():
            turned = weight * scale[:, None, None]
            bias = bias + (weight * shift[:, None, None]).flatten(1).sum(1)
        else:
            turned = (weight - bias[:, None, None, None, None] * shift[:, None, None]) / scale[:, None, None]
        return [(projection.weight, turned.transpose(1, 2)), (projection.bias, bias)]

    def _colours_last(self, rows: Tensor) -> Tensor:
        """Our values of a patch are (tubelet, colour, row, column), theirs (tubelet, row, column, colour)."""
        laid_out = rows.unflatten(0, (self.case.tubelet, 3, self.case.patch, self.case.patch))
        return laid_out.movedim(1, 3).flatten(0, 3)

    def loss(self, frames: Tensor, visible: Tensor) -> Tensor:
        """Of frames in [-1, 1] whose ``visible`` places are seen."""
        pixels = ((frames + 1) / 2 - self.mean[:, None, None]) / self.std[:, None, None]
        masked = torch.ones(len(frames), self.case.places, dtype=torch.bool).scatter_(1, visible, False)
        return self.model(pixels, bool_masked_pos=masked.repeat(1, self.case.frames)).loss


def _block_pairs(layer: Any, block: Any, read: Any) -> list[tuple[nn.Parameter, Tensor]]:
    attention = layer.attention.attention
    weights, biases = read(block.attention.qkv.weight).chunk(3), read(block.attention.qkv.bias).chunk(3)
    pairs = [
        (attention.query.weight, weights[0]),
        (attention.key.weight, weights[1]),
        (attention.value.weight, weights[2]),
    ]
    pairs += [(attention.query.bias, biases[0]), (attention.value.bias, biases[2])]
    for theirs, own in (
        (layer.layernorm_before, block.norm1),
        (layer.attention.output.dense, block.attention.proj),
        (layer.layernorm_after, block.norm2),
        (layer.intermediate.dense, block.mlp.fc1),
        (layer.output.dense, block.mlp.fc2),
    ):
        pairs += [(theirs.weight, read(own.weight)), (theirs.bias, read(own.bias))]
    return pairs


def test_loss_and_gradients_are_those_of_transformers() -> None:
    ours = make_videomae(CASE)
    peer = Peer(ours, CASE)
    frames, visible = make_clip(CASE), make_visible(CASE, 3)
    loss, theirs = ours.reconstruction_loss(frames, visible), peer.loss(frames, visible)
    torch.testing.assert_close(loss, theirs, rtol=1e-6, atol=0)
    loss.backward()
    theirs.backward()
    pairs = peer.paired(ours, lambda p: p.grad)
    assert {id(p) for p, _ in pairs} == {id(p) for p in peer.model.parameters()}
    for parameter, gradient in pairs:
        assert parameter.grad is not None
        error = (parameter.grad - gradient).norm() / parameter.grad.norm()
        assert error < 2e-5


def test_the_bias_of_keys_that_the_peer_lacks_changes_nothing() -> None:
    model, frames, visible = make_videomae(CASE), make_clip(CASE), make_visible(CASE, 3)
    before = model.reconstruction_loss(frames, visible)
    before.backward()
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        gradient = block.attention.qkv.bias.grad.chunk(3)
        assert gradient[1].norm() < 1e-5 * gradient[0].norm()
        block.attention.qkv.bias.data.chunk(3)[1].add_(1.0)
    torch.testing.assert_close(model.reconstruction_loss(frames, visible), before, rtol=1e-5, atol=0)


# What is seen and what is asked for.


@pytest.mark.parametrize("positions", ["rope", "sincos"])
@given(case=cases(min_frames=1, max_frames=3), data=st.data())
def test_hidden_pixels_are_never_seen(positions: str, case: Case, data: st.DataObject) -> None:
    case = Case(**{**vars(case), "height": 2, "model_width": 32, "heads": 1})
    visible = make_visible(case, data.draw(st.integers(1, case.places - 1), "kept"))
    hidden = hidden_places(visible, case.places)
    model, frames = make_videomae(case, positions), make_clip(case)
    patches = frames.clone().requires_grad_()
    model.fill(patches, visible, hidden).sum().backward()
    gradient = patchify(patches.grad, case.patch, case.tubelet).abs().sum(dim=(1, 3))
    assert torch.equal(gradient.gather(1, hidden), torch.zeros_like(hidden, dtype=torch.float))
    assert (gradient.gather(1, visible) > 0).all()


def test_only_hidden_patches_are_asked_for() -> None:
    model, frames, visible = make_videomae(CASE), make_clip(CASE), make_visible(CASE, 3)
    hidden = hidden_places(visible, CASE.places)
    filled = model.fill(frames, visible, hidden)
    assert filled.shape == (CASE.batch, CASE.frames, CASE.places - 3, 3 * CASE.tubelet * CASE.patch**2)
    target = normalised_patches(frames, CASE.patch, CASE.tubelet).values
    index = hidden[:, None, :, None].expand(-1, CASE.frames, -1, target.shape[-1])
    expected = (filled - target.gather(2, index)).square().mean()
    torch.testing.assert_close(model.reconstruction_loss(frames, visible), expected)


def test_each_hidden_place_and_time_asks_for_itself() -> None:
    for positions in ("rope", "sincos"):
        visible = make_visible(CASE, 3)
        filled = make_videomae(CASE, positions).fill(make_clip(CASE), visible, hidden_places(visible, CASE.places))
        rows = filled[0].flatten(0, 1).detach()
        exact = "donot_use_mm_for_euclid_dist"
        assert torch.cdist(rows, rows, compute_mode=exact).add(torch.eye(len(rows))).min() > 1e-3


@given(case=cases(min_frames=1, max_frames=3))
def test_normalised_patches_can_be_undone(case: Case) -> None:
    frames = make_clip(case)
    target = normalised_patches(frames, case.patch, case.tubelet)
    colours = target.values.unflatten(-1, (case.tubelet, 3, -1))
    assert colours.mean(dim=(3, 5)).abs().max() < 1e-4
    torch.testing.assert_close(
        colours.movedim(3, 4).flatten(4).std(dim=-1), torch.ones((*colours.shape[:3], 3)), rtol=1e-3, atol=0
    )
    back = restored_frames(target.values, target, case.patch, case.tubelet, *frames.shape[-2:])
    torch.testing.assert_close(back, frames, rtol=1e-4, atol=1e-4)


def test_a_patch_of_one_colour_is_no_division_by_zero() -> None:
    frames = torch.zeros(1, 2, 3, 8, 8)
    assert not normalised_patches(frames, 4, 2).values.any()


def test_a_reconstruction_keeps_what_was_seen() -> None:
    model, frames, visible = make_videomae(CASE), make_clip(CASE), make_visible(CASE, 3)
    restored = patchify(model.reconstruct(frames, visible), CASE.patch, CASE.tubelet)
    truth = patchify(frames, CASE.patch, CASE.tubelet)
    same = (restored - truth).abs().amax(dim=(1, 3)) < 1e-5
    assert torch.equal(same, torch.zeros(CASE.batch, CASE.places, dtype=torch.bool).scatter_(1, visible, True))


# As an objective.


def test_a_batch_is_masked_by_its_keys() -> None:
    model, batch = make_videomae(CASE), make_batch(CASE)
    model.masks = [TubeConfig(0.75)]
    first = model(batch, {"reconstruction": 1.0})
    assert torch.equal(first.total, model(batch, {"reconstruction": 1.0}).total)
    assert first.total == first.terms["reconstruction"]
    other = model(make_batch(CASE, [7, 8, 9]), {"reconstruction": 1.0})
    assert not torch.equal(first.total, other.total)
    torch.testing.assert_close(model(batch, {"reconstruction": 0.5}).total, 0.5 * first.total)


def test_the_loss_is_averaged_over_masks() -> None:
    model, batch = make_videomae(CASE), make_batch(CASE)
    losses = []
    for masks in ([TubeConfig(0.75)], [TubeConfig(0.75), TubeConfig(0.75)]):
        model.masks = list(masks)
        losses.append(model(batch, {"reconstruction": 1.0}).total)
    from nextvid.masking import draw_batch  # noqa: PLC0415

    second = model.reconstruction_loss(
        normalise(batch.frames), draw_batch(TubeConfig(0.75), batch.keys, "mask 1", 4, 4)
    )
    torch.testing.assert_close(losses[1], (losses[0] + second) / 2)


def test_health_is_of_whole_clips_and_its_blind_rival_predicts_the_mean() -> None:
    model, batch = make_videomae(CASE), make_batch(CASE)
    found = model(batch, {"reconstruction": 1.0}).health()
    assert found.features.shape == (CASE.batch, CASE.frames, CASE.places, CASE.model_width)
    assert not found.features.requires_grad
    values = 3 * CASE.tubelet * CASE.patch**2 / 3
    assert found.blind["reconstruction"] == pytest.approx((values - 1) / values, rel=1e-3)


def test_parts_are_every_parameter_once() -> None:
    model = make_videomae(CASE)
    members = [p for part in model.parts().values() for _, p in part]
    assert list(model.parts()) == ["encoder", "decoder"]
    assert len(members) == len({id(p) for p in members}) == len(list(model.parameters()))
    assert list(model.exports()) == ["online"]
