"""Training from stored latents is training without them: the same clips, targets and losses; what would be wrong is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import numbered, write_picture, write_video
from nano import nano_recipe
from rich.console import Console
from small_vae import small_vae

from nextvid.config import Recipe
from nextvid.data.film import load_film
from nextvid.data.loader import Batch, BatchPlan, batches, make_batch
from nextvid.errors import UserError
from nextvid.files import read_json
from nextvid.footage.latents import LatentSettings, prepare_latents
from nextvid.footage.plan import PrepareSettings
from nextvid.footage.prepare import prepare_footage
from nextvid.footage.scan import scan
from nextvid.training import loop
from nextvid.training.compute import clip_flops
from nextvid.training.footage import BROKEN_FILE, SourceOpener, build_mixtures
from nextvid.training.latents import use_latents
from nextvid.training.profile import profile_step
from nextvid.training.trainer import build_objective

QUIET = Console(quiet=True)
SIZE = 16


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pieces of the film at 12, 25 and 5 frames a second, one of them shorter than a clip, and of a picture."""
    folder = tmp_path_factory.mktemp("latents")
    mine = folder / "mine"
    mine.mkdir()
    film = load_film().frames
    for name, fps, begin, count in (("a", 12, 0, 40), ("b", 25, 300, 50), ("c", 5, 600, 20), ("d", 12, 900, 3)):
        write_video(mine / f"{name}.mp4", [np.array(f) for f in film[begin : begin + count]], fps=fps)
    write_picture(mine / "e.png", np.array(film[1200]))
    scan([str(mine)], folder / "mine.parquet", workers=1, console=QUIET)
    settings = PrepareSettings(short_side=48, min_seconds=0.0, shard_mb=0.01)
    prepare_footage(folder / "mine.parquet", folder / "shards", settings, workers=1, console=QUIET)
    small_vae(folder / "vae.safetensors")
    for crop in ("center", "none"):
        prepare_latents(folder / "shards", latents_of(folder, crop=crop), console=QUIET)
    return folder


@pytest.fixture
def shards(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_film()
    monkeypatch.setenv("NEXTVID_CACHE", str(tmp_path / "cache"))


def latents_of(folder: Path, **changes: Any) -> LatentSettings:
    return LatentSettings(**{"space": f"vae:{folder / 'vae.safetensors'}", "size": SIZE, **changes})


def recipe_on(folder: Path, latents: bool, crop: str = "center", **changes: Any) -> Recipe:
    """The nano recipe, 2 x 3 steps, with the autoencoder's space on the shards."""
    base = nano_recipe().model_dump(mode="json")
    objective = base["objective"] | {"target": {"name": "vae", "weights": str(folder / "vae.safetensors")}}
    sources = [{"path": str(folder / "shards"), "weight": 1.0, "clips_per_video": 2}]
    data = {"sources": sources, "workers": 0, "latents": latents, "augmentation": {"crop": crop}}
    stages = [dict(stage) for stage in base["stages"]]
    stages[0] |= {"steps": 3, "batch": 4, "micro_batch": 2}
    stages[1] |= {"steps": 3}
    training = base["training"] | {"log_every": 1}
    new = {"objective": objective, "data": data | changes.pop("data", {}), "stages": stages, "training": training}
    return nano_recipe(**(new | changes))


def losses_of(run: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row["loss"], row["flow"], row["alignment"], row["grad_norm"]] for row in rows])


@pytest.mark.parametrize("crop", ["center", "none"])
def test_a_run_from_the_cache_has_the_losses_of_one_without(prepared: Path, tmp_path: Path, crop: str) -> None:
    for latents in (False, True):
        loop.pretrain(recipe_on(prepared, latents, crop), tmp_path / str(latents), console=QUIET)
    without, with_them = losses_of(tmp_path / "False"), losses_of(tmp_path / "True")
    assert without.shape == (6, 4)
    np.testing.assert_allclose(with_them, without, rtol=1e-5)
    assert not (tmp_path / "True" / BROKEN_FILE).exists()


