"""The Fréchet distance, against Gaussians whose distance is known, and of frames."""

import numpy as np
import pytest
import torch
from builders import seeded

from nextvid.evaluation.frechet import FEWEST, frame_features, frechet_distance, frechet_figures, side_of


def exactly(mean: torch.Tensor, covariance: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """``count`` features whose sample mean and covariance are the given ones, not merely near them."""
    noise = torch.randn(count, len(mean), generator=seeded(seed), dtype=torch.float64)
    noise = noise - noise.mean(dim=0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / (count - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def covariance(channels: int, seed: int) -> torch.Tensor:
    root = torch.randn(channels, channels, generator=seeded(seed), dtype=torch.float64)
    return root @ root.T + torch.eye(channels)


def of_gaussians(mean_a: torch.Tensor, a: torch.Tensor, mean_b: torch.Tensor, b: torch.Tensor) -> float:
    """``tr (A B)^½`` by the root of a symmetric matrix: ``tr (A^½ B A^½)^½``."""
    values, vectors = np.linalg.eigh(a.numpy())
    root = vectors * np.sqrt(values) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.numpy() @ root)).sum()
    return float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * cross)


@pytest.mark.parametrize("channels", [1, 3, 24])
def test_the_distance_of_gaussians(channels: int) -> None:
    mean_a, mean_b = (torch.randn(channels, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    a, b = covariance(channels, 3), covariance(channels, 4)
    features = exactly(mean_a, a, 60, 5), exactly(mean_b, b, 80, 6)
    assert frechet_distance(*features) == pytest.approx(of_gaussians(mean_a, a, mean_b, b), rel=1e-9)
    assert frechet_distance(*reversed(features)) == pytest.approx(frechet_distance(*features), rel=1e-9)


def test_with_fewer_features_than_channels_it_is_that_of_their_own_moments() -> None:
    a, b = (torch.randn(7, 40, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    # the roots of the covariances are the features themselves, so the last term is a sum of singular values
    roots = [(part - part.mean(dim=0)) / 6**0.5 for part in (a, b)]
    wanted = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + sum(root.square().sum() for root in roots)
    wanted = wanted - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    assert frechet_distance(a, b) == pytest.approx(wanted.item(), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)


def test_a_shift_costs_its_square() -> None:
    features = torch.randn(50, 8, generator=seeded(0))
    assert frechet_distance(features, features + 2.0) == pytest.approx(32, rel=1e-3)


@pytest.mark.parametrize(("pixels", "side"), [(8, 64), (32, 64), (65, 96), (224, 224), (512, 224)])
def test_frames_are_read_at_a_size_that_suits_the_network(pixels: int, side: int) -> None:
    assert side_of(pixels) == side


def frames(count: int, seed: int) -> torch.Tensor:
    """Soft blobs of colour."""
    coarse = torch.rand(count, 3, 5, 5, generator=seeded(seed))
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)


def test_frames_farther_from_the_truth_have_features_farther_from_its() -> None:
    truth = frames(40, 0)
    noise = torch.randn(truth.shape, generator=seeded(9))
    distances = [
        frechet_distance(frame_features((truth + strength * noise).clamp(0, 1)), frame_features(truth))
        for strength in (0.0, 0.05, 0.2)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.01 * distances[1]


def test_features_do_not_depend_on_the_frames_beside_them() -> None:
    found = frame_features(frames(5, 0))
    assert found.shape == (5, 1280)
    torch.testing.assert_close(frame_features(frames(5, 0), batch=2), found, rtol=1e-3, atol=1e-3)


def test_figures_say_how_few_frames_they_are_of_and_put_real_frames_beside_them() -> None:
    truth = frames(2 * FEWEST, 0)
    clip_of = [number // 4 for number in range(len(truth))]
    found = frechet_figures(truth.flip(-1), truth, truth, clip_of, {"against": 1 - truth})
    assert found is not None
    assert found["frames"] == 2 * FEWEST
    assert found["biased"]
    assert found["copy_last"] == pytest.approx(0, abs=0.01)
    assert found["copy_last"] < found["single_sample"] < found["against"]
    assert found["halves"]["frames"] == [FEWEST, FEWEST]
    assert found["halves"]["truth"] > 0
    assert frechet_figures(truth[:8], truth[:8], truth[:8], clip_of[:8]) is None
    one_clip = frechet_figures(truth, truth, truth, [0] * len(truth))
    assert one_clip is not None
    assert one_clip["halves"] is None
