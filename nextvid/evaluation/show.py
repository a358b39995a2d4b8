"""What one would rather look at than read: what a run's parts see, draw and tell apart, for its page."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from rich.console import Console
from torch import Tensor

from nextvid.config import Recipe
from nextvid.data.footage import FootageSource
from nextvid.data.loader import BatchPlan, make_batch
from nextvid.data.mixture import Mixture
from nextvid.data.transforms import normalise, to_uint8
from nextvid.errors import UserError
from nextvid.evaluation.generation import draw_next_frames, hide, hiding_mask, in_space, roll_out
from nextvid.evaluation.likeness import figures, roll_out_figures
from nextvid.inference.released import default_weights
from nextvid.masking import draw_batch
from nextvid.models.encoder import tokens_of
from nextvid.objectives import Objective
from nextvid.objectives.nextvid import NextVid
from nextvid.objectives.videomae import VideoMae
from nextvid.randomness import key_of
from nextvid.report import Drawings, FeatureMaps, Pictures, RollOut, write_report
from nextvid.training.device import device_of
from nextvid.training.footage import build_mixtures
from nextvid.training.release import load_objective
from nextvid.training.run import Run

Clips = UInt8[Tensor, "clips frames 3 height width"]
LongClips = UInt8[Tensor, "rolled long 3 height width"]
Places = Int[Tensor, "clips kept"]
Images = UInt8[np.ndarray, "clips shown image_rows image_columns 3"]

SHOWN, MEASURED, ROLLED = 6, 24, 12
CLIPPED = 0.02
"""The share of feature values at either end that become black or full colour."""


def report_run(out: Path, console: Console) -> Path:
    """Draw from a run's last checkpoint on further clips of its own footage; writes figures and ``report.html``.

    A page without drawings, and why, is all that a finished run loses where its footage has gone or memory is short.
    """
    console.print("drawing for the page …")
    try:
        found, pictures = _draw_run(out)
    except (UserError, MemoryError, torch.OutOfMemoryError) as error:
        console.print(f"the page has no drawings: {error}", style="yellow", highlight=False, markup=False)
        return write_report(out)
    if found is not None:
        Run(out).update_metrics({"generation": {"footage": "Further clips of the run's own sources", **found}})
    return write_report(out, pictures)


def _draw_run(out: Path) -> tuple[dict[str, Any] | None, Pictures]:
    objective, recipe = load_objective(out)
    objective.to(device_of(recipe.training.device))
    mixture = build_mixtures(recipe, out, Console(quiet=True))[-1]
    clips = further_clips(recipe, mixture, MEASURED)
    return show(objective, recipe, clips, _clips_to_roll(recipe, mixture))


def further_clips(recipe: Recipe, mixture: Mixture, clips: int, times: int = 1) -> Clips:
    """Clips of the main stage's form, ``times`` as long, by the numbers that follow the last one trained on.

    They are new draws of file, time and crop, from the files that were trained on.
    """
    main = recipe.main_stage
    first = sum(stage.steps * stage.batch for stage in recipe.stages)
    return make_batch(mixture, BatchPlan(first, clips, times * main.frames, main.fps, main.size)).frames


def _clips_to_roll(recipe: Recipe, mixture: Mixture) -> Clips:
    """Clips of twice the trained length where the footage surely has them, else of the trained length.

    A folder may hold short files, which are played back and forth, and that is no truth to compare a roll-out with.
    """
    if not any(isinstance(source, FootageSource) for source in mixture.sources):
        with contextlib.suppress(UserError):
            return further_clips(recipe, mixture, ROLLED, times=2)
    return further_clips(recipe, mixture, ROLLED)


def show(
    objective: Objective, recipe: Recipe, clips: Clips, longer: LongClips
) -> tuple[dict[str, Any] | None, Pictures]:
    """Pictures of the first few ``clips`` and, of a method that draws next frames, figures over all of them.

    NExT-Vid, in a space that has a way back to frames: next frames of ``clips``, and roll-outs of the ``longer`` ones.
    VideoMAE: the hidden patches filled in. Any method: feature maps.
    """
    features = _features(objective, clips[:SHOWN])
    if isinstance(objective, NextVid) and objective.target.decodes:
        return _show_next_frames(objective, recipe, clips, longer, features)
    if isinstance(objective, VideoMae):
        return None, Pictures(features, _fill_in(objective, recipe, clips[:SHOWN]))
    return None, Pictures(features)


def _show_next_frames(
    objective: NextVid, recipe: Recipe, clips: Clips, longer: LongClips, features: FeatureMaps
) -> tuple[dict[str, Any], Pictures]:
    tubelet = recipe.encoder.tubelet
    drawn = draw_next_frames(objective, clips)
    latent = recipe.main_stage.frames // tubelet
    context = max(1, longer.shape[1] // tubelet // 2) * tubelet
    rolled = roll_out(objective, longer, context, window=max(1, latent - 1))
    found = {**figures(drawn), "rollout": roll_out_figures(rolled, tubelet)}
    before = _small_frames(objective, longer[:SHOWN, :context])
    pictures = Pictures(
        features,
        _masked_next_frames(objective, recipe, clips[:SHOWN]),
        RollOut(
            truth=np.concatenate([before, _bytes(rolled.truth[:SHOWN])], axis=1),
            drawn=np.concatenate([before, _bytes(rolled.samples[0, :SHOWN])], axis=1),
            context=context,
        ),
    )
    return found, pictures


def feature_maps(
    tokens: Float[Tensor, "clips time rows columns width"],
) -> UInt8[np.ndarray, "clips time rows columns 3"]:
    """The first three principal components of the tokens over all clips, each from its 2nd to its 98th percentile, as RGB."""
    flat = tokens.flatten(0, 3).float()
    flat = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    parts = flat @ directions[:3].T
    low, high = torch.quantile(parts, CLIPPED, dim=0), torch.quantile(parts, 1 - CLIPPED, dim=0)
    scaled = ((parts - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return (scaled * 255).round().to(torch.uint8).unflatten(0, tokens.shape[:4]).numpy()


@torch.inference_mode()
def _features(objective: Objective, clips: Clips) -> FeatureMaps:
    exported = objective.exports()
    encoder = exported[default_weights(list(exported))]
    frames = normalise(clips.to(next(encoder.parameters()).device))
    _, rows, columns = encoder.grid(frames)
    tokens = tokens_of(encoder(frames)).cpu()
    return FeatureMaps(_images(clips), feature_maps(tokens.unflatten(2, (rows, columns))))


def _masked_next_frames(objective: NextVid, recipe: Recipe, clips: Clips) -> Drawings:
    visible, (rows, columns) = _shown_places(objective, recipe, clips)
    drawn = draw_next_frames(objective, clips, samples=1, visible=visible, progress=False)
    return Drawings(
        masked_input=_images(hide(clips, visible, rows, columns)),
        drawn=_bytes(drawn.samples[0]),
        truth=_bytes(drawn.truth),
        meaning="the next frames drawn from it (each from the frames before it, one sample)",
    )


@torch.inference_mode()
def _fill_in(objective: VideoMae, recipe: Recipe, clips: Clips) -> Drawings:
    visible, (rows, columns) = _shown_places(objective, recipe, clips)
    device = next(objective.parameters()).device
    filled = objective.reconstruct(normalise(clips.to(device)), visible.to(device)).cpu()
    return Drawings(
        masked_input=_images(hide(clips, visible, rows, columns)),
        drawn=_images(to_uint8(filled)),
        truth=_images(clips),
        meaning="what it fills in (each hidden patch with its true mean and contrast, which the model does not predict)",
    )


def _shown_places(objective: Objective, recipe: Recipe, clips: Clips) -> tuple[Places, tuple[int, int]]:
    """The places of each clip that a picture shows as seen, and the grid's rows and columns."""
    _, rows, columns = objective.encoder.grid(normalise(clips))
    keys = [key_of("shown", i) for i in range(len(clips))]
    return draw_batch(hiding_mask(recipe), keys, "mask 0", rows, columns), (rows, columns)


def _small_frames(objective: NextVid, clips: Clips) -> Images:
    frames = normalise(clips.to(next(objective.encoder.parameters()).device))
    return _bytes(in_space(objective, frames).cpu())


def _bytes(pictures: Tensor) -> Images:
    return _images((pictures * 255).round().to(torch.uint8))


def _images(clips: Tensor) -> Images:
    return clips.permute(0, 1, 3, 4, 2).contiguous().numpy()
