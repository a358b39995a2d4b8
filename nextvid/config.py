"""The typed recipe: YAML with dotted overrides. Anything unknown, missing or impossible stops with a sentence."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nextvid.errors import UserError, nearest
from nextvid.masking import MaskConfig
from nextvid.models.decoder import DecoderConfig
from nextvid.models.encoder import EncoderConfig
from nextvid.models.predictor import PredictorConfig
from nextvid.models.sizes import ENCODERS
from nextvid.targets.pixels import PixelsConfig

PACKAGED_RECIPES = Path(__file__).parent / "recipes"

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen settings object that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(Strict):
    """Footage: a ``path`` (folder, file or glob), or a ``builtin`` by name; drawn in proportion to ``weight``."""

    path: str | None = None
    builtin: str | None = None
    level: str | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _one_of_both(self) -> "SourceConfig":
        if (self.path is None) == (self.builtin is None):
            raise ValueError("a source needs either a path (a folder, file or glob) or the name of a builtin, not both")
        if self.level is not None and self.builtin is None:
            raise ValueError("only a builtin source has levels")
        return self


class AugmentationConfig(Strict):
    """Random crops: their share of the picture's area, their aspect ratio, and how often they are mirrored."""

    crop_scale: tuple[Fraction, Fraction] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    flip: Fraction = 0.5


class DataConfig(Strict):
    """Where clips come from and how they are read."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    augmentation: AugmentationConfig = AugmentationConfig()
    decoder: Literal["auto", "pyav", "torchcodec"] = "pyav"
    workers: Annotated[int, Field(ge=0)] = 1


class NextVidConfig(Strict):
    """Masked next-frame prediction (METHOD, "The forward pass"); every switch is an ablation.

    ``tau_logit``: mean and deviation of a normal whose sigmoid is tau; without it tau is uniform on [0, 1).
    """

    name: Literal["nextvid"] = "nextvid"
    predictor: PredictorConfig = PredictorConfig()
    decoder: DecoderConfig = DecoderConfig()
    target: PixelsConfig = PixelsConfig()
    prediction: Literal["velocity", "clean"] = "velocity"
    generation: Literal["flow", "regression"] = "flow"
    tau_logit: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    reference: Literal["ema", "online"] = "ema"
    reference_norm: Literal["layer", "none", "batch"] = "layer"


class StageConfig(Strict):
    """One part of the schedule; learning rates go in a straight line from start to end."""

    name: str
    steps: Positive
    batch: Positive
    frames: Positive
    fps: Annotated[float, Field(gt=0)]
    size: Positive
    lr: dict[str, tuple[NonNegative, NonNegative]]
    masks: Annotated[list[MaskConfig], Field(min_length=1)] = [MaskConfig(8, 0.15), MaskConfig(2, 0.7)]
    weights: dict[str, tuple[NonNegative, NonNegative]] = {"flow": (0.5, 0.5), "alignment": (1.0, 1.0)}
    draws: Positive = 1
    ema: Fraction = 0.99925
    sources: list[SourceConfig] | None = None

    @field_validator("lr", "weights", mode="before")
    @classmethod
    def _constant_or_line(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: (v, v) if isinstance(v, int | float) else v for key, v in value.items()}


class TrainingConfig(Strict):
    """The optimiser, the checkpoints and what is logged."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegative = 0.04
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2
    log_every: Positive = 10


