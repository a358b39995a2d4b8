"""What an autoencoder learns from: each loss by itself, and the gradients of all of them together."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional

from nextvid.config import parse_settings
from nextvid.models.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from nextvid.models.discriminator import Discriminator, DiscriminatorConfig
from nextvid.vae.config import VaeRecipe
from nextvid.vae.losses import adaptive_weight, alike, hinge
from nextvid.vae.model import VaeModel

MODEL = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "latent_channels": 3, "groups": 4, "fold": 2}


def recipe(**changes: Any) -> VaeRecipe:
    raw: dict[str, Any] = {
        "name": "small",
        "model": MODEL,
        "discriminator": {"width": 8, "layers": 1},
        "data": {"sources": [{"builtin": "film"}], "workers": 0},
        "size": 16,
        "batch": 4,
        "steps": 6,
        "statistics": 16,
        "judged": 32,
        "losses": {"adversarial_from": 3, "alignment": {"layer": 4}},
        "training": {"checkpoint_every": 3, "log_every": 2, "threads": 1, "warmup": 1},
    }
    return parse_settings(VaeRecipe, {**raw, **changes}, "small")


@pytest.fixture(scope="module")
def model() -> VaeModel:
    torch.manual_seed(0)
    return VaeModel(recipe())


def pictures(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(seed=st.integers(0, 100), channels=st.integers(1, 4))
def test_the_divergence_is_that_of_gaussians(seed: int, channels: int) -> None:
    moments = torch.randn(2, 2 * channels, 3, 2, generator=torch.Generator().manual_seed(seed))
    posterior = Posterior.of(moments)
    wide = Independent(Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), 3)
    unit = Independent(Normal(torch.zeros_like(posterior.mean), 1.0), 3)
    torch.testing.assert_close(posterior.divergence(), kl_divergence(wide, unit), rtol=1e-4, atol=1e-4)


def test_a_draw_has_the_posteriors_mean_and_deviation() -> None:
    posterior = Posterior.of(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 100, 100))
    drawn = posterior.sample(torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)))
    assert abs(drawn.mean().item() - 2) < 0.03
    assert abs(drawn.std().item() - torch.tensor(-0.5).exp().item()) < 0.03


def test_what_points_where_features_do_costs_nothing(model: VaeModel) -> None:
    alignment = model.alignment
    assert alignment is not None
    latents = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        cosine, _ = alignment(latents, 5 * alignment.projection(latents))
        opposite, _ = alignment(latents, -alignment.projection(latents))
    assert cosine == 0
    assert abs(opposite.item() - (2 - alignment.config.cosine_margin)) < 1e-4


def test_places_alike_as_features_are_cost_nothing_and_others_do(model: VaeModel) -> None:
    alignment = model.alignment
    assert alignment is not None
    latents, width = torch.randn(2, 3, 4, 4), alignment.projection.out_channels
    rotation = torch.linalg.qr(torch.randn(width, 3))[0]
    alike_features = torch.einsum("wc,nchv->nwhv", 3 * rotation, latents)
    with torch.no_grad():
        assert alignment(latents, alike_features)[1] < 1e-5
        assert alignment(latents, torch.ones(2, width, 4, 4))[1] > 0.2
    assert alike(latents).shape == (2, 16, 16)


def test_alignment_leaves_the_network_that_it_looks_to_alone(model: VaeModel) -> None:
    alignment = model.alignment
    assert alignment is not None
    assert not alignment.features(pictures().requires_grad_(), 4, 4).requires_grad
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if "network" in name] == []
    assert [name for name in model.state_dict() if "network" in name] == []


def test_perception_is_0_for_equal_pictures_and_grows_with_blur(model: VaeModel) -> None:
    assert model.perceptual is not None
    sharp = functional.interpolate(pictures(), scale_factor=2.0)
    mild, strong = (functional.avg_pool2d(sharp, k, 1, k // 2) for k in (3, 7))
    with torch.no_grad():
        assert model.perceptual(sharp, sharp) == 0
        assert 0 < model.perceptual(mild, sharp) < model.perceptual(strong, sharp)


def test_hinge_wants_real_above_1_and_drawn_below_minus_1() -> None:
    assert hinge(torch.tensor([1.5]), torch.tensor([-2.0])) == 0
    assert hinge(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_adaptive_weights_are_ratios_and_stay_finite() -> None:
    assert abs(adaptive_weight(torch.full((4,), 3.0), torch.full((4,), 1.5)).item() - 2) < 1e-3
    assert adaptive_weight(torch.ones(4), torch.zeros(4)) == 1e4


@pytest.mark.parametrize("adversarial", [False, True])
def test_gradients_in_three_parts_are_those_of_the_sum(model: VaeModel, adversarial: bool) -> None:
    """Against the weighted sum written out, with the adaptive weights as plain numbers."""
    images, noise = pictures(), torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    found = model.backward(images, noise, adversarial)
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    autoencoder, losses, perceptual, alignment = model.autoencoder, model.losses, model.perceptual, model.alignment
    assert perceptual is not None
    assert alignment is not None
    assert model.discriminator is not None
    moments = autoencoder.moments(images)
    posterior = Posterior.of(moments)
    latents = posterior.sample(noise)
    drawn = autoencoder.decode(latents)
    main = functional.l1_loss(drawn, images) + losses.perceptual * perceptual(drawn, images)
    adverse = -model.discriminator(drawn).mean()
    if adversarial:
        last = autoencoder.decoder.conv_out.weight
        ratio = adaptive_weight(*(torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (main, adverse)))
        main = main + losses.adversarial * ratio * adverse
    aligned = sum(alignment(latents, alignment.features(images, 4, 4)), torch.zeros(()))
    last = autoencoder.encoder.conv_out.weight
    ratio = adaptive_weight(*(torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (main, aligned)))
    total = main + losses.kl * posterior.divergence().sum() / images.numel() + losses.alignment.weight * ratio * aligned
    model.zero_grad()
    total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("discriminator."):
            continue
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=f"the gradient of {name}")
    assert ("discriminator" in found) == adversarial
    assert any(name.startswith("discriminator.") for name in got) == adversarial


def test_the_discriminator_learns_from_its_own_loss_alone(model: VaeModel) -> None:
    images, noise = pictures(), torch.zeros(3, 3, 4, 4)
    model.zero_grad()
    model.backward(images, noise, True)
    assert model.discriminator is not None
    got = [parameter.grad.clone() for parameter in model.discriminator.parameters() if parameter.grad is not None]
    with torch.no_grad():
        drawn = model.autoencoder.decode(model.autoencoder.encode(images).sample(noise))
    model.zero_grad()
    hinge(model.discriminator(images), model.discriminator(drawn)).backward()
    for one, parameter in zip(got, model.discriminator.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_picture_is_judged_alone() -> None:
    torch.manual_seed(0)
    judge = Discriminator(DiscriminatorConfig(width=8, layers=2))
    several = pictures(4)
    with torch.no_grad():
        torch.testing.assert_close(judge(several)[:1], judge(several[:1]), rtol=1e-4, atol=1e-5)


@given(
    levels=st.integers(1, 3),
    fold=st.sampled_from([1, 2]),
    channels=st.integers(1, 4),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
)
def test_any_shape_goes_there_and_back(levels: int, fold: int, channels: int, rows: int, columns: int) -> None:
    config = AutoencoderConfig(
        width=4,
        multipliers=(1,) * levels,
        blocks=1,
        attention=(levels - 1,),
        latent_channels=channels,
        groups=2,
        fold=fold,
    )
    assert config.stride == fold * 2 ** (levels - 1)
    network = Autoencoder(config)
    images = torch.rand(2, 3, rows * config.stride, columns * config.stride) * 2 - 1
    with torch.no_grad():
        posterior = network.encode(images)
        assert posterior.mean.shape == (2, channels, rows, columns)
        assert network(images).shape == images.shape


@given(channels=st.integers(1, 12), seed=st.integers(0, 20))
def test_a_linear_code_begins_as_the_principal_components(channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    network = Autoencoder(
        AutoencoderConfig(
            width=4, multipliers=(1,), blocks=1, attention=(), latent_channels=channels, groups=2, fold=2, linear=True
        )
    )
    images = functional.avg_pool2d(pictures(6, seed), 3, 1, 1)
    network.start_as_components(images)
    patches = functional.pixel_unshuffle(images, 2).transpose(0, 1).flatten(1)
    lost = torch.linalg.eigvalsh(torch.cov(patches, correction=0))[: 12 - channels].sum() / 12
    with torch.no_grad():
        error = (network(images) - images).square().mean()
        deviation = (0.5 * network.encode(images).log_variance).exp()
    torch.testing.assert_close(error, lost, rtol=1e-2, atol=1e-6)
    assert deviation.max() < 0.1


def test_a_linear_code_has_no_more_channels_than_a_patch_has_values() -> None:
    with pytest.raises(ValueError, match="latent_channels=13: a patch of 2 pixels has 12 values"):
        AutoencoderConfig(
            width=4, multipliers=(1,), blocks=1, attention=(), latent_channels=13, groups=2, fold=2, linear=True
        )
