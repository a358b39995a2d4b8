"""How an encoder is measured: the clips it is given, what is read of it, and how the probe is trained.

Every number is a setting, with the paper's table 10 in the recipes of the four official benchmarks.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nextvid.config import PACKAGED_RECIPES, load_settings, parse_settings
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.data.views import ViewAugmentation, Views
from nextvid.errors import UserError
from nextvid.evaluation.encoders import FrozenEncoder
from nextvid.evaluation.probe import ProbeConfig
from nextvid.settings import Fraction, NonNegative, Positive, Strict

EVAL_RECIPES = PACKAGED_RECIPES / "eval"
USUAL_CLIP = ClipSpec(16, 8.0, 0)
"""Frames and frames a second of made-up clips, for an encoder that does not say what it was trained on."""
APART, DEEP = 2, 8
"""Several layers are so far apart in an encoder of at least ``DEEP``, as V-JEPA 2 takes them of its L and H; else adjacent."""

Baseline = Literal["chance", "middle_frame", "pixels", "optical_flow", "random_init"]
OtherReader = Literal["linear", "knn", "few_shot"]


PROTOCOL = (
    "segments",
    "views",
    "crop_share",
    "augmentation",
    "copies",
    "batch",
    "epochs",
    "lrs",
    "weight_decays",
    "held_out",
    "precision",
    "seed",
)
"""The settings that stand beside a figure, with the depth of its probe: two figures of other settings are not to be compared."""


class AugmentationConfig(Strict):
    """What changes from epoch to epoch: random crops (share of the area, aspect ratio), mirror images, and erased rectangles."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    crop_aspect: tuple[NonNegative, NonNegative] = (3 / 4, 4 / 3)
    flip: Fraction = 0.0
    """No mirror images by default: many classes of motion have a side."""
    erase: Fraction = 0.25

    @model_validator(mode="after")
    def _ranges_rise(self) -> "AugmentationConfig":
        for name, (low, high) in (("crop_scale", self.crop_scale), ("crop_aspect", self.crop_aspect)):
            if not 0 < low <= high:
                raise ValueError(f"{name} is from {low:g} to {high:g}: give two numbers above 0, the smaller one first")
        return self

    def drawn(self) -> ViewAugmentation:
        """As the readers of clips take it."""
        return ViewAugmentation(self.crop_scale, self.crop_aspect, self.flip, self.erase)


class EvalRecipe(ProbeConfig):
    """A protocol. ``frames``, ``fps`` and ``size`` left out are those that the encoder was trained with.

    A video gives ``segments`` clips, whose tokens the probe reads together; a test video gives ``views`` such sets, whose
    probabilities are averaged. ``layers``: so many layers, the last one and earlier ones, or the layers by number.
    """

    version: Literal[1] = 1
    name: str = "probe"
    frames: Positive | None = None
    fps: Annotated[float, Field(gt=0)] | None = None
    size: Positive | None = None
    segments: Positive = 1
    views: Positive = 1
    crop_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The side of a view's square as a share of the picture's shorter side."""
    layers: Positive | Annotated[tuple[int, ...], Field(min_length=1)] = 1
    features: Literal["auto", "memory", "cached", "fresh"] = "auto"
    """``fresh``: clips are read, augmented and encoded in every epoch. ``cached``: encoded once, into Arrow files; ``memory``:
    into memory. ``auto``: memory where all fit a quarter of what is free and nothing is augmented, else cached where they fit
    ``disk_share``, else fresh."""
    augmentation: AugmentationConfig | None = None
    copies: Positive = 1
    """Of cached features, how many draws of each clip's augmentation are kept; epochs take turns. Fresh ones never end."""
    cached_as: Literal["float16", "float32"] = "float16"
    disk_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the free disk that cached features may take."""
    keep_features: bool = False
    train_clips: Positive | None = None
    test_clips: Positive | None = None
    baselines: tuple[Baseline, ...] = ("chance", "middle_frame", "pixels", "optical_flow", "random_init")
    readers: tuple[OtherReader, ...] = ()
    """Other ways to read pooled features, beside the attentive probe."""
    encode_batch: Positive = 64
    """Clips that are encoded at once."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read clips; by default one fewer than there are cores for files, and none for clips that are made up."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _copies_differ(self) -> "EvalRecipe":
        if self.copies > 1 and self.augmentation is None:
            raise ValueError(f"copies={self.copies} without augmentation: all copies would be the same; leave it out")
        if self.features == "memory" and self.augmentation is not None:
            raise ValueError(
                "features=memory keeps one draw of each clip: set augmentation=null, or features=cached with copies"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """The settings of :data:`PROTOCOL`, as JSON."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in PROTOCOL}

    def views_of_train(self) -> Views:
        """What a train video gives: one view, augmented where the recipe augments."""
        return Views(self.segments, 1, self.crop_share, self.augmentation.drawn() if self.augmentation else None)

    def views_of_test(self) -> Views:
        """What a test video gives."""
        return Views(self.segments, self.views, self.crop_share)

    def spec_for(self, encoder: FrozenEncoder) -> ClipSpec:
        """The clips that ``encoder`` is given. Raises ``UserError`` where it cannot take them."""
        known = encoder.clip or USUAL_CLIP
        frames = known.frames if encoder.clip or encoder.frames is None else encoder.frames
        spec = ClipSpec(self.frames or frames, self.fps or known.fps, self.size or encoder.size)
        encoder.check(spec)
        return spec

    def layers_of(self, encoder: FrozenEncoder) -> list[int]:
        """The numbers of the layers that are read, rising. Raises ``UserError`` where there are not so many."""
        if isinstance(self.layers, tuple):
            encoder.check_layers(self.layers)
            return sorted(set(self.layers))
        apart = APART if encoder.layers >= DEEP else 1
        first = encoder.layers - 1 - apart * (self.layers - 1)
        if first < 0:
            raise UserError(
                f"layers={self.layers}, and {encoder.name} has {encoder.layers} layers (they are read {apart} apart); set "
                "layers lower, or name them: layers=[0,1]"
            )
        return list(range(first, encoder.layers, apart))

    def workers_for(self, made_up: bool) -> int:
        """Processes that read clips."""
        if self.workers is not None:
            return self.workers
        return 0 if made_up else max(1, len(os.sched_getaffinity(0)) - 1)


def load_protocol(recipe: str | None, benchmark: str, overrides: list[str]) -> EvalRecipe:
    """The recipe at a path or of a packaged name; by default the one that is called like the benchmark, or ``built-in``.

    Raises ``UserError``.
    """
    name = recipe or (benchmark.partition(":")[0] if benchmarks.official_names() and ":" in benchmark else "built-in")
    return load_settings(EvalRecipe, name, overrides, EVAL_RECIPES)


def changed(recipe: EvalRecipe, **values: object) -> EvalRecipe:
    """``recipe`` with other values, checked again; None leaves a value as it is. Raises ``UserError``."""
    given = {key: value for key, value in values.items() if value is not None}
    return parse_settings(EvalRecipe, {**recipe.model_dump(mode="json"), **given}, recipe.name) if given else recipe
