"""Recipes: everything known is typed, everything unknown or impossible stops with a sentence that helps."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import recipe_mapping, small_recipe
from hypothesis import given
from hypothesis import strategies as st

from nextvid.config import PACKAGED_RECIPES, Recipe, differences, load_recipe, only_stages, parse_recipe, save_recipe
from nextvid.errors import UserError
from nextvid.masking import MaskConfig
from nextvid.models.sizes import ENCODERS
from nextvid.settings import InitConfig

Keys = list[str | int]


def full_mapping() -> dict[str, Any]:
    """Every level of nesting is there."""
    raw = recipe_mapping()
    raw["objective"]["target"] = {}
    raw["data"]["augmentation"] = {}
    raw["training"] = {}
    raw["stages"][0] |= {"masks": [{"blocks": 1}], "sources": [{"builtin": "film"}]}
    return raw


def changed(path: Keys, value: object) -> dict[str, Any]:
    raw = full_mapping()
    node: Any = raw
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return raw


def sentence_of(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(raw, "my.yaml")
    return str(caught.value)


def write(folder: Path, raw: object, name: str = "mine.yaml") -> Path:
    file = folder / name
    file.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return file


# Unknown, missing and impossible.


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (["seeed"], "seed"),
        (["encoder", "widht"], "width"),
        (["encoder", "siz"], "size"),
        (["objective", "predicton"], "prediction"),
        (["objective", "predictor", "dpth"], "depth"),
        (["objective", "decoder", "head"], "heads"),
        (["objective", "target", "downsampel"], "downsample"),
        (["data", "surces"], "sources"),
        (["data", "sources", 0, "wieght"], "weight"),
        (["data", "augmentation", "crop_scal"], "crop_scale"),
        (["stages", 0, "frame"], "frames"),
        (["stages", 0, "masks", 0, "block"], "blocks"),
        (["stages", 0, "sources", 0, "pth"], "path"),
        (["training", "clip_nrm"], "clip_norm"),
    ],
    ids=str,
)
def test_an_unknown_key_at_any_level(path: Keys, meant: str) -> None:
    where = ".".join(str(part) for part in path)
    assert sentence_of(changed(path, 1)).startswith(f"my.yaml: unknown key '{where}' (did you mean '{meant}'?)")


def test_an_unknown_key_that_is_like_no_other() -> None:
    assert "unknown key 'zzz'; see docs/recipes.md" in sentence_of(changed(["zzz"], 1))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (
            ["stages", 0, "frames"],
            5,
            "stages[0] ('only'): frames=5 is not a multiple of the tubelet of 2 frames; try frames=4",
        ),
        (["stages", 0, "frames"], 2, "stages[0] ('only'): frames=2 is one latent frame"),
        (["stages", 0, "size"], 18, "size=18 pixels is not a multiple of the patch of 4 pixels; try size=16"),
        (["encoder", "heads"], 5, "width=24 does not split into heads=5 heads"),
        (["encoder", "heads"], 8, "width=24 does not split into heads=8 heads of an even width"),
        (["encoder", "heads"], 0, "heads=0 must be 1 or more"),
        (["encoder", "tubelet"], 0, "tubelet=0 must be 1 or more"),
        (["objective", "predictor", "heads"], 5, "objective.predictor: width=24 does not split into heads=5"),
        (["objective", "decoder", "depth"], 0, "objective.decoder: depth=0 must be 1 or more"),
        (["objective", "target", "downsample"], 0, "objective.target: downsample=0 must be 1 or more"),
        (["encoder", "width"], "wide", "encoder.width='wide': input should be a valid integer"),
        (["encoder"], {"size": "tinny"}, "no encoder of size 'tinny' (did you mean 'tiny'?); sizes: tiny, small, base"),
        (["data", "sources"], [], "data.sources=[]"),
        (["data", "sources", 0], {"path": "a", "builtin": "b"}, "data.sources.0: a source needs either a path"),
        (["data", "sources", 0], {"path": "a", "level": "plain"}, "data.sources.0: only a builtin source has levels"),
        (["stages"], [], "stages=[]"),
        (["stages", 0, "weights"], {"alignmnt": 1}, "weights names the loss 'alignmnt' (did you mean 'alignment'?)"),
        (
            ["stages", 0, "weights"],
            {"flow": 1},
            "names flow and leaves out alignment; write alignment: 0 to train without",
        ),
        (["stages", 0, "weights"], {"flow": 0, "alignment": 0}, "all loss weights are 0"),
        (["stages", 0, "masks", 0], {"ratio": 1}, "stages.0.masks.0: ratio=1.0 must lie in [0, 1)"),
        (["stages", 0, "masks", 0], {"ratio": 0.5, "blocks": 2}, "unknown key 'stages.0.masks.0.blocks'; see docs"),
        (
            ["objective", "name"],
            "videomea",
            "there is no objective 'videomea' (did you mean 'videomae'?); objectives: ",
        ),
        (["stages", 0, "steps"], 0, "stages.0.steps=0: input should be greater than 0"),
        (["stages", 0, "lr"], {"encoder": -1}, "stages.0.lr.encoder"),
        (["stages", 0, "masks", 0, "scale"], 2, "stages.0.masks.0: a mask needs"),
        (["training", "precision"], "fp16", "training.precision='fp16': input should be 'float32' or 'bfloat16'"),
        (["version"], 2, "version=2: input should be 1"),
    ],
    ids=str,
)
def test_an_impossible_value(path: Keys, value: object, sentence: str) -> None:
    said = sentence_of(changed(path, value))
    assert said.startswith("my.yaml: ")
    assert sentence in said


@pytest.mark.parametrize("path", [["encoder"], ["stages"], ["stages", 0, "lr"], ["encoder", "width"]], ids=str)
def test_a_missing_key(path: Keys) -> None:
    raw = full_mapping()
    node: Any = raw
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    assert f"the key '{'.'.join(map(str, path))}' is missing" in sentence_of(raw)


def test_all_mistakes_are_told_at_once() -> None:
    raw = changed(["seeed"], 1)
    raw["training"]["clip_nrm"] = 1
    said = sentence_of(raw)
    assert "'seeed'" in said
    assert "'training.clip_nrm'" in said


# What a recipe says.


def test_a_size_by_name_and_what_is_said_on_top() -> None:
    recipe = small_recipe(encoder={"size": "tiny", "patch": 8, "depth": 3})
    assert (recipe.encoder.width, recipe.encoder.heads) == (ENCODERS["tiny"].width, ENCODERS["tiny"].heads)
    assert (recipe.encoder.patch, recipe.encoder.depth) == (8, 3)


def test_a_number_is_a_flat_line() -> None:
    raw = changed(["stages", 0, "weights"], {"flow": 0.5, "alignment": [0, 1]})
    stage = parse_recipe(raw, "").stages[0]
    assert stage.weights == {"flow": (0.5, 0.5), "alignment": (0, 1)}
    assert stage.lr == {"encoder": (1e-3, 1e-3), "predictor": (1e-3, 1e-3), "decoder": (0, 1e-3)}


def test_what_is_not_said_is_the_paper() -> None:
    recipe = small_recipe()
    stage = recipe.stages[0]
    assert stage.masks == [MaskConfig(8, 0.15, (0.75, 1.5)), MaskConfig(2, 0.7, (0.75, 1.5))]
    assert stage.weights == {"flow": (0.5, 0.5), "alignment": (1.0, 1.0)}
    assert (stage.ema, recipe.training.betas, recipe.training.weight_decay) == (0.99925, (0.9, 0.95), 0.04)
    assert (recipe.training.clip_norm, recipe.objective.prediction, recipe.objective.generation) == (
        1.0,
        "velocity",
        "flow",
    )
    assert (recipe.objective.reference, recipe.objective.reference_norm) == ("ema", "layer")


def test_steps_of_all_stages() -> None:
    raw = full_mapping()
    raw["stages"] = [{**raw["stages"][0], "steps": steps} for steps in (3, 4)]
    assert parse_recipe(raw, "").steps == 7


# Files and overrides.


@pytest.mark.parametrize("file", sorted(PACKAGED_RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_recipes_are_found_by_name_and_by_path(file: Path) -> None:
    by_path = load_recipe(file)
    assert load_recipe(file.stem) == by_path
    assert load_recipe(f"recipes/{file.name}") == by_path


def test_the_name_is_the_files_unless_it_says_otherwise(tmp_path: Path) -> None:
    raw = recipe_mapping()
    assert load_recipe(write(tmp_path, raw)).name == "small"
    del raw["name"]
    assert load_recipe(write(tmp_path, raw)).name == "mine"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=5", lambda r: r.seed, 5),
        ("training.log_every=3", lambda r: r.training.log_every, 3),
        ("stages.0.steps=9", lambda r: r.stages[0].steps, 9),
        ("stages.0.lr.encoder=[0, 1.0e-2]", lambda r: r.stages[0].lr["encoder"], (0.0, 0.01)),
        ("stages.0.masks=[{blocks: 0}]", lambda r: r.stages[0].masks, [MaskConfig(0)]),
        ("encoder.attention=full", lambda r: r.encoder.attention, "full"),
        ("encoder={size: tiny}", lambda r: r.encoder, ENCODERS["tiny"]),
        ("objective.target.downsample=2", lambda r: r.objective.target.downsample, 2),
        ("data.sources=[{path: some folder, weight: 2}]", lambda r: r.data.sources[0].path, "some folder"),
        ("data.sources.0.weight=0.5", lambda r: r.data.sources[0].weight, 0.5),
        ("data.sources.0={path: a=b}", lambda r: r.data.sources[0].path, "a=b"),
        ("name=null-hypothesis", lambda r: r.name, "null-hypothesis"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_overrides(tmp_path: Path, override: str, read: Any, value: object) -> None:
    file = write(tmp_path, recipe_mapping())
    assert read(load_recipe(file)) != value
    assert read(load_recipe(file, ["seed=1", override])) == value


def test_a_star_is_every_item_of_a_list(tmp_path: Path) -> None:
    raw = recipe_mapping()
    raw["stages"] = raw["stages"] * 3
    recipe = load_recipe(write(tmp_path, raw), ["stages.*.batch=7", "stages.1.batch=5", "stages.*.lr.encoder=0.5"])
    assert [stage.batch for stage in recipe.stages] == [7, 5, 7]
    assert all(stage.lr["encoder"] == (0.5, 0.5) for stage in recipe.stages)


def test_the_last_override_counts(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, recipe_mapping()), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "'seed' is not an override; write key=value"),
        ("=5", "'=5' is not an override"),
        ("seed=[1", "the value in 'seed=[1' is not valid YAML"),
        ("name.more=1", "the override 'name.more' goes through 'name', which is a single value"),
        ("stages.1.steps=5", "the override 'stages.1.steps': '1' is not a number from 0 to 0 of that list"),
        ("stages.first.steps=5", "'first' is not a number from 0 to 0"),
        ("stages.7={}", "'7' is not a number from 0 to 0"),
        ("trainin.log_every=5", "unknown key 'trainin' (did you mean 'training'?)"),
        ("encoder.widht=5", "unknown key 'encoder.widht' (did you mean 'width'?)"),
    ],
)
def test_overrides_that_cannot_be(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, recipe_mapping()), [override])
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(
        UserError, match=r"there is no recipe 'tinny' \(did you mean 'tiny'\?\); packaged recipes: .*tiny"
    ):
        load_recipe("tinny")
    with pytest.raises(UserError, match=r"there is no recipe 'elsewhere/tinyy\.yaml' \(did you mean 'tiny'\?\)"):
        load_recipe("elsewhere/tinyy.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"), [("a: [1", "is not valid YAML"), ("- 1", "is not a recipe"), ("", "is not a recipe")]
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"mine.yaml {sentence}"):
        load_recipe(write(tmp_path, text))


# Saved and compared.


@pytest.mark.parametrize("file", sorted(PACKAGED_RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_recipes_survive_being_saved(file: Path) -> None:
    recipe = load_recipe(file)
    assert parse_recipe(yaml.safe_load(save_recipe(recipe)), "saved") == recipe


@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(0, 1),
    aspect=st.tuples(st.floats(0.1, 1), st.floats(1, 10)),
    tau=st.none() | st.tuples(st.floats(-3, 3), st.floats(0.01, 3)),
    switches=st.fixed_dictionaries(
        {
            "prediction": st.sampled_from(["velocity", "clean"]),
            "reference": st.sampled_from(["ema", "online"]),
            "reference_norm": st.sampled_from(["layer", "none", "batch"]),
        }
    ),
)
def test_any_recipe_survives_being_saved(
    seed: int, rate: float, aspect: tuple[float, float], tau: tuple[float, float] | None, switches: dict[str, str]
) -> None:
    raw = {**full_mapping(), "seed": seed}
    raw["stages"][0] |= {"lr": {"encoder": rate, "predictor": [0, rate], "decoder": 1}}
    raw["stages"][0]["masks"] = [{"blocks": 3, "aspect": list(aspect)}]
    raw["objective"] |= {**switches, "tau_logit": tau}
    recipe = parse_recipe(raw, "")
    saved = yaml.safe_load(save_recipe(recipe))
    assert parse_recipe(saved, "saved") == recipe
    assert differences(saved, recipe.model_dump(mode="json")) == []


def dumped(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def test_differences_name_what_differs() -> None:
    a, b = full_mapping(), full_mapping()
    b["seed"] = 4
    b["encoder"]["depth"] = 3
    b["stages"][0]["lr"] = {"encoder": 1.0e-3, "predictor": 1.0e-3, "decoder": [0, 2.0e-3]}
    found = differences(dumped(parse_recipe(a, "")), dumped(parse_recipe(b, "")))
    assert found == ["seed: 0 → 4", "encoder.depth: 2 → 3", "stages[0].lr.decoder[1]: 0.001 → 0.002"]


def test_differences_in_length_and_in_keys() -> None:
    assert differences({"a": [1, 2]}, {"a": [1]}) == ["a: [1, 2] → [1]"]
    assert differences({"a": 1}, {"b": {"c": 2}}) == ["a: 1 → None", "b: None → {'c': 2}"]
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []


# What to start from, and stages by name.


@pytest.mark.parametrize(
    ("override", "init"),
    [
        ("init=nextvid-tiny", InitConfig(origin="nextvid-tiny")),
        ("init=runs/x", InitConfig(origin="runs/x")),
        ("init={origin: runs/x, strict: false}", InitConfig(origin="runs/x", strict=False)),
        ("init={origin: runs/x, optimiser: true, step: 40}", InitConfig(origin="runs/x", optimiser=True, step=40)),
        ("init=null", None),
    ],
)
def test_what_to_start_from(tmp_path: Path, override: str, init: InitConfig | None) -> None:
    recipe = load_recipe(write(tmp_path, recipe_mapping()), [override])
    assert recipe.init == init
    assert parse_recipe(yaml.safe_load(save_recipe(recipe)), "again") == recipe


def test_a_mistake_in_what_to_start_from() -> None:
    assert "unknown key 'init.strickt' (did you mean 'strict'?)" in sentence_of(
        {**recipe_mapping(), "init": {"origin": "runs/x", "strickt": False}}
    )
    assert "the key 'init.origin' is missing" in sentence_of({**recipe_mapping(), "init": {"strict": False}})


def staged(*names: str) -> Recipe:
    (stage,) = recipe_mapping()["stages"]
    return small_recipe(stages=[{**stage, "name": name, "steps": number} for number, name in enumerate(names, 1)])


def test_stages_by_name_keep_the_recipes_order() -> None:
    recipe = staged("warm-up", "stable", "cool-down")
    assert only_stages(recipe, ["cool-down"]).stages == recipe.stages[2:]
    assert only_stages(recipe, ["cool-down", "warm-up"]).stages == [recipe.stages[0], recipe.stages[2]]
    assert only_stages(recipe, ["stable", "stable"]).stages == [recipe.stages[1]]
    assert only_stages(recipe, ["cool-down"]).steps == 3
    assert differences(recipe.model_dump(), only_stages(recipe, ["stable", "warm-up", "cool-down"]).model_dump()) == []


def test_a_stage_that_there_is_not_is_named_with_those_that_there_are() -> None:
    recipe = staged("warm-up", "stable", "cool-down")
    with pytest.raises(
        UserError, match=r"no stage 'cooldown' \(did you mean 'cool-down'\?\); its stages are warm-up, stable, "
    ):
        only_stages(recipe, ["warm-up", "cooldown"])
