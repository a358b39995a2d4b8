"""Pixels as a target space, raw or as cosine coefficients."""

import math
from dataclasses import replace

import pytest
import torch
from builders import Case, cases, make_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvid.errors import UserError
from nextvid.models.encoder import patchify
from nextvid.models.frequencies import cosine_basis
from nextvid.targets.pixels import SMALLEST_DEVIATION, Pixels, PixelsConfig

BASES = ["pixels", "dct"]


def make_space(case: Case, fitted: bool = True, **settings: object) -> Pixels:
    space = Pixels(PixelsConfig(**settings), case.patch, case.tubelet)
    if fitted:
        space.fit(make_clip(replace(case, batch=4)))
    return space


@given(case=cases(min_frames=1), basis=st.sampled_from(BASES))
def test_nothing_is_lost_at_full_resolution(case: Case, basis: str) -> None:
    space, clip = make_space(case, basis=basis), make_clip(case)
    latents = space.encode(clip)
    assert latents.shape == (case.batch, case.frames, case.places, space.channels)
    torch.testing.assert_close(space.decode(latents, *case.grid), clip, rtol=1e-4, atol=1e-5)


@given(case=cases(min_frames=1), basis=st.sampled_from(BASES))
def test_a_downsampled_space_holds_the_averages(case: Case, basis: str) -> None:
    space, clip = make_space(case, basis=basis, downsample=2), make_clip(case)
    assert space.channels == 3 * case.tubelet * (case.patch // 2) ** 2
    averages = clip.unflatten(-1, (-1, 2)).mean(-1).unflatten(-2, (-1, 2)).mean(-2)
    torch.testing.assert_close(space.decode(space.encode(clip), *case.grid), averages, rtol=1e-4, atol=1e-5)


def test_raw_pixels_are_normalised_by_the_settings_and_never_measured() -> None:
    case = Case()
    space, clip = make_space(case, mean=0.25, std=0.125), make_clip(case)
    torch.testing.assert_close(space.encode(clip), (patchify(clip, case.patch, case.tubelet) - 0.25) / 0.125)


def test_fitted_coefficients_have_mean_0_and_deviation_1() -> None:
    case = Case(batch=40)
    clip = 0.3 * make_clip(case) + 0.2
    space = make_space(case, fitted=False, basis="dct")
    space.fit(clip)
    latents = space.encode(clip).flatten(0, 2)
    torch.testing.assert_close(latents.mean(0), torch.zeros(space.channels), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(0), torch.ones(space.channels), rtol=0, atol=1e-3)


@given(whiten=st.floats(0, 1), contrast=st.floats(0.1, 0.5))
@settings(max_examples=15, deadline=None)
def test_whitening_in_part_keeps_the_order_and_the_energy(whiten: float, contrast: float) -> None:
    case = Case(batch=40)
    clip = contrast * make_clip(case).cumsum(-1).clamp(-2, 2) / 2
    space = make_space(case, fitted=False, basis="dct", whiten=whiten)
    space.fit(clip)
    raw, latents = (values.flatten(0, 2) for values in (space._raw(clip), space.encode(clip)))
    assert 0.9 < latents.square().mean().item() < 1.02  # less only by what the smallest deviation holds up
    wide = raw.std(0) > SMALLEST_DEVIATION
    slope = latents.std(0)[wide].log() - (1 - whiten) * raw.std(0)[wide].log()
    torch.testing.assert_close(slope, slope.mean().expand_as(slope), rtol=0, atol=0.01)


def test_a_coefficient_that_never_moves_is_not_blown_up() -> None:
    case = Case()
    space = make_space(case, fitted=False, basis="dct")
    space.fit(torch.full_like(make_clip(case), 0.5))
    assert space.encode(make_clip(case)).abs().max() < 2 * math.sqrt(space.channels) / SMALLEST_DEVIATION


def test_the_first_coefficient_is_the_mean_colour_and_a_still_tubelet_has_no_change() -> None:
    case = Case(frames=1, height=1, width=1, batch=1)
    space = make_space(case, fitted=False, basis="dct", std=1.0)
    still = make_clip(case)[:, :1].repeat(1, 2, 1, 1, 1)
    latents = space.encode(still)[0, 0, 0]
    assert latents[0].item() == pytest.approx(still.mean().item() * math.sqrt(space.channels), abs=1e-4)
    torch.testing.assert_close(latents[space.channels // 2 :], torch.zeros(space.channels // 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_cosine_basis_is_orthonormal(n: int) -> None:
    torch.testing.assert_close(cosine_basis(n) @ cosine_basis(n).T, torch.eye(n), rtol=0, atol=1e-6)


@pytest.mark.parametrize("basis", BASES)
def test_a_target_is_not_rounded_by_mixed_precision(basis: str) -> None:
    case = Case()
    space, clip = make_space(case, basis=basis), make_clip(case)
    with torch.autocast("cpu", torch.bfloat16):
        latents = space.encode(clip)
        frames = space.decode(latents, *case.grid)
    assert torch.equal(latents, space.encode(clip))
    torch.testing.assert_close(frames, clip, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("basis", BASES)
def test_there_is_nothing_to_train_and_the_statistics_are_kept(basis: str) -> None:
    space = make_space(Case(), basis=basis)
    assert not list(space.parameters())
    assert set(space.state_dict()) == {"mean", "std"}


def test_a_factor_that_does_not_divide_the_patch() -> None:
    with pytest.raises(UserError, match="downsample=3 does not divide the patch of 4 pixels"):
        make_space(Case(patch=4), fitted=False, downsample=3)


@pytest.mark.parametrize("settings", [{"downsample": 0}, {"std": 0.0}, {"std": -1.0}])
def test_settings_that_make_no_space(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"downsample=.* must be 1 or more, and std=.* above 0"):
        PixelsConfig(**settings)
