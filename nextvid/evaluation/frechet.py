"""How far two sets of frames are apart: the Fréchet distance of their features (Heusel et al., arXiv 1706.08500).

The features are those of EfficientNet-Lite0, which comes in a Python package, and not of an Inception: the distances compare
sets of frames with each other, and not with what papers report.
"""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nextvid.evaluation.features import track
from nextvid.targets.vision import PACKAGED, VisionNetwork, load_vision

FEATURES = f"{PACKAGED}, head, mean over the picture"
CHANNELS = 1280
STRIDE, SMALLEST_SIDE, LARGEST_SIDE = 32, 64, 224
FEWEST = 16
"""Frames in a set, below which a covariance says next to nothing."""

Frames = Float[Tensor, "frames 3 rows columns"]


@torch.inference_mode()
def frame_features(frames: Frames, batch: int = 64, progress: bool = True) -> Float[Tensor, "frames 1280"]:
    """The 1,280 channels of the network's head, a mean over the picture, of frames in [0, 1]; on the CPU.

    Frames are resized (bilinear, antialiased) so that each side is a multiple of 32 pixels from 64 to 224. Raises
    ``UserError`` where the network's packages are not installed.
    """
    network = _network().to(frames.device)
    size = (side_of(frames.shape[-2]), side_of(frames.shape[-1]))
    parts = [torch.zeros(0, CHANNELS)]
    batches = frames.split(batch) if len(frames) else ()
    for part in track(batches, len(batches), "reading features of frames", progress):
        sized = nn.functional.interpolate(part, size, mode="bilinear", antialias=True)
        parts.append(network.maps(sized * 2 - 1, [network.depth - 1])[0].mean(dim=(2, 3)).cpu())
    return torch.cat(parts)


def side_of(pixels: int) -> int:
    """The side at which the network reads a picture with a side of ``pixels``."""
    return min(max(-(-pixels // STRIDE) * STRIDE, SMALLEST_SIDE), LARGEST_SIDE)


def frechet_distance(a: Float[Tensor, "_ channels"], b: Float[Tensor, "_ channels"]) -> float:
    """``|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)`` of the Gaussians that fit two sets of features; symmetric.

    With fewer features than channels it is biased upwards, the more so the fewer there are: only distances between sets of
    the same sizes may be compared. Needs two features or more in each set.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415 (seconds to import)

    a, b = _where_they_differ(a.double(), b.double())
    metric = FrechetInceptionDistance(feature=_Given(a.shape[1])).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return max(metric.compute().item(), 0.0)


def _where_they_differ(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets turned into the space that they span, which changes no distance and is smaller where they are few."""
    both = torch.cat([a, b])
    if len(both) >= both.shape[1]:
        return a, b
    axes = torch.linalg.qr(both.T).Q
    return a @ axes, b @ axes


def frechet_figures(
    drawn: Frames, truth: Frames, copied: Frames, clip_of: list[int], others: dict[str, Frames] | None = None
) -> dict[str, Any] | None:
    """Distances of a set of frames, of copies and of ``others``, each from the true frames of the same clips.

    ``clip_of`` says which clip each frame is of. ``halves``: how far the true frames of every second clip are from those of
    the clips between them, beside which are put those drawn instead of them: what is left of the distance between frames
    that are as real as they can be. None with fewer than ``FEWEST`` frames, or where there are no two such halves.
    """
    if len(truth) < FEWEST:
        return None
    true, made = frame_features(truth), frame_features(drawn)
    found: dict[str, Any] = {
        "features": FEATURES,
        "channels": CHANNELS,
        "frames": len(truth),
        "biased": len(truth) <= CHANNELS,
        "single_sample": frechet_distance(made, true),
        "copy_last": frechet_distance(frame_features(copied), true),
        "halves": _halves(made, true, torch.tensor(clip_of)),
    }
    return found | {name: frechet_distance(frame_features(frames), true) for name, frames in (others or {}).items()}


def _halves(made: Tensor, true: Tensor, clip_of: Tensor) -> dict[str, Any] | None:
    second = clip_of % 2 == 1
    if min(int(second.sum()), int((~second).sum())) < FEWEST:
        return None
    return {
        "frames": [int((~second).sum()), int(second.sum())],
        "truth": frechet_distance(true[second], true[~second]),
        "single_sample": frechet_distance(made[second], true[~second]),
    }


class _Given(nn.Identity):
    """Features that are known already, as the network that torchmetrics asks for."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


@functools.cache
def _network() -> VisionNetwork:
    return load_vision(PACKAGED)
