"""``nextvid.load``: what a run exports is what a user gets."""

import json
from pathlib import Path

import pytest
import torch
from builders import Case, make_video, randomise, small_recipe
from safetensors.torch import load_file, save_file

import nextvid
from nextvid.config import Recipe
from nextvid.data.transforms import prepare
from nextvid.errors import UserError
from nextvid.inference.load import LoadedEncoder, read_config
from nextvid.objectives import NextVid
from nextvid.training.run import Run

CASE = Case(frames=3, height=2, width=3, patch=4)


@pytest.fixture
def recipe() -> Recipe:
    return small_recipe()


@pytest.fixture
def objective(recipe: Recipe) -> NextVid:
    made = randomise(recipe.objective.build(recipe.encoder), seed=3)
    assert isinstance(made, NextVid)
    return made


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe, objective: NextVid) -> Path:
    """A run's folder as training leaves it, as far as the encoder goes."""
    Run(tmp_path).export_encoder(objective, recipe, step=7)
    return tmp_path


@pytest.fixture
def encoder(run: Path) -> LoadedEncoder:
    return nextvid.load(run)


def change_metadata(run: Path, **changes: object) -> None:
    file = run / "encoder.safetensors"
    config = {**read_config(file), **changes}
    save_file(load_file(file), file, metadata={"config": json.dumps(config)})


def test_the_encoder_of_the_run(run: Path, objective: NextVid) -> None:
    video = make_video(CASE)
    for weights, trained in (("ema", objective.reference), ("online", objective.encoder)):
        tokens = nextvid.load(run, weights=weights)(video)
        torch.testing.assert_close(tokens, trained(prepare(video, 2)).detach())
    assert torch.equal(nextvid.load(run)(video), nextvid.load(str(run / "encoder.safetensors"), weights="ema")(video))


def test_it_is_ready_to_use(encoder: LoadedEncoder, recipe: Recipe) -> None:
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert encoder.width == 24
    assert encoder.encoder.config == recipe.encoder
    assert encoder.settings["step"] == 7
    assert encoder.settings["clip"] == {"frames": 4, "fps": 6.0, "size": 16}


def test_the_config_stands_beside_the_weights(run: Path) -> None:
    assert json.loads((run / "config.json").read_text()) == read_config(run / "encoder.safetensors")


def test_tokens_of_any_size_and_length(encoder: LoadedEncoder) -> None:
    for case in (CASE, Case(frames=1, height=5, width=1), Case(frames=6, height=1, width=1, batch=1)):
        assert encoder(make_video(case)).shape == (case.batch, case.frames, case.places, 24)


def test_bytes_and_floats_are_the_same_frames(encoder: LoadedEncoder) -> None:
    video = make_video(CASE)
    assert torch.equal(encoder(video), encoder(video.float() / 255))
    torch.testing.assert_close(encoder(video), encoder(video.double() / 255))


def test_black_and_white_are_minus_one_and_one() -> None:
    frames = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(48).reshape(1, 2, 3, 4, 4)
    assert prepare(frames, 2).flatten().unique().tolist() == [-1.0, 1.0]


def test_a_single_frame_is_a_still_clip(encoder: LoadedEncoder) -> None:
    picture = make_video(CASE)[:, :1]
    assert torch.equal(encoder(picture), encoder(picture.repeat(1, 2, 1, 1, 1)))


def test_pool_is_one_vector_a_clip(encoder: LoadedEncoder) -> None:
    tokens = encoder(make_video(CASE))
    assert encoder.pool(tokens).shape == (CASE.batch, 24)
    torch.testing.assert_close(encoder.pool(tokens)[0], tokens[0].reshape(-1, 24).mean(0))


def test_return_layers(encoder: LoadedEncoder) -> None:
    video = make_video(CASE)
    layers = encoder(video, return_layers=[0, 1])
    assert isinstance(layers, list)
    assert torch.equal(layers[1], encoder(video))
    assert not torch.equal(layers[0], layers[1])
    with pytest.raises(ValueError, match="this encoder has layers 0 to 1"):
        encoder(video, return_layers=[2])


def test_a_camera_through_the_loaded_encoder(encoder: LoadedEncoder) -> None:
    video = make_video(CASE)
    stream = encoder.stream(window=4)
    tokens = torch.cat([stream.push(pair) for pair in video.split(2, dim=1)], dim=1)
    torch.testing.assert_close(tokens, encoder(video), rtol=1e-4, atol=1e-4)


# Wrong files.


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run or weights file at .*nowhere"):
        nextvid.load(tmp_path / "nowhere")


def test_a_folder_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no encoder\.safetensors"):
        nextvid.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not tensors at all", b"\xff" * 64])
def test_a_file_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        nextvid.load(file)


def test_a_file_cut_short(run: Path) -> None:
    file = run / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        nextvid.load(run)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_somebody_elses_weights(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, file, metadata=metadata)
    with pytest.raises(UserError, match="is not an encoder written by nextvid"):
        nextvid.load(file)


def test_weights_that_it_has_not(run: Path, unchecked: None) -> None:
    with pytest.raises(UserError, match="has no 'best' weights; it has online, ema"):
        nextvid.load(run, weights="best")  # type: ignore[arg-type]


def test_another_format(run: Path) -> None:
    change_metadata(run, format_version=2)
    with pytest.raises(UserError, match="has format version 2, this nextvid reads 1"):
        nextvid.load(run)


def test_weights_that_do_not_fit(run: Path) -> None:
    config = read_config(run / "encoder.safetensors")["encoder"]
    change_metadata(run, encoder={**config, "width": 48})
    with pytest.raises(UserError, match=r"holds another architecture than asked for: .*is \(24,\), not \(48,\)"):
        nextvid.load(run)
    change_metadata(run, encoder={**config, "depth": 3})
    with pytest.raises(UserError, match=r"blocks\.2\.norm1\.weight is missing"):
        nextvid.load(run)
    change_metadata(run, encoder={**config, "depth": 1})
    with pytest.raises(UserError, match=r"blocks\.1\..* is unknown"):
        nextvid.load(run)


# Wrong frames.


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (torch.zeros(4, 3, 8, 8), r"frames are \(batch, frames, 3, height, width\), not \(4, 3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8, 3), r"frames are \(batch, frames, 3, height, width\), not \(1, 4, 8, 8, 3\)"),
        (torch.zeros(1, 4, 3, 8, 8, dtype=torch.int64), "frames are uint8, or floats in"),
        (torch.full((1, 4, 3, 8, 8), 255.0), r"float frames must lie in \[0, 1\]; give uint8 frames, or divide by 255"),
        (torch.full((1, 4, 3, 8, 8), -0.5), r"float frames must lie in \[0, 1\]"),
        (torch.zeros(1, 3, 3, 8, 8), "3 frames of 8x8 pixels cannot be cut"),
        (torch.zeros(1, 4, 3, 8, 9), "4 frames of 8x9 pixels cannot be cut"),
    ],
)
def test_frames_that_it_cannot_take(
    encoder: LoadedEncoder, frames: torch.Tensor, sentence: str, unchecked: None
) -> None:
    with pytest.raises(ValueError, match=sentence):
        encoder(frames)