class Recipe(Strict):
    """Everything that defines a run.

    ``init``: start from the weights of another run (its folder), a released file, or a released encoder by name.
    """

    version: Literal[1] = 1
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    init: str | None = None
    encoder: EncoderConfig
    objective: NextVidConfig
    data: DataConfig
    stages: Annotated[list[StageConfig], Field(min_length=1)]
    training: TrainingConfig = TrainingConfig()

    @field_validator("encoder", mode="before")
    @classmethod
    def _size_by_name(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "size" not in value:
            return value
        size, rest = value["size"], {k: v for k, v in value.items() if k != "size"}
        if size not in ENCODERS:
            raise ValueError(
                f"there is no encoder of size '{size}'{nearest(str(size), ENCODERS)}; sizes: {', '.join(ENCODERS)}"
            )
        return {**asdict(ENCODERS[size]), **rest}

    @model_validator(mode="after")
    def _clips_can_be_cut(self) -> "Recipe":
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}] ('{stage.name}')"
            if stage.frames % self.encoder.tubelet:
                raise ValueError(
                    f"{where}: frames={stage.frames} is not a multiple of the tubelet of {self.encoder.tubelet} frames; "
                    f"try frames={max(1, round(stage.frames / self.encoder.tubelet)) * self.encoder.tubelet}"
                )
            if stage.frames < 2 * self.encoder.tubelet:
                raise ValueError(
                    f"{where}: frames={stage.frames} is one latent frame; predicting the next one needs two or more"
                )
            if not any(max(ends) > 0 for ends in stage.weights.values()):
                raise ValueError(f"{where}: all loss weights are 0, so there is nothing to learn from")
            if self.objective.reference_norm == "batch" and stage.batch < 2:
                raise ValueError(f"{where}: objective.reference_norm=batch needs a batch of two or more")
            if stage.size % self.encoder.patch:
                raise ValueError(
                    f"{where}: size={stage.size} pixels is not a multiple of the patch of {self.encoder.patch} pixels; "
                    f"try size={max(1, round(stage.size / self.encoder.patch)) * self.encoder.patch}"
                )
        return self

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file, or of a packaged name such as ``tiny``, with ``key.sub=value`` overrides on top."""
    file = _find_recipe(path)
    try:
        raw = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{file} is not a recipe: a recipe is a YAML mapping with the keys {', '.join(Recipe.model_fields)}"
        )
    raw = _unshared(raw)
    raw.setdefault("name", file.stem)
    for override in overrides or []:
        _apply_override(raw, override)
    return parse_recipe(raw, str(file))


def parse_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """A recipe from its mapping; ``where`` names it in the error."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_sentence(e, raw) for e in error.errors())) from error


def save_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted names and both values of everything in which two nested settings differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found: list[str] = []
        for key in [*a, *(k for k in b if k not in a)]:
            found += differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a} → {b}"]


def _find_recipe(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    packaged = PACKAGED_RECIPES / f"{file.stem}.yaml"
    if packaged.is_file() and str(path) in (file.stem, f"recipes/{file.stem}.yaml"):
        return packaged
    names = sorted(p.stem for p in PACKAGED_RECIPES.glob("*.yaml"))
    raise UserError(f"there is no recipe '{path}'{nearest(file.stem, names)}; packaged recipes: {', '.join(names)}")


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"'{override}' is not an override; write key=value, for example training.log_every=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value in '{override}' is not valid YAML: {error}") from error
    _set(raw, dotted.split("."), value, dotted)


def _unshared(node: Any) -> Any:
    """A copy in which a YAML alias is a mapping of its own: an override of one stage must not change another."""
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(value) for value in node] if isinstance(node, list) else node


def _set(node: Any, path: list[str], value: Any, dotted: str) -> None:
    """Give the setting at ``path`` its value; ``*`` stands for every item of a list."""
    part, *rest = path
    if part == "*" and isinstance(node, list):
        for number in range(len(node)):
            _set(node, [str(number), *rest], value, dotted)
    elif rest:
        _set(_child(node, part, dotted), rest, value, dotted)
    elif isinstance(node, list):
        node[_index(node, part, dotted)] = value
    else:
        node[part] = value


def _child(node: Any, part: str, dotted: str) -> Any:
    child = node[_index(node, part, dotted)] if isinstance(node, list) else node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise UserError(f"the override '{dotted}' goes through '{part}', which is a single value")
    return child


def _index(node: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"the override '{dotted}': '{part}' is not a number from 0 to {len(node) - 1} of that list")
    return int(part)


def _sentence(error: Any, raw: dict[str, Any]) -> str:
    path = [p for p in error["loc"] if not (isinstance(p, str) and p.endswith("Config"))]
    where = ".".join(str(p) for p in path)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return (
            f"unknown key '{where}'{nearest(str(path[-1]), _known_keys(path[:-1]))}; see docs/recipes.md for all keys"
        )
    if error["type"] in ("missing", "missing_argument"):
        return f"the key '{where}' is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}={error['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(path: list[Any]) -> list[str]:
    schema = Recipe.model_json_schema()
    node: Any = schema
    for part in path:
        node = _resolve(node, schema)
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    known = list(_resolve(node, schema).get("properties", {}))
    return [*known, "size"] if path == ["encoder"] else known


def _resolve(node: Any, schema: dict[str, Any]) -> Any:
    options = [o for o in node.get("anyOf", []) if o.get("type") != "null"]
    node = options[0] if options else node
    if "$ref" in node:
        return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node
