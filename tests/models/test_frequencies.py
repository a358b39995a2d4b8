"""The frequencies of a tubelet patch: nothing lost, and about as much of each."""

import pytest
import torch
from builders import Case, make_encoder

from nextvid.data.clip import ClipSpec
from nextvid.data.film import FilmClips
from nextvid.data.transforms import Augmentation, normalise
from nextvid.models.encoder import patchify, tokens_of
from nextvid.models.frequencies import levelling, tubelet_basis
from nextvid.randomness import generator


@pytest.mark.parametrize(("patch", "tubelet"), [(2, 1), (4, 2), (8, 2), (8, 3)])
def test_the_basis_of_a_tubelet_patch_is_orthonormal(patch: int, tubelet: int) -> None:
    basis = tubelet_basis(patch, tubelet)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), rtol=0, atol=1e-5)


def test_the_first_coefficient_is_the_mean_and_the_order_is_that_of_patchify() -> None:
    frames = torch.zeros(1, 2, 3, 8, 8)
    frames[:, 1] = 1.0
    coefficients = (patchify(frames, 8, 2) @ tubelet_basis(8, 2).T).flatten()
    found = coefficients.abs() > 1e-5
    assert found.nonzero().flatten().tolist() == [0, 3 * 64]


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_levelled_film_has_about_the_same_deviation_in_every_coefficient(patch: int) -> None:
    film, spec = FilmClips("train", Augmentation()), ClipSpec(8, 6.0, 32)
    clips = torch.stack([torch.from_numpy(film.clip(generator("level", i), spec)) for i in range(60)])
    raw = patchify(normalise(clips.permute(0, 1, 4, 2, 3)), patch, 2).flatten(0, 2)
    before, after = raw @ tubelet_basis(patch, 2).T, raw @ levelling(patch, 2)
    spreads = [x.std(dim=0).log() for x in (before, after)]
    assert spreads[1].std() < 0.6 * spreads[0].std()
    assert 0.2 < after.std(dim=0).median() < 3


def test_frequencies_are_not_rounded_by_mixed_precision() -> None:
    reads = make_encoder(Case(patch=4), input="cosine")
    seen: list[torch.Tensor] = []
    reads.patch_embed.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    frames = torch.rand(2, 4, 3, 8, 8) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        reads(frames)
    torch.testing.assert_close(seen[0], patchify(frames, 4, 2) @ levelling(4, 2))


def test_an_encoder_that_reads_frequencies_sees_what_a_linear_map_of_pixels_sees() -> None:
    case = Case(patch=4)
    reads = make_encoder(case, input="cosine")
    plain = make_encoder(case)
    plain.load_state_dict(reads.state_dict())
    with torch.no_grad():
        plain.patch_embed.weight.copy_(reads.patch_embed.weight @ levelling(4, 2).T)
    frames = torch.rand(2, 4, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(tokens_of(reads(frames)), tokens_of(plain(frames)), rtol=1e-4, atol=1e-4)
