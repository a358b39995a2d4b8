"""An encoder and its baselines through one session: the figures that a machine reads, and what the page shows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nextvid.data.benchmarks.official import OfficialClips
from nextvid.data.clip import LabelledClips
from nextvid.evaluation.baseline_encoders import baseline_encoders
from nextvid.evaluation.benchmark import supervised_ceiling
from nextvid.evaluation.encoders import FrozenEncoder
from nextvid.evaluation.protocol import EvalRecipe
from nextvid.evaluation.readers import Reading as OtherReading
from nextvid.evaluation.readers import few_shot, linear_probe, nearest_neighbours, pool
from nextvid.evaluation.readers.few_shot import SHOTS
from nextvid.evaluation.scores import class_map, score
from nextvid.evaluation.session import Reading, Session, kind_of, summary

FORMAT_VERSION = 1
FEW = 30
"""Fewer held-out clips choose little better than a die."""


MISSING = {
    "random_init": "no random initialisation: nobody but its author knows how this encoder is made anew",
    "optical_flow": "no optical flow: the frames are too small",
}
"""Why a baseline is not there."""


@dataclass
class Measured:
    """An encoder's figures, and those of its baselines by name."""

    figures: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)


def measure_encoder(
    session: Session, encoder: FrozenEncoder, look: Callable[[Reading], None] = lambda reading: None
) -> Measured:
    """Probe an encoder and the baselines that the recipe names.

    ``look`` sees the encoder's own reading while its tokens are there. Raises ``UserError``, and ``Stopped`` where a signal came.
    """
    session.check()
    wanted = session.recipe.baselines
    others = baseline_encoders(encoder, session.spec, wanted)
    found = Measured()

    def take(reading: Reading) -> None:
        if reading.encoder is encoder:
            found.figures = figures_of(session, reading)
            found.figures["readers"] = read_otherwise(session, reading)
            look(reading)
        else:
            found.baselines[reading.encoder.name] = summary(reading)

    session.read([encoder, *others], take)
    found.baselines = {name: found.baselines[name] for name in wanted if name in found.baselines}
    if "chance" in wanted:
        found.baselines = {"chance": chance(session), **found.baselines}
    ceiling = supervised_ceiling(session.where.name, session.where.chosen_level, session.task, session.spec)
    if ceiling:
        found.baselines["supervised"] = ceiling
    broken = session.broken()
    found.figures["baselines"] = found.baselines
    found.figures |= {
        "broken": {split: len(files) for split, files in broken.items()},
        "broken_files": {split: dict(list(files.items())[:20]) for split, files in broken.items()},
        "remarks": remarks(session, encoder, found.figures, wanted, broken),
    }
    return found


def figures_of(session: Session, reading: Reading) -> dict[str, Any]:
    """What is reported of one encoder, without its baselines."""
    result, encoder = reading.result, reading.encoder
    scores = result.scores
    return {
        "format_version": FORMAT_VERSION,
        "encoder": {
            "name": encoder.name,
            "kind": encoder.kind,
            "width": encoder.width,
            "layers": encoder.layers,
            "parameters": parameters_of(encoder),
            "digest": encoder.digest,
            "preprocessing": encoder.preprocessing,
        },
        "benchmark": session.where.name,
        "level": session.where.chosen_level,
        "task": session.task,
        **summary(reading),
        "classes": result.classes,
        "class_map": class_map(session.classes),
        "train_clips": result.train_clips,
        "held_out_clips": result.held_out_clips,
        "test_clips": result.test_clips,
        "splits": {name: split_summary(clips) for name, clips in session.clips.items()},
        "standardised": result.standardised,
        "standardise_effect": result.standardise_effect,
        "depth": result.depth,
        "heads": result.heads,
        "best_lr": result.best_lr,
        "best_weight_decay": result.best_weight_decay,
        "held_out_top1": result.held_out_top1,
        "grid": [member.model_dump() for member in result.grid],
        "clip": {"frames": session.spec.frames, "fps": session.spec.fps, "size": session.spec.size},
        "protocol": {
            "recipe": session.recipe.name,
            **session.recipe.settings(),
            "layers": reading.layers,
            "features": kind_of(reading.train),
        },
        "per_class": [member.model_dump() for member in scores.per_class],
    }


def parameters_of(encoder: FrozenEncoder) -> int:
    """Numbers in an encoder's weights; those of frozen networks are buffers."""
    return sum(tensor.numel() for tensor in encoder.state_dict(keep_vars=True).values()) or sum(
        tensor.numel() for tensor in encoder.buffers() if tensor.is_floating_point()
    )


