"""Figures of drawn pictures in [0, 1] beside the truth: how like it they are, how sharp, and how much they differ."""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nextvid.evaluation.generation import Drawn

Pictures = Float[Tensor, "clips drawn 3 drawn_rows drawn_columns"]

SSIM_SIGMA, SSIM_SMALLEST = 1.0, 5
"""A Gaussian window of this deviation is 9 pixels wide, and mirrors up to 4 at the edges: it needs pictures of 5 or more."""


def figures(drawn: Drawn) -> dict[str, Any]:
    """PSNR (dB, of the squared error over all pixels) and SSIM of the samples' mean, of copying and of a single sample.

    ``sharpness`` is the gradient energy of a single sample and of the truth; ``diversity`` as :func:`diversity` says.
    """
    single = drawn.samples[0]
    return {
        "clips": len(drawn.truth),
        "samples": len(drawn.samples),
        "next_frame": likeness(drawn.mean, drawn.truth),
        "copy_last": likeness(drawn.copied, drawn.truth),
        "single_sample": likeness(single, drawn.truth),
        "sharpness": {"generated": gradient_energy(single), "truth": gradient_energy(drawn.truth)},
        "diversity": diversity(drawn.samples),
    }


def roll_out_figures(drawn: Drawn, tubelet: int) -> dict[str, Any]:
    """PSNR of every latent frame of a roll-out (of the samples' mean), and of standing still on the last real frame."""
    latent = range(0, drawn.truth.shape[1], tubelet)
    return {
        "clips": len(drawn.truth),
        "samples": len(drawn.samples),
        "psnr": [psnr(drawn.mean[:, i : i + tubelet], drawn.truth[:, i : i + tubelet]) for i in latent],
        "copy_psnr": [psnr(drawn.copied[:, i : i + tubelet], drawn.truth[:, i : i + tubelet]) for i in latent],
    }


def likeness(drawn: Pictures, truth: Pictures) -> dict[str, float | None]:
    """PSNR and SSIM; None where there is no such number."""
    return {"psnr": psnr(drawn, truth), "ssim": ssim(drawn, truth)}


def psnr(drawn: Pictures, truth: Pictures) -> float | None:
    """Peak signal to noise in dB, from the mean squared error over all pictures, of values in [0, 1].

    None where nothing differs, as where the last frame of a still clip is copied.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio  # noqa: PLC0415 (seconds to import)

    found = peak_signal_noise_ratio(drawn, truth, data_range=1.0).item()
    return found if math.isfinite(found) else None


def ssim(drawn: Pictures, truth: Pictures) -> float | None:
    """Structural similarity (Wang et al. 2004), a mean over pictures, with a Gaussian window of deviation 1.

    None for pictures smaller than the window allows.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415 (seconds to import)

    if min(truth.shape[-2:]) < SSIM_SMALLEST:
        return None
    found = structural_similarity_index_measure(
        drawn.flatten(0, 1), truth.flatten(0, 1), sigma=SSIM_SIGMA, data_range=1.0
    )
    assert isinstance(found, Tensor)
    return found.item()


def gradient_energy(pictures: Pictures) -> float:
    """Mean squared difference between neighbouring pixels, both ways: low where pictures are blurred."""
    across = pictures.diff(dim=-1).square().mean()
    down = pictures.diff(dim=-2).square().mean()
    return (across + down).item()


def diversity(samples: Float[Tensor, "samples clips drawn 3 drawn_rows drawn_columns"]) -> float:
    """The deviation between samples of the same frame, a mean over pixels, in units of the full range; 0 of one sample."""
    return samples.std(dim=0).mean().item() if len(samples) > 1 else 0.0
