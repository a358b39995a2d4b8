"""The encoder on any grid, length and mask (its causality and its cache are in tests/objectives/test_never_happens.py)."""

from typing import Any
from unittest import mock

import pytest
import torch
from builders import Case, cases, make_clip, make_encoder, make_visible
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nextvid.models.attention import frame_causal_mask
from nextvid.models.encoder import Encoder, gather_places, patchify, unpatchify

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


@given(case=cases(min_frames=1))
def test_patches_hold_the_pixels_beneath_them(case: Case) -> None:
    clip = make_clip(case)
    patches = patchify(clip, case.patch, case.tubelet)
    assert patches.shape == (case.batch, case.frames, case.places, 3 * case.tubelet * case.patch**2)
    for frame in range(case.frames):
        for place in range(case.places):
            top, left = place // case.width * case.patch, place % case.width * case.patch
            tube = clip[:, frame * case.tubelet : (frame + 1) * case.tubelet]
            beneath = tube[..., top : top + case.patch, left : left + case.patch]
            assert torch.equal(patches[:, frame, place], beneath.flatten(1))
    rows, columns = case.height * case.patch, case.width * case.patch
    assert torch.equal(unpatchify(patches, case.patch, case.tubelet, rows, columns), clip)


@pytest.mark.parametrize("shape", [(1, 3, 3, 8, 8), (1, 4, 3, 9, 8), (1, 4, 3, 8, 10)])
def test_a_clip_that_cannot_be_cut(shape: tuple[int, ...]) -> None:
    encoder = make_encoder(Case())
    with pytest.raises(ValueError, match="frames must be a multiple of 2, height and width of 4"):
        encoder(torch.zeros(shape))


@given(case=cases(min_frames=1), data=st.data())
def test_dropping_hidden_tokens_equals_masking_them_out(case: Case, data: st.DataObject) -> None:
    """By brute force: all tokens run, and attention bars every key at a hidden place."""
    encoder, clip = make_encoder(case), make_clip(case)
    visible = make_visible(case, data.draw(st.integers(1, case.places), "kept"))
    seen = torch.zeros(case.batch, case.places, dtype=torch.bool).scatter_(1, visible, True)
    seen = seen.repeat(1, case.frames)[:, None, None, :]

    def attend_to_seen(q: Tensor, k: Tensor, v: Tensor, query_frames: int, key_frames: int, *_: Any) -> Tensor:
        causal = frame_causal_mask(query_frames, key_frames, q.shape[2], k.shape[2])
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=causal & seen)

    with torch.no_grad():
        dropped = encoder(clip, visible)
        with mock.patch("nextvid.models.layers.attend", attend_to_seen):
            masked = encoder(clip)
    torch.testing.assert_close(dropped, gather_places(masked, visible), **ROUNDING)


@given(case=cases(min_frames=1), data=st.data())
def test_the_order_of_visible_places_orders_the_output(case: Case, data: st.DataObject) -> None:
    encoder, clip = make_encoder(case), make_clip(case)
    visible = make_visible(case, data.draw(st.integers(1, case.places), "kept"))
    order = torch.tensor(data.draw(st.permutations(range(visible.shape[1])), "order"))
    with torch.no_grad():
        torch.testing.assert_close(encoder(clip, visible[:, order]), encoder(clip, visible)[:, :, order], **ROUNDING)


@given(case=cases(min_frames=1))
def test_all_places_visible_is_the_whole_clip(case: Case) -> None:
    encoder, clip = make_encoder(case), make_clip(case)
    with torch.no_grad():
        torch.testing.assert_close(encoder(clip, make_visible(case, case.places)), encoder(clip), **ROUNDING)


@given(case=cases(min_frames=1))
def test_a_clip_does_not_depend_on_its_neighbours_in_the_batch(case: Case) -> None:
    encoder, clip = make_encoder(case), make_clip(case)
    with torch.no_grad():
        alone = torch.cat([encoder(one) for one in clip.split(1)])
        torch.testing.assert_close(encoder(clip), alone, **ROUNDING)


def test_one_encoder_takes_other_resolutions_and_lengths() -> None:
    encoder = make_encoder(Case())
    for case in (Case(frames=1), Case(frames=7, height=1, width=5), Case(height=6, width=2, batch=1)):
        assert encoder(make_clip(case)).shape == (case.batch, case.frames, case.places, case.model_width)


def test_positions_matter_along_every_axis() -> None:
    """The same patch everywhere, but for one that breaks the symmetry: tokens differ by place and time alone."""
    case = Case(frames=3, height=3, width=3, batch=1)
    clip = torch.zeros_like(make_clip(case))
    clip[:, :2, :, :4, :4] = 1
    tokens = make_encoder(case)(clip).detach()[0].unflatten(1, case.grid)
    for a, b in (((1, 1, 1), (2, 1, 1)), ((1, 1, 1), (1, 2, 1)), ((1, 1, 1), (1, 1, 2))):
        assert (tokens[a] - tokens[b]).abs().max() > 1e-3


def test_return_layers() -> None:
    case = Case(depth=3)
    encoder, clip = make_encoder(case), make_clip(case)
    with torch.no_grad():
        last = encoder(clip)
        layers = encoder(clip, return_layers=[2, 0, 1])
        assert isinstance(layers, list)
        assert [layer.shape for layer in layers] == [last.shape] * 3
        assert torch.equal(layers[0], last)
        assert torch.equal(encoder(clip, return_layers=[0])[0], layers[1])
    assert not torch.equal(layers[1], layers[2])


def test_an_earlier_layer_is_that_of_a_shallower_encoder() -> None:
    case = Case(depth=3)
    encoder, clip = make_encoder(case), make_clip(case)
    shallow = make_encoder(Case(depth=2))
    shallow.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("blocks.2.")})
    assert torch.equal(encoder(clip, return_layers=[1])[0], shallow(clip))


@pytest.mark.parametrize("wanted", [[2], [-1], [0, 5], []])
def test_layers_that_are_not_there(wanted: list[int]) -> None:
    case = Case(depth=2)
    with pytest.raises(ValueError, match="this encoder has layers 0 to 1"):
        make_encoder(case)(make_clip(case), return_layers=wanted)


def test_a_fresh_encoder_starts_as_v_jepa_2_does() -> None:
    encoder = Encoder(make_encoder(Case(model_width=32, depth=3)).config)
    assert encoder.patch_embed.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for number, block in enumerate(encoder.blocks):
        for ends_a_branch in (block.attention.proj, block.mlp.fc2):
            assert ends_a_branch.weight.std().item() == pytest.approx(0.02 / (2 * (number + 1)) ** 0.5, rel=0.15)
    assert not any(p.any() for name, p in encoder.named_parameters() if name.endswith("bias"))
