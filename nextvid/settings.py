"""The typed settings that a recipe is made of."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from nextvid.masking import MaskConfig, TubeConfig

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen settings object that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(Strict):
    """Footage: a ``path`` (folder, file, glob, list, tar, URL, manifest or prepared shards), or a ``builtin`` by name.

    Drawn in proportion to ``weight``; with ``clips_per_video`` *n* a pass over the footage takes *n* clips of each video.
    """

    path: str | None = None
    builtin: str | None = None
    level: str | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    clips_per_video: Positive = 1

    @model_validator(mode="after")
    def _one_of_both(self) -> "SourceConfig":
        if (self.path is None) == (self.builtin is None):
            raise ValueError("a source needs either a path (a folder, file or glob) or the name of a builtin, not both")
        if self.level is not None and self.builtin is None:
            raise ValueError("only a builtin source has levels")
        if self.clips_per_video != 1 and self.path is None:
            raise ValueError("clips_per_video is for footage in files: a builtin source has none")
        return self


class AugmentationConfig(Strict):
    """What is cut out of a clip's pictures: the largest square in the middle (``center``), the whole picture (``none``), or
    ``random`` crops; of these their share of the picture's area, their aspect ratio, and how often they are mirrored.
    """

    crop: Literal["random", "center", "none"] = "random"

    crop_scale: tuple[Fraction, Fraction] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    flip: Fraction = 0.5

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "AugmentationConfig":
        for name in ("crop_scale", "crop_aspect", "flip"):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if self.crop != "random" and value != default and not (name == "flip" and value == 0):
                raise ValueError(f"{name} is for crop=random, and with crop={self.crop} nothing is drawn: leave it out")
        return self


class DataConfig(Strict):
    """Where clips come from and how they are read.

    ``latents``: take the target's latents from beside the prepared shards (``nextvid prepare --latents``), and do not encode.
    """

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    augmentation: AugmentationConfig = AugmentationConfig()
    decoder: Literal["auto", "pyav", "torchcodec"] = "pyav"
    workers: Annotated[int, Field(ge=0)] = 1
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a clip may take before its worker is replaced and its file counts as broken."""
    latents: bool = False

    @model_validator(mode="after")
    def _latents_are_of_what_is_seen(self) -> "DataConfig":
        if self.latents and self.augmentation.crop == "random":
            raise ValueError(
                "latents=true, and every clip is cropped and mirrored at random (augmentation.crop=random): the latents that "
                "are stored are of other pictures; set data.augmentation.crop to center or none, as the latents were "
                "prepared, or leave out latents"
            )
        return self


def _kind_of_mask(value: Any) -> str:
    tube = "ratio" in value if isinstance(value, dict) else isinstance(value, TubeConfig)
    return "TubeConfig" if tube else "MaskConfig"


AnyMask = Annotated[
    Annotated[MaskConfig, Tag("MaskConfig")] | Annotated[TubeConfig, Tag("TubeConfig")], Discriminator(_kind_of_mask)
]


class StageConfig(Strict):
    """One part of the schedule; learning rates and loss weights go in a straight line from start to end.

    ``batch`` counts the clips of all processes together; each computes ``micro_batch`` of its share at once (all, by default)
    and adds up the gradients. ``masks``, ``weights``, ``draws`` and ``ema`` are there for methods that use them; what a recipe
    leaves out comes from its objective (:attr:`nextvid.objectives.protocol.ObjectiveConfig.stage_defaults`).
    """

    name: str
    steps: Positive
    batch: Positive
    frames: Positive
    fps: Annotated[float, Field(gt=0)]
    size: Positive
    lr: dict[str, tuple[NonNegative, NonNegative]]
    masks: Annotated[list[AnyMask], Field(min_length=1)] | None = None
    weights: dict[str, tuple[NonNegative, NonNegative]] | None = None
    draws: Positive | None = None
    ema: Fraction | None = None
    sources: list[SourceConfig] | None = None
    micro_batch: Positive | None = None

    @field_validator("lr", "weights", mode="before")
    @classmethod
    def _constant_or_line(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: (v, v) if isinstance(v, int | float) else v for key, v in value.items()}


class ProbeConfig(Strict):
    """A small probe every so many steps, so that the checkpoint that reads best is kept.

    It is judged on clips that are held out of the benchmark's *train* split: the test split is not looked at.
    """

    benchmark: str
    every: Positive
    level: str | None = None
    task: str | None = None
    clips: Annotated[int, Field(ge=20)] = 400


class InitConfig(Strict):
    """Weights to start from: ``origin`` is a run's folder, a released file or a released name.

    ``step``: that checkpoint of a run, instead of its last. ``optimiser``: take AdamW's moments along (from a run only).
    ``strict=False``: what is missing keeps its random start and what is unknown or has another shape is left out, all named.
    """

    origin: str
    strict: bool = True
    optimiser: bool = False
    step: Annotated[int, Field(ge=0)] | None = None


class TrainingConfig(Strict):
    """The optimiser, how the work is spread, the checkpoints, what happens to bad steps, and what is logged.

    ``parallel``: what ``torchrun`` started several processes for: ``ddp`` (every process holds everything) or ``fsdp`` (weights,
    gradients, moments and the moving average are sharded). ``timeout``: seconds that a process waits for the others.
    ``bad_steps``: so many steps in a row whose loss or gradient is not finite, each of which is skipped, send the run back to
    its last good checkpoint with rates times ``lr_after_rollback``; after ``rollbacks`` of them it stops.
    """

    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegative = 0.04
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout: Annotated[float, Field(gt=0)] = 1800.0
    activation_checkpointing: bool = False
    compile: bool = False
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2
    keep_every: Annotated[int, Field(ge=0)] = 0
    probe: ProbeConfig | None = None
    bad_steps: Positive = 5
    lr_after_rollback: Annotated[float, Field(gt=0, le=1)] = 0.5
    rollbacks: Annotated[int, Field(ge=0)] = 3
    log_every: Positive = 10
    wandb: str | None = None

    @model_validator(mode="after")
    def _what_is_kept_is_saved(self) -> "TrainingConfig":
        for name, every in (("keep_every", self.keep_every), ("probe.every", self.probe.every if self.probe else 0)):
            if every % self.checkpoint_every:
                raise ValueError(
                    f"{name}={every} is not a multiple of checkpoint_every={self.checkpoint_every}, and only what is saved "
                    "can be kept"
                )
        if self.probe and self.probe.every % self.log_every:
            raise ValueError(f"probe.every={self.probe.every} is not a multiple of log_every={self.log_every}")
        return self
