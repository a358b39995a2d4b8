"""The typed recipe: YAML with dotted overrides. Anything unknown, missing or impossible stops with a sentence."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from nextvid.errors import UserError, nearest
from nextvid.models.encoder import EncoderConfig
from nextvid.models.sizes import ENCODERS
from nextvid.objectives import CONFIGS, ObjectiveConfig
from nextvid.settings import DataConfig, InitConfig, StageConfig, Strict, TrainingConfig

PACKAGED_RECIPES = Path(__file__).parent / "recipes"
Settings = TypeVar("Settings", bound=Strict)
METHODS_OWN = ("masks", "weights", "draws", "ema")
"""The keys of a stage that a method may do without."""

if TYPE_CHECKING:
    AnyObjective = ObjectiveConfig
else:
    AnyObjective = Annotated[Union[tuple(CONFIGS.values())], Field(discriminator="name")]  # noqa: UP007 (made of a list)


class Recipe(Strict):
    """Everything that defines a run.

    ``init``: start from the weights of another run (its folder), a released file, or a released encoder by name; a mapping
    says more (:class:`nextvid.settings.InitConfig`).
    """

    version: Literal[1] = 1
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    init: InitConfig | None = None
    encoder: EncoderConfig
    objective: AnyObjective
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

    @field_validator("init", mode="before")
    @classmethod
    def _origin_alone(cls, value: Any) -> Any:
        return {"origin": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, raw: Any) -> Any:
        """The objective is nextvid where it has no name; a stage's keys that it leaves out are the objective's own."""
        if not isinstance(raw, dict) or not isinstance(raw.get("objective"), dict):
            return raw
        objective = {"name": "nextvid", **raw["objective"]}
        raw = {**raw, "objective": objective}
        config = CONFIGS.get(str(objective["name"]))
        if config is None or not isinstance(raw.get("stages"), list):
            return raw
        return {**raw, "stages": [_with_defaults(stage, config.stage_defaults) for stage in raw["stages"]]}

    @model_validator(mode="after")
    def _stages_fit_the_method(self) -> "Recipe":
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}] ('{stage.name}')"
            known = self.objective.stage_defaults
            strange = [key for key in METHODS_OWN if getattr(stage, key) is not None and key not in known]
            if strange:
                raise ValueError(
                    f"{where}: objective '{self.objective.name}' has no {' and no '.join(strange)}; leave it out"
                )
            self._check_weights(stage, where, list(known.get("weights", {})))
            self._check_micro_batch(stage, where)
            try:
                self.objective.check_stage(stage, self.encoder)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        return self

    def _check_weights(self, stage: StageConfig, where: str, terms: list[str]) -> None:
        weights = stage.weights or {}
        for name in weights:
            if name not in terms:
                raise ValueError(
                    f"{where}: weights names the loss '{name}'{nearest(name, terms)}; objective '{self.objective.name}' has "
                    f"{' and '.join(terms)}"
                )
        missing = [name for name in terms if name not in weights]
        if missing:
            raise ValueError(
                f"{where}: weights names {', '.join(weights) or 'nothing'} and leaves out {' and '.join(missing)}; write "
                f"{missing[0]}: 0 to train without it"
            )
        if weights and not any(max(ends) > 0 for ends in weights.values()):
            raise ValueError(f"{where}: all loss weights are 0, so there is nothing to learn from")

    def _check_micro_batch(self, stage: StageConfig, where: str) -> None:
        if stage.micro_batch is None or stage.micro_batch == stage.batch:
            return
        if stage.batch % stage.micro_batch:
            raise ValueError(f"{where}: batch={stage.batch} is not a multiple of micro_batch={stage.micro_batch}")
        whole = self.objective.needs_whole_batch()
        if whole:
            raise ValueError(f"{where}: {whole} needs the whole batch at once; leave out micro_batch")

    @model_validator(mode="after")
    def _clips_can_be_cut(self) -> "Recipe":
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}] ('{stage.name}')"
            if stage.frames % self.encoder.tubelet:
                raise ValueError(
                    f"{where}: frames={stage.frames} is not a multiple of the tubelet of {self.encoder.tubelet} frames; "
                    f"try frames={max(1, round(stage.frames / self.encoder.tubelet)) * self.encoder.tubelet}"
                )
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

    @property
    def longest_stage(self) -> int:
        """The number of the stage with the most steps."""
        return max(range(len(self.stages)), key=lambda number: self.stages[number].steps)

    @property
    def main_stage(self) -> StageConfig:
        """The stage with the most steps: clips of its form are what an encoder is read with and what is drawn.

        A cool-down on longer clips does not change that, as in the paper (tables 8 and 10).
        """
        return self.stages[self.longest_stage]


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file, or of a packaged name such as ``tiny``, with ``key.sub=value`` overrides on top."""
    return load_settings(Recipe, path, overrides, PACKAGED_RECIPES)


