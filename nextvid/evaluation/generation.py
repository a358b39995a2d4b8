"""What the decoder draws: the next latent frame of a real clip, sampled from noise, and a roll-out that reads its own frames.

All pictures are in [0, 1] at the resolution that the target space decodes to, and so is the truth.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from nextvid.config import Recipe
from nextvid.data.transforms import normalise
from nextvid.errors import UserError
from nextvid.evaluation.features import track
from nextvid.masking import Mask, MaskConfig, TubeConfig
from nextvid.models.encoder import FrameTensor
from nextvid.objectives.flow import DEFAULT_SAMPLING, Sampling
from nextvid.objectives.nextvid import NextVid
from nextvid.randomness import key_of
from nextvid.training.release import load_objective

Clips = UInt8[Tensor, "clips frames 3 height width"]
Pictures = Float[Tensor, "clips drawn 3 drawn_rows drawn_columns"]
Samples = Float[Tensor, "samples clips drawn 3 drawn_rows drawn_columns"]
Places = Int[Tensor, "clips kept"]

SAMPLES, CHUNK = 8, 50
GREY = 128


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
    """A trained model that draws next frames, and its recipe.

    Raises ``UserError`` where its method draws none, or draws in a space that has no way back to frames.
    """
    objective, recipe = load_objective(origin)
    if not isinstance(objective, NextVid):
        raise UserError(f"{origin} was trained by {recipe.objective.name}, which draws no next frames")
    if not objective.target.decodes:
        raise UserError(
            f"{origin} draws latents of the space {objective.config.target.name}, which has no way back to frames; "
            "train with a target that decodes, such as objective.target.name=pixels"
        )
    return objective, recipe


@torch.inference_mode()
def draw_next_frames(
    objective: NextVid,
    clips: Clips,
    samples: int = SAMPLES,
    visible: Places | None = None,
    seed: int = 0,
    progress: bool = True,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Drawn:
    """Sample latent frames 1 … T-1 of each clip, each from the real frames before it.

    ``visible`` names the places of each clip that the encoder may see; by default it sees all.
    """
    objective.eval()
    todo = [(start, sample) for start in range(0, len(clips), CHUNK) for sample in range(samples)]
    drawn: list[list[Tensor]] = [[] for _ in range(samples)]
    shown = []
    for start, sample in track(todo, len(todo), "drawing next frames", progress):
        if sample == 0:
            rows = slice(start, start + CHUNK)
            frames = normalise(clips[rows].to(_device(objective)))
            z = objective.predict(frames, _seen(objective, frames, None if visible is None else visible[rows]))
            shown.append(in_space(objective, frames).cpu())
        keys = [key_of("drawing", seed, sample, start + i) for i in range(len(frames))]
        drawn[sample].append(_draw(objective, z, frames, keys, sampling).cpu())
    small = torch.cat(shown)
    tubelet = objective.target.tubelet
    return Drawn(
        samples=torch.stack([torch.cat(parts) for parts in drawn]),
        truth=small[:, tubelet:],
        copied=small[:, tubelet - 1 : -tubelet : tubelet].repeat_interleave(tubelet, dim=1),
    )


@torch.inference_mode()
def roll_out(
    objective: NextVid, clips: Clips, context: int, window: int, seed: int = 0, sampling: Sampling = DEFAULT_SAMPLING
) -> Drawn:
    """Go on from the first ``context`` raw frames to the clips' end, one sample: see :func:`go_on`.

    ``copied`` is the last real frame throughout.
    """
    ahead = (clips.shape[1] - context) // objective.target.tubelet
    samples = go_on(objective, clips[:, :context], ahead, window, 1, seed, progress=False, sampling=sampling)
    return beside_truth(objective, samples, clips, context)


@torch.inference_mode()
def go_on(
    objective: NextVid,
    begun: UInt8[Tensor, "clips begun 3 height width"],
    ahead: int,
    window: int,
    samples: int = SAMPLES,
    seed: int = 0,
    visible: Places | None = None,
    progress: bool = True,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Samples:
    """Draw ``ahead`` latent frames after clips that have ``begun``: each is read like a real one to draw the next.

    The encoder reads the last ``window`` latent frames, of them the ``visible`` places, by default all.
    """
    objective.eval()
    starts = range(0, len(begun), CHUNK)
    todo = [(start, sample, step) for start in starts for sample in range(samples) for step in range(ahead)]
    drawn: list[list[list[Tensor]]] = [[[] for _ in starts] for _ in range(samples)]
    for start, sample, step in track(todo, len(todo), "rolling out", progress):
        rows = slice(start, start + CHUNK)
        if step == 0:
            seen = normalise(begun[rows].to(_device(objective)))
        places = _seen(objective, seen, None if visible is None else visible[rows])
        keys = [_roll_out_key(seed, sample, start + i, step) for i in range(len(seen))]
        new = _next_latent_frame(objective, seen, places, window, keys, sampling)
        drawn[sample][start // CHUNK].append(new.cpu())
        seen = torch.cat([seen, _as_input(new, seen)], dim=1)
    return torch.stack([torch.cat([torch.cat(steps, dim=1) for steps in chunks]) for chunks in drawn])


def beside_truth(objective: NextVid, samples: Samples, clips: Clips, context: int) -> Drawn:
    """Roll-outs beside what ``clips`` show after ``context`` raw frames, as far as both go."""
    small = in_space(objective, normalise(clips.to(_device(objective)))).cpu()
    common = min(samples.shape[2], small.shape[1] - context)
    copied = small[:, context - 1 : context].expand(-1, common, -1, -1, -1)
    return Drawn(samples[:, :, :common], small[:, context : context + common], copied)


@torch.inference_mode()
def in_space(objective: NextVid, frames: FrameTensor) -> Pictures:
    """Frames in [-1, 1] as the target space shows them: in [0, 1], at the resolution that it decodes to."""
    return (objective.target.shown(frames) + 1) / 2


def hiding_mask(recipe: Recipe) -> Mask:
    """The first mask of the last stage that hides anything (a cool-down may hide nothing), or one that hides nothing."""
    masks = [mask for stage in reversed(recipe.stages) for mask in stage.masks or []]
    hiding = [mask for mask in masks if isinstance(mask, TubeConfig) or mask.blocks]
    return hiding[0] if hiding else MaskConfig(0)


def hide(clips: Clips, visible: Places, rows: int, columns: int) -> Clips:
    """``clips`` with every place of the ``rows`` x ``columns`` grid that is not ``visible`` grey."""
    seen = torch.zeros(len(clips), rows * columns, dtype=torch.bool).scatter_(1, visible, True)
    patch = clips.shape[-1] // columns
    mask = seen.view(-1, rows, columns).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return torch.where(mask[:, None, None], clips, torch.tensor(GREY, dtype=torch.uint8))


def _next_latent_frame(
    objective: NextVid, seen: FrameTensor, places: Places, window: int, keys: list[int], sampling: Sampling
) -> Pictures:
    tubelet = objective.target.tubelet
    read = seen[:, -window * tubelet :]
    asked = torch.cat([read, read[:, -tubelet:]], dim=1)  # the last latent frame is only a place to predict
    return _draw(objective, objective.predict(asked, places)[:, -1:], seen, keys, sampling)


def _as_input(drawn: Pictures, frames: FrameTensor) -> Float[Tensor, "batch drawn 3 rows columns"]:
    """Drawn frames as the encoder takes them: in [-1, 1], at the size of ``frames``."""
    sized = functional.interpolate(drawn.flatten(0, 1), frames.shape[-2:], mode="bilinear")
    return sized.unflatten(0, drawn.shape[:2]) * 2 - 1


def _roll_out_key(seed: int, sample: int, clip: int, step: int) -> int:
    which = (seed, clip, sample) if sample else (seed, clip)
    return key_of("step", step, key_of("roll-out", *which))


def _draw(objective: NextVid, z: Tensor, frames: FrameTensor, keys: list[int], sampling: Sampling) -> Pictures:
    _, height, width = objective.encoder.grid(frames)
    latents = objective.sample(z, (height, width), keys, sampling)
    return ((objective.target.decode(latents, height, width) + 1) / 2).clamp(0, 1)


def _device(objective: NextVid) -> torch.device:
    return next(objective.encoder.parameters()).device


def _seen(objective: NextVid, frames: FrameTensor, visible: Places | None) -> Places:
    """The ``visible`` places, by default all."""
    if visible is not None:
        return visible.to(frames.device)
    _, height, width = objective.encoder.grid(frames)
    return torch.arange(height * width, device=frames.device).expand(len(frames), -1)
