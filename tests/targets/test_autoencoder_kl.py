"""Latents of a diffusers AutoencoderKL as a target space, read back from the files that diffusers writes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import seeded
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextvid.errors import UserError
from nextvid.targets.autoencoder_kl import AutoencoderKl, AutoencoderKlConfig
from nextvid.targets.diffusers_folder import ATTENTION_NAMES, USUAL_NAME

PATCH, TUBELET, CHANNELS = 4, 2, 3
MEAN, STD = [0.1, -0.2, 0.3], [0.5, 1.5, 2.0]


def make_network(**settings: Any) -> Any:
    from diffusers import AutoencoderKL  # noqa: PLC0415 (seconds)

    torch.manual_seed(0)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    sizes = {"block_out_channels": [8, 8, 16], "norm_num_groups": 4, "latent_channels": CHANNELS}
    return AutoencoderKL(**{**levels, **sizes, **settings}).eval()


@pytest.fixture(scope="module")
def network() -> Any:
    return make_network()


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("autoencoder") / "vae"
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def space(folder: Path) -> AutoencoderKl:
    return build(folder)


def build(weights: Path, patch: int | None = PATCH, **settings: Any) -> AutoencoderKl:
    return AutoencoderKlConfig(weights=str(weights), **settings).build(patch, TUBELET)


def make_frames(batch: int = 2, frames: int = 4, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, frames, 3, height, width, generator=seeded(0)) * 2 - 1


def changed(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy with other settings, or (None) without them."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | settings
    (to / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return to


def test_latents_are_the_posteriors_mode_of_every_frame(space: AutoencoderKl, network: Any) -> None:
    frames = make_frames()
    with torch.no_grad():
        modes = network.encode(frames.flatten(0, 1)).latent_dist.mode().unflatten(0, (2, 2, 2))
    latents = space.encode(frames)
    assert latents.shape == (2, 2, 4 * 6, CHANNELS * TUBELET)
    wanted = modes.permute(0, 1, 4, 5, 2, 3).reshape(latents.shape)
    torch.testing.assert_close(latents, wanted, rtol=1e-4, atol=1e-5)


def test_frames_come_back_by_the_networks_decoder(folder: Path, network: Any) -> None:
    frames, space = make_frames(), build(folder)
    space.fit(make_frames(batch=3))
    with torch.no_grad():
        wanted = network.decode(network.encode(frames.flatten(0, 1)).latent_dist.mode()).sample.unflatten(0, (2, 4))
    found = space.decode(space.encode(frames), 4, 6)
    assert found.shape == frames.shape
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_finer_grid_than_the_patches_is_folded_into_channels(folder: Path) -> None:
    coarse, frames = build(folder, patch=8), make_frames()
    latents = coarse.encode(frames)
    assert latents.shape == (2, 2, 2 * 3, CHANNELS * TUBELET * 4)
    torch.testing.assert_close(
        coarse.decode(latents, 2, 3), build(folder).decode(build(folder).encode(frames), 4, 6), rtol=1e-4, atol=1e-5
    )


def test_a_coarser_grid_than_the_patches_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="one latent every 4 pixels, which does not divide the patch of 2 pixels"):
        build(folder, patch=2)


def test_without_a_patch_a_token_is_a_latent(folder: Path) -> None:
    assert build(folder, patch=None).patch == 4


def test_a_pipelines_folder_the_vae_folder_and_a_file_are_the_same(folder: Path, space: AutoencoderKl) -> None:
    frames = make_frames()
    for weights in (folder.parent, folder / USUAL_NAME):
        other = build(weights)
        assert other.checksum == space.checksum
        assert torch.equal(other.encode(frames), space.encode(frames))


def test_the_checksum_is_that_of_settings_and_weights(folder: Path, space: AutoencoderKl, tmp_path: Path) -> None:
    assert build(changed(folder, tmp_path / "other", scaling_factor=2.0)).checksum != space.checksum
    same = changed(folder, tmp_path / "same")
    save_file({k: v + 1 for k, v in load_file(same / USUAL_NAME).items()}, same / USUAL_NAME)
    assert build(same).checksum != space.checksum


def test_a_variant_beside_the_usual_file_is_not_taken(folder: Path, space: AutoencoderKl, tmp_path: Path) -> None:
    both = changed(folder, tmp_path / "both")
    half = {name: tensor.half() for name, tensor in load_file(both / USUAL_NAME).items()}
    save_file(half, both / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(build(both).encode(make_frames()), space.encode(make_frames()))
    latents = build(both / "diffusion_pytorch_model.fp16.safetensors").encode(make_frames())
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, space.encode(make_frames()), rtol=0, atol=0.02)
    (both / USUAL_NAME).rename(both / "one.safetensors")
    with pytest.raises(UserError, match="holds 2 safetensors files and none is called"):
        build(both)


def test_weights_in_shards(network: Any, space: AutoencoderKl, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(build(tmp_path).encode(make_frames()), space.encode(make_frames()))


def test_attention_by_its_old_names(folder: Path, space: AutoencoderKl, tmp_path: Path) -> None:
    old = changed(folder, tmp_path / "old")
    names = {f".{new}.": f".{name}." for name, new in ATTENTION_NAMES.items()}
    saved = {}
    for name, tensor in load_file(old / USUAL_NAME).items():
        renamed = name
        for new, before in names.items():
            renamed = renamed.replace(new, before)
        saved[renamed] = tensor
    assert set(saved) != set(load_file(old / USUAL_NAME))
    save_file(saved, old / USUAL_NAME)
    assert torch.equal(build(old).encode(make_frames()), space.encode(make_frames()))


def test_without_quantising_convolutions(tmp_path: Path) -> None:
    network = make_network(use_quant_conv=False, use_post_quant_conv=False)
    network.save_pretrained(tmp_path)
    space, frames = build(tmp_path), make_frames()
    with torch.no_grad():
        wanted = network.decode(network.encode(frames.flatten(0, 1)).latent_dist.mode()).sample
    torch.testing.assert_close(space.decode(space.encode(frames), 4, 6).flatten(0, 1), wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def stated(folder: Path, tmp_path: Path) -> Path:
    return changed(folder, tmp_path / "stated", latents_mean=MEAN, latents_std=STD)


def normalised_by(space: AutoencoderKl) -> tuple[list[float], list[float]]:
    return [round(x, 4) for x in space.mean.tolist()], [round(x, 4) for x in space.std.tolist()]


def test_statistics_of_the_settings_are_used_and_not_measured_again(stated: Path, space: AutoencoderKl) -> None:
    known, frames = build(stated), make_frames()
    known.fit(frames)
    assert normalised_by(known) == (MEAN, STD)
    raw = space.encode(frames).unflatten(-1, (TUBELET, CHANNELS))
    found = known.encode(frames).unflatten(-1, (TUBELET, CHANNELS))
    torch.testing.assert_close(found, (raw - torch.tensor(MEAN)) / torch.tensor(STD), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(known.decode(known.encode(frames), 4, 6), space.decode(space.encode(frames), 4, 6))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_of_statistics_comes_first(stated: Path, suffix: str, tmp_path: Path) -> None:
    tensors = {"mean": torch.full((1, CHANNELS, 1, 1), 0.25), "std": torch.full((1, CHANNELS, 1, 1), 2.5)}
    file = tmp_path / f"latents_stats.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save(tensors, file)
    assert normalised_by(build(stated, statistics=str(file))) == ([0.25] * CHANNELS, [2.5] * CHANNELS)


def test_statistics_that_are_not_known_are_measured(folder: Path) -> None:
    space, frames = build(folder), make_frames(batch=4)
    space.fit(frames)
    cells = space.encode(frames).unflatten(-1, (TUBELET, CHANNELS)).flatten(0, 3)
    torch.testing.assert_close(cells.mean(0), torch.zeros(CHANNELS), rtol=0, atol=1e-4)
    torch.testing.assert_close(cells.std(0), torch.ones(CHANNELS), rtol=0, atol=1e-3)


def test_statistics_of_another_space(folder: Path, tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(4), "std": torch.ones(4)}, tmp_path / "four.safetensors")
    with pytest.raises(UserError, match="4 means and 4 deviations, and the space has 3 channels"):
        build(folder, statistics=str(tmp_path / "four.safetensors"))
    with pytest.raises(UserError, match=r"nowhere.safetensors"):
        build(folder, statistics=str(tmp_path / "nowhere.safetensors"))


def test_nothing_is_trained_and_only_statistics_are_kept(space: AutoencoderKl) -> None:
    assert not list(space.parameters())
    assert set(space.state_dict()) == {"mean", "std"}
    assert not space.encode(make_frames().requires_grad_()).requires_grad
    assert not any(module.training for module in space.network.modules())


def test_how_many_frames_go_at_once_changes_nothing(folder: Path, space: AutoencoderKl) -> None:
    few = build(folder)
    few.chunk = 3
    latents = space.encode(make_frames())
    torch.testing.assert_close(few.encode(make_frames()), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few.decode(latents, 4, 6), space.decode(latents, 4, 6), rtol=1e-4, atol=1e-5)


def test_mixed_precision_around_it_rounds_nothing_on_a_cpu(space: AutoencoderKl) -> None:
    wanted = space.encode(make_frames())
    with torch.autocast("cpu", torch.bfloat16):
        latents = space.encode(make_frames())
        frames = space.decode(latents, 4, 6)
    assert latents.dtype == frames.dtype == torch.float32
    assert torch.equal(latents, wanted)


def test_without_storage_shapes_and_costs_are_known_and_no_weights_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with torch.device("meta"):
        space = build(tmp_path)
        latents = space.encode(torch.zeros(2, 4, 3, 16, 24))
    assert latents.device.type == "meta"
    assert latents.shape == (2, 2, 24, space.channels)
    assert space.flops(6, 16) == 2 * space.flops(4, 16) > 0


def test_costs_are_counted_of_a_real_one_too(space: AutoencoderKl) -> None:
    assert space.flops(6, 16) == 2 * space.flops(4, 16) > 0
    assert space.encode(make_frames()).device.type == "cpu"


def without_one(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in saved.items() if name != "encoder.conv_in.bias"}


def with_another(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**saved, "loss.discriminator.weight": torch.zeros(3)}


def with_another_shape(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**saved, "encoder.conv_in.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_one, "encoder.conv_in.bias is missing"),
        (with_another, "loss.discriminator.weight is unknown"),
        (with_another_shape, r"encoder.conv_in.bias is \(7,\), not \(8,\)"),
    ],
)
def test_weights_must_be_exactly_those_of_the_settings(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str
) -> None:
    other = changed(folder, tmp_path / "other")
    save_file(change(load_file(other / USUAL_NAME)), other / USUAL_NAME)
    with pytest.raises(UserError, match=f"not the weights of the AutoencoderKL that .*config.json describes: {reason}"):
        build(other)


def test_another_class_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of the class VQModel, and this space reads AutoencoderKL"):
        build(changed(folder, tmp_path / "other", _class_name="VQModel"))
    with pytest.raises(UserError, match=r"is of the class \(none named\), and this space reads AutoencoderKL"):
        build(changed(folder, tmp_path / "none", _class_name=None))


def test_a_pickle_is_not_read(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other")
    torch.save(load_file(other / USUAL_NAME), other / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        build(other / "diffusion_pytorch_model.bin")
    (other / USUAL_NAME).unlink()
    with pytest.raises(UserError, match=r"the weights must be safetensors; diffusion_pytorch_model.bin is a pickle"):
        build(other)


def test_files_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no autoencoder at .*nowhere \(no config.json\)"):
        build(tmp_path / "nowhere")
    with pytest.raises(UserError, match="this target space needs weights"):
        AutoencoderKlConfig().build(PATCH, TUBELET)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"block_out_channels": [8, 8]}, "builds no AutoencoderKL"), ({"norm_num_groups": 3}, "builds no")],
)
def test_settings_that_build_nothing(folder: Path, tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build(changed(folder, tmp_path / "other", **settings))


def test_settings_that_are_no_json(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other")
    (other / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        build(other)