def load_settings(kind: type[Settings], path: str | Path, overrides: list[str] | None, packaged: Path) -> Settings:
    """Settings of one ``kind`` from a YAML file, or one of those in the folder ``packaged`` by name, with overrides on top.

    Raises ``UserError``.
    """
    file = _find_recipe(path, packaged)
    try:
        raw = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{file} is not a recipe: a recipe is a YAML mapping with the keys {', '.join(kind.model_fields)}"
        )
    raw = _unshared(raw)
    raw.setdefault("name", file.stem)
    for override in overrides or []:
        _apply_override(raw, override)
    return parse_settings(kind, raw, str(file))


def only_stages(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """A recipe with the named stages alone, in its own order. Raises ``UserError`` for a name that it has not."""
    known = [stage.name for stage in recipe.stages]
    for name in names:
        if name not in known:
            raise UserError(
                f"recipe '{recipe.name}' has no stage '{name}'{nearest(name, known)}; its stages are {', '.join(known)}"
            )
    return recipe.model_copy(update={"stages": [stage for stage in recipe.stages if stage.name in names]})


def recipe_of(origin: str | Path) -> Recipe:
    """The recipe of a run's folder, a file or a packaged name. Raises ``UserError`` where it is none of them."""
    stored = Path(origin) / "recipe.yaml"
    return load_recipe(stored if stored.is_file() else origin)


def parse_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """A recipe from its mapping; ``where`` names it in the error."""
    return parse_settings(Recipe, raw, where)


def parse_settings(kind: type[Settings], raw: dict[str, Any], where: str) -> Settings:
    """Settings from their mapping; ``where`` names it in the error."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_sentence(e, raw, kind) for e in error.errors())) from error


def save_recipe(recipe: Strict) -> str:
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


def _with_defaults(stage: Any, defaults: dict[str, Any]) -> Any:
    if not isinstance(stage, dict):
        return stage
    return {**stage, **{key: value for key, value in defaults.items() if stage.get(key) is None}}


def _find_recipe(path: str | Path, folder: Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    packaged = folder / f"{file.stem}.yaml"
    under = f"recipes/{packaged.relative_to(PACKAGED_RECIPES)}"
    if packaged.is_file() and str(path) in (file.stem, under):
        return packaged
    names = sorted(p.stem for p in folder.glob("*.yaml"))
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


def _sentence(error: Any, raw: dict[str, Any], kind: type[Strict]) -> str:
    path = _without_tags(error["loc"])
    where = ".".join(str(p) for p in path)
    if error["type"] == "union_tag_invalid" and path == ["objective"]:
        name = str(error["ctx"]["tag"])
        return f"there is no objective '{name}'{nearest(name, list(CONFIGS))}; objectives: {', '.join(CONFIGS)}"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(path[:-1], raw, error["loc"], kind)
        return f"unknown key '{where}'{nearest(str(path[-1]), known)}; see docs/recipes.md for all keys"
    if error["type"] in ("missing", "missing_argument"):
        return f"the key '{where}' is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}={error['input']!r}: {message[0].lower()}{message[1:]}"


def _without_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """Where an error is, without the names that pydantic gives to the members of a union."""
    path = [part for part in location if not (isinstance(part, str) and part.endswith("Config"))]
    return path[:1] + path[2:] if path[:1] == ["objective"] and path[1:2] and path[1] in CONFIGS else path


def _known_keys(path: list[Any], raw: dict[str, Any], location: tuple[int | str, ...], kind: type[Strict]) -> list[str]:
    """The keys at a path; of a union's members only that of the one that pydantic chose, which ``location`` names."""
    owner = kind
    if path[:1] == ["objective"]:
        owner, path = CONFIGS[raw["objective"].get("name", "nextvid")], path[1:]
    schema = owner.model_json_schema()
    nodes: list[Any] = [schema]
    for part in path:
        nodes = _options(nodes, schema)
        nodes = [n["items"] if isinstance(part, int) else n["properties"][part] for n in nodes if _has(n, part)]
    found = _options(nodes, schema)
    chosen = [node for node in found if node.get("title") in location]
    known = [key for node in chosen or found for key in node.get("properties", {})]
    return [*known, "size"] if owner is Recipe and path == ["encoder"] else known


def _has(node: Any, part: int | str) -> bool:
    return "items" in node if isinstance(part, int) else part in node.get("properties", {})


def _options(nodes: list[Any], schema: dict[str, Any]) -> list[Any]:
    """The nodes with references followed and unions taken apart."""
    found: list[Any] = []
    for node in nodes:
        inner = node.get("anyOf") or node.get("oneOf")
        if "$ref" in node:
            inner = [schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]]
        found += _options(inner, schema) if inner else [node]
    return found