def split_summary(clips: LabelledClips) -> dict[str, Any]:
    """How many clips there are; of an official benchmark also how many there should be."""
    if isinstance(clips, OfficialClips):
        return {**clips.split.summary(), "read": len(clips)}
    return {"read": len(clips)}


def chance(session: Session) -> dict[str, Any]:
    """What one answer for all gets: the most common class of the train split."""
    truth = session.labels["test"][session.task]
    return constant_answer(session.labels["train"][session.task], truth, session.classes)


def constant_answer(
    train: Int64[Tensor, " train"], truth: Int64[Tensor, " test"], classes: tuple[str, ...]
) -> dict[str, Any]:
    """The accuracy of always naming the most common class of ``train``."""
    common = torch.bincount(train, minlength=len(classes)).double()
    found = score(common.expand(len(truth), -1), truth, classes)
    return {"top1": found.top1, "ci95": list(found.ci95), "mean_class": found.mean_class}


def read_otherwise(session: Session, reading: Reading) -> dict[str, Any]:
    """What the recipe's other readers make of the pooled tokens; few shots only as far as every class has so many clips."""
    wanted, recipe = session.recipe.readers, session.recipe
    if not wanted or not session.world.first:
        return {}
    show = session.progress
    train, test = (pool(supply, session.task, progress=show) for supply in (reading.train, reading.test))
    found: dict[str, Any] = {}
    if "linear" in wanted:
        found["linear"] = _read_words(linear_probe(train, test, recipe, progress=show))
    if "knn" in wanted:
        found["knn"] = _read_words(nearest_neighbours(train, test, recipe, device=session.device, progress=show))
    fewest = int(torch.bincount(train.labels).clamp_min(0)[train.labels.unique()].min())
    shots = [count for count in SHOTS if count <= fewest]
    if "few_shot" in wanted and shots:
        each = few_shot(train, test, shots=shots, seed=recipe.seed, progress=show)
        found["few_shot"] = [score.model_dump(mode="json", exclude={"each"}) for score in each]
    return found


def _read_words(found: OtherReading) -> dict[str, Any]:
    """A reader's figures, without the tables that only the attentive probe's page shows."""
    scores = found.scores
    return {
        "top1": scores.top1,
        "ci95": list(scores.ci95),
        "mean_class": scores.mean_class,
        **found.model_dump(mode="json", include={"setting", "chosen", "held_out_top1", "held_out", "standardised"}),
    }


def remarks(
    session: Session,
    encoder: FrozenEncoder,
    figures: dict[str, Any],
    wanted: tuple[str, ...],
    broken: dict[str, dict[str, str]],
) -> list[str]:
    """What one should know before quoting the figure."""
    recipe: EvalRecipe = session.recipe
    found = []
    if figures["heads"] != recipe.heads:
        found.append(
            f"{figures['heads']} attention heads: the nearest to {recipe.heads} that divides {encoder.width} channels"
        )
    if figures["held_out_clips"] < FEW:
        found.append(
            f"the probe was chosen on {figures['held_out_clips']} held-out clips only, so that the choice is near chance"
        )
    frames = str(encoder.preprocessing.get("frames", ""))
    if " of " in frames:
        found.append(f"{encoder.name} is given {frames} frames")
    taught = len(set(session.labels["train"][session.task].tolist()))
    if taught < figures["classes"]:
        found.append(
            f"only {taught} of {figures['classes']} classes have train clips, so that this is another, easier task than the "
            "whole benchmark's"
        )
    for name, split in figures["splits"].items():
        if split.get("missing"):
            found.append(f"{split['missing']:,} of {split['listed']:,} listed files of the {name} split are missing")
        if "official" in split and split["read"] < split["official"]:
            found.append(
                f"{split['read']:,} of the {split['official']:,} published clips of the {name} split were used"
            )
    for name, files in broken.items():
        if files:
            found.append(f"{len(files)} files of the {name} split could not be read, such as {next(iter(files))}")
    found += [MISSING[name] for name in wanted if name in MISSING and name not in figures["baselines"]]
    effect = figures["standardise_effect"]
    if effect:
        found.append(
            f"on the held-out part {effect['with']:.1%} with standardised features and {effect['without']:.1%} without: "
            f"{'with' if figures['standardised'] else 'without'} was chosen"
        )
    return found
