"""How well an autoencoder draws what it was not trained on."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from rich.console import Console
from torch import Tensor

from nextvid.data.loader import BatchPlan, make_batch
from nextvid.data.mixture import Mixture
from nextvid.data.transforms import normalise
from nextvid.evaluation.features import track
from nextvid.models.autoencoder import Autoencoder
from nextvid.training.footage import SourceOpener
from nextvid.vae.config import VaeRecipe
from nextvid.vae.losses import Images

Pictures = UInt8[Tensor, "pictures 3 rows columns"]
KnownPictures = UInt8[Tensor, "known_pictures 3 rows columns"]
CHUNK = 128
QUICK = 256
"""Pictures that the curve's PSNR is of."""


@dataclass(frozen=True)
class Judge:
    """Pictures that are not trained on where the recipe holds any out (``held_out``), and those that statistics are of."""

    pictures: Pictures
    known: KnownPictures
    held_out: bool

    @classmethod
    def of(cls, recipe: VaeRecipe, opener: SourceOpener, mixture: Mixture) -> "Judge":
        """Held-out pictures, or else clips by the numbers that follow the last one trained on.

        Statistics are of such further clips of what is trained on.
        """
        behind = recipe.steps * recipe.batch
        known = _pictures(mixture, recipe, behind, recipe.statistics)
        if not recipe.held_out:
            return cls(_pictures(mixture, recipe, behind + recipe.statistics, recipe.judged), known, held_out=False)
        held = opener.mixture(recipe.held_out, recipe.seed, "test")
        return cls(_pictures(held, recipe, 0, recipe.judged), known, held_out=True)

    def statistics(self, device: torch.device) -> Images:
        """The pictures that the latents' statistics are measured on, in [-1, 1]."""
        return normalise(self.known[:, None].to(device))[:, 0]

    def psnr(self, network: Autoencoder) -> float:
        """Of the first few pictures, in dB."""
        from nextvid.evaluation.likeness import psnr  # noqa: PLC0415 (seconds to import)

        drawn = redraw(network, self.pictures[:QUICK], progress=False)
        return psnr(drawn[:, None], _unit(self.pictures[:QUICK])[:, None]) or float("inf")

    def figures(self, network: Autoencoder, console: Console) -> dict[str, Any]:
        """PSNR and SSIM, and the Fréchet distance between drawn and true pictures on the packaged network."""
        from nextvid.evaluation.frechet import frame_features, frechet_distance  # noqa: PLC0415
        from nextvid.evaluation.likeness import gradient_energy, psnr, ssim  # noqa: PLC0415

        drawn, truth = redraw(network, self.pictures, progress=console.is_terminal), _unit(self.pictures)
        errors = (drawn - truth).square().flatten(1).mean(dim=1).clamp(min=1e-10)
        return {
            "pictures": len(truth),
            "held_out": self.held_out,
            "psnr": psnr(drawn[:, None], truth[:, None]),
            "psnr_mean": (-10 * errors.log10()).mean().item(),
            "ssim": ssim(drawn[:, None], truth[:, None]),
            "frechet": frechet_distance(frame_features(drawn), frame_features(truth)),
            "sharpness": {"drawn": gradient_energy(drawn[:, None]), "truth": gradient_energy(truth[:, None])},
        }


@torch.inference_mode()
def redraw(network: Autoencoder, pictures: Pictures, progress: bool = True) -> Tensor:
    """Reconstructions from the posterior's mode, in [0, 1] and on the CPU."""
    device = next(network.parameters()).device
    starts = range(0, len(pictures), CHUNK)
    parts = []
    for start in track(starts, len(starts), "reconstructing", progress):
        images = normalise(pictures[start : start + CHUNK, None].to(device))[:, 0]
        parts.append(((network(images) + 1) / 2).clamp(0, 1).cpu())
    return torch.cat(parts)


def _unit(pictures: Pictures) -> Tensor:
    return pictures.float() / 255


def _pictures(mixture: Mixture, recipe: VaeRecipe, first: int, count: int) -> Pictures:
    clips = -(-count // recipe.frames)
    batch = make_batch(mixture, BatchPlan(first, clips, recipe.frames, recipe.fps, recipe.size))
    return batch.frames.flatten(0, 1)[:count]
