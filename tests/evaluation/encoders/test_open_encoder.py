"""nextvid's own encoders behind the interface, and what is said where there is none."""

import json
from pathlib import Path

import pytest
import torch
from builders import Case, make_video, randomise, small_recipe
from safetensors.torch import load_file, save_file

import nextvid
from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.encoders import OwnEncoder, open_encoder
from nextvid.inference.load import read_config
from nextvid.training.run import Run

CASE = Case(frames=3, height=2, width=2, patch=4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as training leaves it, as far as the encoder goes."""
    recipe = small_recipe()
    folder = tmp_path / "the run"
    folder.mkdir()
    Run(folder).export_encoder(randomise(recipe.objective.build(recipe.encoder), seed=3), recipe, step=7)
    return folder


@pytest.fixture
def frames() -> torch.Tensor:
    return (make_video(CASE) * 255).round().to(torch.uint8)


def test_a_runs_tokens_are_those_of_nextvid_load(run: Path, frames: torch.Tensor) -> None:
    encoder = open_encoder(str(run))
    assert isinstance(encoder, OwnEncoder)
    loaded = nextvid.load(run)
    config = loaded.encoder.config
    assert (encoder.kind, encoder.name, encoder.config) == ("nextvid", "the run", config)
    assert (encoder.width, encoder.layers) == (config.width, config.depth)
    assert encoder.clip == ClipSpec(**loaded.settings["clip"])
    assert encoder.size == encoder.clip.size
    assert torch.equal(encoder(frames), loaded(frames))
    layers = list(range(config.depth))[::-1]
    for found, wanted in zip(encoder.encode(frames, layers), loaded(frames, return_layers=layers), strict=True):
        assert torch.equal(found, wanted)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_choice_of_weights(run: Path, frames: torch.Tensor) -> None:
    average, online = open_encoder(str(run), "ema"), open_encoder(str(run), "online")
    assert torch.equal(average(frames), open_encoder(str(run))(frames))
    assert torch.equal(online(frames), nextvid.load(run, weights="online")(frames))
    assert online.name == "the run, online"


def test_the_digest_is_of_the_weights_wherever_they_lie(run: Path, tmp_path: Path) -> None:
    first = open_encoder(str(run)).digest
    file = run / "encoder.safetensors"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert open_encoder(str(copy)).digest == first
    assert open_encoder(str(copy)).name == "copy"
    assert open_encoder(str(file)).name == "the run"
    assert open_encoder(str(run), "online").digest != first
    config = read_config(file)
    tensors = load_file(file)
    config["encoder"]["attention"] = "full"
    save_file(tensors, copy, metadata={"config": json.dumps(config)})
    assert open_encoder(str(copy)).digest != first
    tensors["ema.norm.bias"][0] += 1
    save_file(tensors, file, metadata={"config": json.dumps(read_config(file))})
    assert open_encoder(str(run)).digest != first


def test_a_released_encoder_by_name() -> None:
    encoder = open_encoder("nextvid-tiny")
    assert (encoder.name, encoder.layers, encoder.width, encoder.size) == ("nextvid-tiny", 4, 128, 32)
    assert encoder.clip == ClipSpec(8, 6.0, 32)
    assert json.loads(json.dumps(encoder.preprocessing))["mean"] == [0.5, 0.5, 0.5]


def test_clips_that_cannot_be_cut_are_refused(run: Path) -> None:
    encoder = open_encoder(str(run))
    for good in (ClipSpec(4, 8.0, 12), ClipSpec(1, 8.0, 4)):
        encoder.check(good)
    for bad in (ClipSpec(3, 8.0, 12), ClipSpec(4, 8.0, 13)):
        with pytest.raises(
            UserError, match=r"cannot be given clips of .* must be a multiple of 2 \(or 1, a still clip\)"
        ):
            encoder.check(bad)


def test_a_layer_that_there_is_not(run: Path, frames: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"the run has layers 0 to .*, and no layer 99: mend layers"):
        open_encoder(str(run)).encode(frames, [0, 99])


@pytest.mark.parametrize("where", ["nowhere", "runs/nowhere", "nextvid-huge", "timm:vit-base", "https://host/x"])
def test_nothing_of_that_name(where: str) -> None:
    with pytest.raises(UserError, match=r"there is no encoder '.*': give a run's folder, .*nextvid-tiny.*hf:FOLDER"):
        open_encoder(where)


def test_a_model_of_transformers_without_its_prefix(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videomae"}))
    with pytest.raises(UserError, match=rf"holds a model of transformers and no run: give it as hf:{tmp_path}"):
        open_encoder(str(tmp_path))


def test_a_folder_of_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no encoder.safetensors"):
        open_encoder(str(tmp_path))
