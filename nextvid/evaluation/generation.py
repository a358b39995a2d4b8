"""What the decoder draws: the next latent frame of a real clip, sampled from noise, and a roll-out that reads its own frames.

All pictures are in [0, 1] at the target space's resolution, where the truth is averaged down as the target space does it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from nextvid.config import Recipe
from nextvid.data.transforms import normalise
from nextvid.errors import UserError
from nextvid.evaluation.features import track
from nextvid.models.encoder import FrameTensor
from nextvid.objectives.nextvid import NextVid
from nextvid.randomness import key_of
from nextvid.training.release import load_objective

Clips = UInt8[Tensor, "clips frames 3 height width"]
Pictures = Float[Tensor, "clips drawn 3 drawn_rows drawn_columns"]
Places = Int[Tensor, "clips kept"]

SAMPLES, FLOW_STEPS, CHUNK = 8, 25, 50
SSIM_SIGMA, SSIM_SMALLEST = 1.0, 5
"""A Gaussian window of this deviation is 9 pixels wide, and mirrors up to 4 at the edges: it needs pictures of 5 or more."""


@dataclass(frozen=True)
class Drawn:
    """``samples`` drawings of every next frame, the truth, and the last frame before each, which is all that copying knows."""

    samples: Float[Tensor, "samples clips drawn 3 drawn_rows drawn_columns"]
    truth: Pictures
    copied: Pictures

    @property
    def mean(self) -> Pictures:
        """The mean over samples: the best guess under squared error."""
        return self.samples.mean(dim=0)


def load_drawing(origin: str | Path) -> tuple[NextVid, Recipe]:
    """A trained model that draws next frames, and its recipe. Raises ``UserError`` where its method does not."""
    objective, recipe = load_objective(origin)
    if not isinstance(objective, NextVid):
        raise UserError(f"{origin} was trained by {recipe.objective.name}, which draws no next frames")
    return objective, recipe


@torch.inference_mode()
def draw_next_frames(
    objective: NextVid,
    clips: Clips,
    samples: int = SAMPLES,
    visible: Places | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Drawn:
    """Sample latent frames 1 … T-1 of each clip, each from the real frames before it.

    ``visible`` names the places of each clip that the encoder may see; by default it sees all.
    """
    objective.eval()
    parts = []
    starts = range(0, len(clips), CHUNK)
    for start in track(starts, len(starts), "drawing next frames", progress):
        rows = slice(start, start + CHUNK)
        frames = normalise(clips[rows].to(objective.target.mean.device))
        seen = _all_places(objective, frames) if visible is None else visible[rows].to(frames.device)
        z = objective.predict(frames, seen)
        drawn = [
            _draw(objective, z, frames, [key_of("drawing", seed, s, start + i) for i in range(len(frames))])
            for s in range(samples)
        ]
        parts.append((torch.stack(drawn), _small(objective, frames)))
    small = torch.cat([part[1] for part in parts])
    tubelet = objective.target.tubelet
    return Drawn(
        samples=torch.cat([part[0] for part in parts], dim=1).cpu(),
        truth=small[:, tubelet:].cpu(),
        copied=small[:, tubelet - 1 : -tubelet : tubelet].repeat_interleave(tubelet, dim=1).cpu(),
    )


@torch.inference_mode()
def roll_out(objective: NextVid, clips: Clips, context: int, window: int, seed: int = 0) -> Drawn:
    """Go on from the first ``context`` raw frames: each drawn latent frame is read like a real one to draw the next.

    The encoder reads the last ``window`` latent frames. One sample; ``copied`` is the last real frame throughout.
    """
    objective.eval()
    tubelet = objective.target.tubelet
    frames = normalise(clips.to(objective.target.mean.device))
    keys = [key_of("roll-out", seed, i) for i in range(len(frames))]
    seen = frames[:, :context]
    drawn = []
    for step in range((frames.shape[1] - context) // tubelet):
        read = seen[:, -window * tubelet :]
        asked = torch.cat([read, read[:, -tubelet:]], dim=1)  # the last latent frame is only a place to predict
        z = objective.predict(asked, _all_places(objective, asked))[:, -1:]
        drawn.append(_draw(objective, z, frames, [key_of("step", step, key) for key in keys]))
        new = functional.interpolate(drawn[-1].flatten(0, 1), frames.shape[-2:], mode="bilinear")
        seen = torch.cat([seen, new.unflatten(0, (len(frames), tubelet)) * 2 - 1], dim=1)
    small = _small(objective, frames)
    copied = small[:, context - 1 : context].expand(-1, small.shape[1] - context, -1, -1, -1)
    return Drawn(torch.cat(drawn, dim=1)[None].cpu(), small[:, context:].cpu(), copied.cpu())


def figures(drawn: Drawn) -> dict[str, Any]:
    """PSNR (dB, of the squared error over all pixels) and SSIM of the samples' mean, of copying and of a single sample.

    ``sharpness`` is the gradient energy of a single sample and of the truth; ``diversity`` the deviation between samples,
    a mean over pixels, in units of the full range.
    """
    single = drawn.samples[0]
    return {
        "clips": len(drawn.truth),
        "samples": len(drawn.samples),
        "next_frame": likeness(drawn.mean, drawn.truth),
        "copy_last": likeness(drawn.copied, drawn.truth),
        "single_sample": likeness(single, drawn.truth),
        "sharpness": {"generated": gradient_energy(single), "truth": gradient_energy(drawn.truth)},
        "diversity": drawn.samples.std(dim=0).mean().item() if len(drawn.samples) > 1 else 0.0,
    }


def roll_out_figures(drawn: Drawn, tubelet: int) -> dict[str, Any]:
    """PSNR of every latent frame of a roll-out (one sample a clip), and of standing still on the last real frame."""
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


def _draw(objective: NextVid, z: Tensor, frames: FrameTensor, keys: list[int]) -> Pictures:
    _, height, width = objective.encoder.grid(frames)
    latents = objective.sample(z, (height, width), keys, FLOW_STEPS)
    return ((objective.target.decode(latents, height, width) + 1) / 2).clamp(0, 1)


def _small(objective: NextVid, frames: FrameTensor) -> Pictures:
    """Frames in [0, 1] at the target space's resolution."""
    small = functional.avg_pool2d(frames.flatten(0, 1), objective.target.config.downsample)
    return (small.unflatten(0, frames.shape[:2]) + 1) / 2


def _all_places(objective: NextVid, frames: FrameTensor) -> Places:
    _, height, width = objective.encoder.grid(frames)
    return torch.arange(height * width, device=frames.device).expand(len(frames), -1)