@pytest.mark.slow
def test_nothing_is_encoded(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_on(prepared, True)
    objective = build_objective(recipe)

    def never(space: Any, frames: Any) -> Any:
        if frames.device.type == "meta":  # counts operations
            return computed(space, frames)
        raise AssertionError("encoded")

    computed = type(objective.target).maps_of
    monkeypatch.setattr(type(objective.target), "maps_of", never)
    loop.pretrain(recipe, tmp_path / "run", console=QUIET)
    stored, encoded = (clip_flops(recipe_on(prepared, latents))[0].forward for latents in (True, False))
    assert {"target": encoded["target"], **stored} == encoded
    assert "target" not in stored
    assert profile_step(recipe, 1, None, QUIET)["parts"].get("target") is None
    with pytest.raises(AssertionError, match="encoded"):
        loop.pretrain(recipe_on(prepared, False), tmp_path / "other", console=QUIET)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(prepared: Path, tmp_path: Path) -> None:
    recipe = recipe_on(prepared, True)
    loop.pretrain(recipe, tmp_path / "whole", console=QUIET)
    for until in (2, 4, None):
        loop.pretrain(recipe, tmp_path / "parts", until=until, console=QUIET)
    assert np.array_equal(losses_of(tmp_path / "parts"), losses_of(tmp_path / "whole"))


@pytest.mark.slow
def test_half_precision_is_close(shards: Path, tmp_path: Path) -> None:
    shutil.rmtree(shards / "shards" / "latents")
    prepare_latents(shards / "shards", latents_of(shards, precision="float16"), console=QUIET)
    for latents in (False, True):
        loop.pretrain(recipe_on(shards, latents), tmp_path / str(latents), console=QUIET)
    without, with_them = losses_of(tmp_path / "False"), losses_of(tmp_path / "True")
    np.testing.assert_allclose(with_them, without, rtol=5e-3)
    assert not np.array_equal(with_them, without)


def made(recipe: Recipe, workers: int, **changes: Any) -> Iterator[Batch]:
    mixtures = build_mixtures(recipe, None, QUIET)
    use_latents(build_objective(recipe), recipe, mixtures)
    plans = [BatchPlan(number * 5, 5, 5, 7.0, SIZE) for number in range(4)]
    yield from batches(mixtures, plans, workers, **changes)


def test_workers_and_ranks_change_nothing(prepared: Path) -> None:
    recipe = recipe_on(prepared, True)
    alone = list(made(recipe, 0))
    for batch, other in zip(alone, made(recipe, 2), strict=True):
        assert batch.latents is not None
        assert other.latents is not None
        assert batch.latents.shape == (5, 5, 4, SIZE // 4, SIZE // 4)
        assert torch.equal(batch.latents, other.latents)
    mixtures = build_mixtures(recipe, None, QUIET)
    use_latents(build_objective(recipe), recipe, mixtures)
    again = make_batch(mixtures[0], BatchPlan(5, 5, 5, 7.0, SIZE))
    assert again.latents is not None
    assert torch.equal(again.latents, alone[1].latents)


@pytest.mark.slow
def test_a_clip_that_broke_is_replaced_and_its_substitute_has_its_own_latents(shards: Path, tmp_path: Path) -> None:
    """Whether it broke before the latents were stored, or after."""
    before, after = ruined(shards, 0), ruined(shards, 2)
    shutil.rmtree(shards / "shards" / "latents")
    before()
    facts = prepare_latents(shards / "shards", latents_of(shards), console=QUIET)
    assert sum(facts["broken"].values()) == 1
    after()
    for latents in (False, True):
        loop.pretrain(recipe_on(shards, latents), tmp_path / str(latents), console=QUIET)
    np.testing.assert_allclose(losses_of(tmp_path / "True"), losses_of(tmp_path / "False"), rtol=1e-5)
    found = [(tmp_path / str(latents) / BROKEN_FILE).read_text() for latents in (False, True)]
    assert found[0] == found[1]
    assert len(found[0].splitlines()) == 2


def ruined(folder: Path, number: int) -> Any:
    """What overwrites a clip's bytes."""
    mixture = build_mixtures(recipe_on(folder, False), None, QUIET)[0]
    place = mixture.sources[0].manifest[number].place  # type: ignore[attr-defined]

    def ruin() -> None:
        with open(place.path, "r+b") as file:
            file.seek(place.offset)
            file.write(b"\x00" * place.length)

    return ruin


def refused(recipe: Recipe, run: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        loop.pretrain(recipe, run, console=QUIET)
    assert not run.exists()


def test_random_crops_are_refused(prepared: Path) -> None:
    with pytest.raises(UserError, match=r"latents=true, and every clip is cropped .*set data.augmentation.crop"):
        recipe_on(prepared, True, "random")


@pytest.mark.parametrize("key", ["crop_scale", "crop_aspect", "flip"])
def test_settings_of_random_crops_are_refused_for_others(prepared: Path, key: str) -> None:
    value = {"flip": 0.3}.get(key, [0.5, 1.0])
    with pytest.raises(UserError, match=f"{key} is for crop=random, and with crop=none nothing is drawn: leave it out"):
        recipe_on(prepared, False, data={"augmentation": {"crop": "none", key: value}})
    same = recipe_on(prepared, False, data={"augmentation": {"crop": "none", "flip": 0}})
    assert same.data.augmentation.crop == "none"


def test_sources_without_latents_are_refused(prepared: Path, tmp_path: Path) -> None:
    builtin = [{"builtin": "film"}]
    refused(recipe_on(prepared, True, data={"sources": builtin}), tmp_path / "run", "built-in source 'film' has no lat")
    folder = [{"path": str(prepared / "mine")}]
    refused(
        recipe_on(prepared, True, data={"sources": folder}), tmp_path / "run", "there are no latents beside .*prepare"
    )


def test_latents_of_something_else_are_refused(prepared: Path, tmp_path: Path) -> None:
    run, stages = tmp_path / "run", recipe_on(prepared, True).model_dump(mode="json")["stages"]
    larger = [stage | {"size": 32} for stage in stages]
    refused(recipe_on(prepared, True, stages=larger), run, r"its size is 16, not 32.*--latents-size 32")
    small_vae(tmp_path / "other.safetensors", seed=1)
    objective = recipe_on(prepared, True).objective.model_dump(mode="json")
    other = objective | {"target": {"name": "vae", "weights": str(tmp_path / "other.safetensors")}}
    refused(recipe_on(prepared, True, objective=other), run, "its checksum is")
    pixels = objective | {"target": {"name": "pixels"}}
    refused(recipe_on(prepared, True, objective=pixels), run, "latents of pixels are not stored")


def test_latents_of_another_crop_or_of_other_clips_are_refused(shards: Path, tmp_path: Path) -> None:
    for folder in (shards / "shards" / "latents").glob("*-none"):
        shutil.rmtree(folder)
    refused(recipe_on(shards, True, "none"), tmp_path / "run", r"its crop is center, not none.*--latents-crop none")
    write_video(shards / "mine" / "f.mp4", [numbered(number) for number in range(30)])
    scan([str(shards / "mine")], shards / "more.parquet", workers=1, console=QUIET)
    settings = PrepareSettings(short_side=48, min_seconds=0.0, shard_mb=0.01)
    prepare_footage(shards / "more.parquet", shards / "more", settings, workers=1, console=QUIET)
    shutil.copytree(shards / "shards" / "latents", shards / "more" / "latents")
    sources = [{"path": str(shards / "more")}]
    refused(recipe_on(shards, True, data={"sources": sources}), tmp_path / "run", "of other clips than the manifest's")
    with pytest.raises(UserError, match=r"holds latents of manifest .* not .*: remove that folder"):
        prepare_latents(shards / "more", latents_of(shards), console=QUIET)


def test_methods_without_a_target_space_are_refused(prepared: Path, tmp_path: Path) -> None:
    part = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}
    stage = {"name": "only", "steps": 1, "batch": 2, "frames": 4, "fps": 6, "size": SIZE}
    stage["lr"] = {"encoder": 1e-3, "decoder": 1e-3}
    videomae = {"name": "videomae", "decoder": part}
    recipe = recipe_on(prepared, True, objective=videomae, stages=[stage])
    refused(recipe, tmp_path / "run", "objective 'videomae' draws in no target space; leave out data.latents")
    with pytest.raises(UserError, match=r"data\.latents=true is for methods that draw in a target space"):
        SourceOpener(recipe.data, 1, None, QUIET)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_damaged_cache_is_refused(shards: Path, tmp_path: Path, suffix: str) -> None:
    recipe = recipe_on(shards, True)
    (path,) = (shards / "shards" / "latents").glob(f"*-center/shard-000001{suffix}")
    path.write_bytes(path.read_bytes()[:-10])
    refused(recipe, tmp_path / "run", "latents of shard-000001 .* are damaged")
    path.unlink()
    refused(recipe, tmp_path / "run", "is missing")


def test_a_cache_without_its_facts_or_unfinished_is_refused(shards: Path, tmp_path: Path) -> None:
    (facts,) = (shards / "shards" / "latents").glob("*-center/latents.json")
    whole = facts.read_text()
    facts.write_text(json.dumps(json.loads(whole) | {"shards": None}))
    refused(recipe_on(shards, True), tmp_path / "run", "is not finished")
    facts.write_text(whole[:50])
    refused(recipe_on(shards, True), tmp_path / "run", "missing or damaged")
    facts.write_text(json.dumps(json.loads(whole) | {"format_version": 99}))
    refused(recipe_on(shards, True), tmp_path / "run", "format version 99")


def test_a_run_goes_on_with_latents_that_were_made_alike_only(shards: Path, tmp_path: Path) -> None:
    recipe, run = recipe_on(shards, True), tmp_path / "run"
    loop.pretrain(recipe, run, until=2, console=QUIET)
    kept = read_json(run / "footage.json")["sources"][str(shards / "shards")]
    assert kept["latents"][str(SIZE)]["precision"] == "float32"
    shutil.rmtree(shards / "shards" / "latents")
    prepare_latents(shards / "shards", latents_of(shards, precision="float16"), console=QUIET)
    with pytest.raises(UserError, match=r"not those that this run began with: they differ in precision"):
        loop.pretrain(recipe, run, console=QUIET)
    with pytest.raises(UserError, match=r"data\.latents: True → False"):
        loop.pretrain(recipe_on(shards, False), run, console=QUIET)
