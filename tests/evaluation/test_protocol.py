"""Protocols: what a recipe says, what the encoder says where it does not, and sentences for what cannot be."""

from pathlib import Path

import pytest
from frozen_clips import Patches

from nextvid.data.clip import ClipSpec
from nextvid.data.views import ViewAugmentation, Views
from nextvid.errors import UserError
from nextvid.evaluation.encoders import open_encoder
from nextvid.evaluation.protocol import EVAL_RECIPES, USUAL_CLIP, EvalRecipe, changed, load_protocol

TABLE_10 = {
    "kinetics400": {"frames": 16, "fps": 4, "segments": 8, "views": 3, "epochs": 20, "batch": 192},
    "ssv2": {"frames": 16, "fps": 4, "segments": 2, "views": 3, "epochs": 20, "batch": 96},
    "diving48": {"frames": 32, "fps": 2, "segments": 4, "views": 3, "epochs": 100, "batch": 48, "layers": 4},
    "imagenet1k": {"frames": 16, "segments": 1, "views": 1, "epochs": 20, "batch": 384},
}


def layered(layers: int) -> Patches:
    encoder = Patches()
    encoder.layers = layers
    return encoder


@pytest.mark.parametrize(("name", "said"), TABLE_10.items())
def test_the_official_benchmarks_have_the_papers_protocol(name: str, said: dict):
    recipe = load_protocol(None, f"{name}:/some/folder", [])
    assert said.items() <= recipe.model_dump().items()
    assert recipe.name == name
    assert recipe.depth == 1
    assert len(recipe.members()) == 20
    assert recipe.augmentation is not None


def test_every_packaged_recipe_loads():
    assert {file.stem for file in EVAL_RECIPES.glob("*.yaml")} == {*TABLE_10, "built-in"}
    for file in EVAL_RECIPES.glob("*.yaml"):
        assert load_protocol(str(file), "moving-sprites", []) == load_protocol(file.stem, "moving-sprites", [])


def test_a_benchmark_that_is_made_up_has_the_built_in_protocol(tmp_path: Path):
    recipe = load_protocol(None, "moving-sprites", ["epochs=3", "lrs=[0.1]"])
    assert (recipe.name, recipe.epochs, recipe.lrs) == ("built-in", 3, (0.1,))
    assert (recipe.segments, recipe.views, recipe.augmentation) == (1, 1, None)
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nsegments: 2\n")
    assert load_protocol(str(file), "kinetics400:/x", []).epochs == 7


def test_overrides_may_take_augmentation_away():
    recipe = load_protocol(None, "kinetics400:/x", ["augmentation=null", "copies=1"])
    assert recipe.augmentation is None
    assert recipe.views_of_train() == Views(8, 1, 1.0, None)
    other = load_protocol(None, "ssv2:/x", ["augmentation.flip=0.5"])
    assert other.augmentation is not None
    assert other.augmentation.flip == 0.5


def test_views_are_those_of_the_recipe():
    recipe = load_protocol(None, "kinetics400:/x", [])
    assert recipe.views_of_train() == Views(8, 1, 1.0, ViewAugmentation((0.08, 1.0), (0.75, 1.3333), 0.0, 0.25))
    assert recipe.views_of_test() == Views(8, 3, 1.0)
    assert load_protocol(None, "imagenet1k:/x", []).views_of_test() == Views(1, 1, 0.875)


def test_clips_are_the_recipes_then_the_encoders_then_the_usual():
    encoder = Patches()
    assert EvalRecipe().spec_for(encoder) == encoder.clip
    assert EvalRecipe(frames=6, size=12).spec_for(encoder) == ClipSpec(6, 5.0, 12)
    encoder.clip = None
    assert EvalRecipe(fps=3.0).spec_for(encoder) == ClipSpec(USUAL_CLIP.frames, 3.0, 8)
    with pytest.raises(UserError, match="frames must be a multiple"):
        EvalRecipe(frames=3).spec_for(open_encoder("nextvid-tiny"))


@pytest.mark.parametrize(
    ("layers", "of", "read"),
    [
        (1, 4, [3]),
        (4, 4, [0, 1, 2, 3]),
        (2, 7, [5, 6]),
        (4, 8, [1, 3, 5, 7]),
        (4, 24, [17, 19, 21, 23]),
        ((3, 0, 3), 4, [0, 3]),
    ],
)
def test_layers_that_are_read(layers: int | tuple[int, ...], of: int, read: list[int]):
    assert EvalRecipe(layers=layers).layers_of(layered(of)) == read


def test_layers_that_there_are_not():
    tiny = open_encoder("nextvid-tiny")
    with pytest.raises(UserError, match=r"layers=9, and nextvid-tiny has 4 layers .*set layers lower, or name them"):
        EvalRecipe(layers=9).layers_of(tiny)
    with pytest.raises(UserError, match="read 2 apart"):
        EvalRecipe(layers=5).layers_of(layered(8))
    with pytest.raises(UserError, match="has layers 0 to 3, and no layer 4"):
        EvalRecipe(layers=(1, 4)).layers_of(tiny)


def test_workers():
    assert EvalRecipe().workers_for(made_up=True) == 0
    assert EvalRecipe().workers_for(made_up=False) >= 1
    assert EvalRecipe(workers=3).workers_for(made_up=True) == EvalRecipe(workers=3).workers_for(made_up=False) == 3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epoch=3", r"epoch.*did you mean 'epochs'"),
        ("copies=4", r"copies=4 without augmentation: all copies would be the same; leave it out"),
        ("epochs=0", "epochs"),
        ("features=disk", "features"),
        ("views=0", "views"),
        ("crop_share=1.5", "crop_share"),
        ("baselines=[middle]", "baselines"),
        ("layers=0", "layers"),
        ("held_out=1", "held_out"),
        ("lrs=[]", "lrs"),
    ],
)
def test_wrong_settings_are_said(override: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        load_protocol(None, "moving-sprites", [override])


def test_memory_keeps_one_draw():
    with pytest.raises(UserError, match="features=memory keeps one draw of each clip: set augmentation=null"):
        load_protocol(None, "kinetics400:/x", ["features=memory"])


def test_a_recipe_that_there_is_not():
    with pytest.raises(UserError, match=r"kinetics.*did you mean"):
        load_protocol("kinetics40", "moving-sprites", [])


def test_changes_are_checked_and_none_changes_nothing():
    recipe = load_protocol(None, "moving-sprites", [])
    assert changed(recipe, epochs=None) is recipe
    assert changed(recipe, epochs=2, standardise=False).model_dump() == {
        **recipe.model_dump(),
        "epochs": 2,
        "standardise": False,
    }
    with pytest.raises(UserError, match="copies=3 without augmentation"):
        changed(recipe, copies=3)
