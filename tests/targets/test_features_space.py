"""Features of a frozen vision network as a target space: one cell a patch or finer, normalised, and without a way back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import seeded
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional

from nextvid.errors import UserError
from nextvid.targets.features import Features, FeaturesConfig
from nextvid.targets.registry import AnyTarget, build_space
from nextvid.targets.vision import load_vision

PATCH, TUBELET = 4, 2


def make_frames(batch: int = 2, frames: int = 4, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, frames, 3, height, width, generator=seeded(0)) * 2 - 1


@pytest.fixture(scope="module")
def packaged() -> Features:
    return FeaturesConfig().build(PATCH, TUBELET)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel  # noqa: PLC0415 (seconds)

    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(**sizes, patch_size=8, image_size=32)).save_pretrained(folder)
    return folder


def test_by_default_the_packaged_network_sees_frames_so_large_that_a_cell_is_a_patch(packaged: Features) -> None:
    frames = make_frames()
    latents = packaged.encode(frames)
    assert (packaged.channels, packaged.layer, packaged.scale) == (112 * TUBELET, 10, 4)
    assert latents.shape == (2, 2, 4 * 6, 224)
    large = functional.interpolate(frames.flatten(0, 1), scale_factor=4, mode="bilinear")
    wanted = load_vision("efficientnet-lite0").maps(large, [10])[0].unflatten(0, (2, 2, 2))
    torch.testing.assert_close(latents, wanted.permute(0, 1, 4, 5, 2, 3).reshape(2, 2, 24, 224), rtol=1e-4, atol=1e-4)


def test_a_patch_of_its_own_stride_is_seen_as_it_is() -> None:
    assert FeaturesConfig().build(16, 2).scale == 1
    assert FeaturesConfig().build(32, 2).scale == 0.5


def test_without_a_patch_a_token_is_a_cell() -> None:
    assert FeaturesConfig().build(None, 2).patch == 16
    assert FeaturesConfig(scale=2.0).build(None, 2).patch == 8
    assert FeaturesConfig(layer=4).build(None, 2).patch == 8


def test_a_finer_map_is_folded_into_channels() -> None:
    fine = FeaturesConfig(scale=8.0).build(PATCH, TUBELET)
    assert (fine.fold, fine.channels) == (2, 4 * 112 * TUBELET)
    latents = fine.encode(make_frames())
    assert latents.shape == (2, 2, 24, 896)
    cells = FeaturesConfig(scale=8.0).build(2, TUBELET).encode(make_frames())
    folded = latents.unflatten(2, (4, 6)).unflatten(-1, (TUBELET, 112, 2, 2)).permute(0, 1, 2, 6, 3, 7, 4, 5)
    torch.testing.assert_close(folded.reshape(2, 2, 8 * 12, TUBELET * 112), cells, rtol=1e-4, atol=1e-4)


def test_frames_are_smoothed_before_they_are_shrunk() -> None:
    space, frames = FeaturesConfig(layer=4, scale=0.5).build(16, 1), make_frames(1, 1, 64, 64)
    small = functional.interpolate(frames[0], (32, 32), mode="bilinear", antialias=True)
    wanted = load_vision("efficientnet-lite0").maps(small, [4])[0]
    torch.testing.assert_close(space.encode(frames)[0, 0].T, wanted[0].flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "patch", "every"),
    [(3.0, 4, "5.33333"), (5.0, 4, "3.2"), (2.0, 4, "8"), (1.0, 12, "16"), (32.0, 4, "0.5")],
)
def test_a_scale_whose_cells_do_not_lie_on_the_patch_grid(scale: float, patch: int, every: str) -> None:
    with pytest.raises(
        UserError, match=rf"objective.target.scale={scale:g}: layer 10 of efficientnet-lite0 .* every {every} "
    ):
        FeaturesConfig(scale=scale).build(patch, TUBELET)


def test_the_error_names_scales_that_fit() -> None:
    with pytest.raises(UserError, match="set it to one of 4, 8, 16, or leave it out for 4"):
        FeaturesConfig(scale=3.0).build(4, TUBELET)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_that_make_no_space(scale: float) -> None:
    with pytest.raises(ValueError, match=r"scale=.* must be above 0"):
        FeaturesConfig(scale=scale)


@pytest.mark.parametrize("layer", [-1, 17])
def test_a_layer_that_there_is_not(layer: int) -> None:
    with pytest.raises(UserError, match=f"there is no layer {layer} in this vision network: its layers are 0 to 16"):
        FeaturesConfig(layer=layer).build(PATCH, TUBELET)


def test_any_vision_model_of_transformers_by_its_last_layer(vit: Path) -> None:
    space = FeaturesConfig(network=str(vit)).build(PATCH, TUBELET)
    assert (space.layer, space.scale, space.channels) == (3, 2, 16 * TUBELET)
    assert space.encode(make_frames()).shape == (2, 2, 24, 32)
    assert FeaturesConfig(network=str(vit), layer=1).build(PATCH, TUBELET).layer == 1


def test_fitted_features_have_mean_0_and_deviation_1_in_every_channel(vit: Path) -> None:
    space = FeaturesConfig(network=str(vit)).build(PATCH, TUBELET)
    frames = make_frames(batch=4)
    space.fit(frames)
    cells = space.encode(frames).unflatten(-1, (TUBELET, 16)).flatten(0, 3)
    torch.testing.assert_close(cells.mean(0), torch.zeros(16), rtol=0, atol=1e-4)
    torch.testing.assert_close(cells.std(0), torch.ones(16), rtol=0, atol=1e-3)


def test_there_is_no_way_back(packaged: Features) -> None:
    assert not packaged.decodes
    with pytest.raises(UserError, match="features have no way back to frames"):
        packaged.decode(packaged.encode(make_frames()))


def test_nothing_is_trained_and_only_statistics_are_kept(packaged: Features) -> None:
    assert not list(packaged.parameters())
    assert set(packaged.state_dict()) == {"mean", "std"}
    assert packaged.checksum == load_vision("efficientnet-lite0").checksum
    assert not packaged.encode(make_frames().requires_grad_()).requires_grad


def test_how_many_frames_go_at_once_changes_nothing(packaged: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = make_frames()
    together = packaged.encode(frames)
    monkeypatch.setattr("nextvid.targets.features.PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(packaged.encode(frames), together, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(packaged, "chunk", 3)
    torch.testing.assert_close(packaged.encode(frames), together, rtol=1e-4, atol=1e-4)


def test_mixed_precision_around_it_rounds_nothing_on_a_cpu(packaged: Features, vit: Path) -> None:
    for space in (packaged, FeaturesConfig(network=str(vit)).build(PATCH, TUBELET)):
        wanted = space.encode(make_frames())
        with torch.autocast("cpu", torch.bfloat16):
            latents = space.encode(make_frames())
        assert latents.dtype == torch.float32
        assert torch.equal(latents, wanted)


@pytest.mark.parametrize("network", ["efficientnet-lite0", "vit"])
def test_without_storage_shapes_and_costs_are_known(network: str, vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    settings: dict[str, Any] = {} if network != "vit" else {"network": str(tmp_path)}
    with torch.device("meta"):
        space = build_space(FeaturesConfig(**settings), PATCH, TUBELET)
        latents = space.encode(torch.zeros(2, 4, 3, 16, 24))
    assert latents.device.type == "meta"
    assert latents.shape == (2, 2, 24, space.channels)
    assert space.flops(6, 16) == 2 * space.flops(4, 16) > 0


def test_a_recipe_names_it_and_strictly() -> None:
    read = TypeAdapter(AnyTarget).validate_python
    assert read({"name": "features", "layer": 4, "scale": 2}) == FeaturesConfig(layer=4, scale=2.0)
    with pytest.raises(ValidationError, match="scael"):
        read({"name": "features", "scael": 2})


def test_a_network_that_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(UserError, match="cannot be read as a vision model of transformers"):
        FeaturesConfig(network=str(tmp_path)).build(PATCH, TUBELET)
