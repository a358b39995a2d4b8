"""Vision networks from their folders: maps on the patch grid, with the model's own pixels, and nothing that can run code."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextvid.errors import UserError
from nextvid.targets.vision import EfficientNetLite0, TransformersVision, load_vision

WIDTH, PATCH, SIZE = 16, 4, 16
TOKENS = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
SQUARE = {**TOKENS, "patch_size": PATCH, "image_size": SIZE}
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
VIT_LIKE = ["vit", "dinov2", "dinov2_with_registers", "siglip", "siglip_full", "siglip2", "clip", "clip_full"]
CONVOLUTIONAL = ["convnext", "resnet"]
BEFORE = {"vit": 1, "dinov2": 1, "dinov2_with_registers": 5, "clip": 1, "clip_full": 1}
"""Class and register tokens, where there are any."""


def make_model(kind: str) -> Any:
    import transformers as t  # noqa: PLC0415 (seconds)

    words = {**TOKENS, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    make: dict[str, Callable[[], Any]] = {
        "vit": lambda: t.ViTModel(t.ViTConfig(**SQUARE)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**{**SQUARE, "mlp_ratio": 2})),
        "dinov2_with_registers": lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**{**SQUARE, "mlp_ratio": 2, "num_register_tokens": 4})
        ),
        "siglip": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**SQUARE)),
        "siglip_full": lambda: t.SiglipModel(t.SiglipConfig(text_config=words, vision_config=SQUARE)),
        "siglip2": lambda: t.Siglip2VisionModel(t.Siglip2VisionConfig(**TOKENS, patch_size=PATCH, num_patches=16)),
        "clip": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**SQUARE)),
        "clip_full": lambda: t.CLIPModel(t.CLIPConfig(text_config=words, vision_config=SQUARE)),
        "convnext": lambda: t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])),
        "resnet": lambda: t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1] * 4)),
    }
    torch.manual_seed(0)
    model = make[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            make_model(kind).save_pretrained(made[kind])
            (made[kind] / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
        return made[kind]

    return folder


def images(size: int = SIZE, columns: int | None = None, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, columns or size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normalised(pictures: Tensor) -> Tensor:
    return ((pictures + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("kind", VIT_LIKE)
def test_tokens_of_every_layer_lie_on_the_patch_grid(folder_of: Callable[[str], Path], kind: str) -> None:
    vision = load_vision(str(folder_of(kind)))
    assert vision.widths == [WIDTH] * 4
    assert vision.strides == [PATCH] * 4
    for height, width in ((SIZE, SIZE), (24, 12)):
        for found in vision.maps(images(height, width), [0, 1, 2, 3]):
            assert found.shape == (2, WIDTH, height // PATCH, width // PATCH)


@pytest.mark.parametrize("kind", VIT_LIKE)
def test_maps_are_what_the_model_gives_for_its_own_pixels(folder_of: Callable[[str], Path], kind: str) -> None:
    model = make_model(kind)
    tower = model.vision_model if kind.endswith("_full") else model
    pixels = normalised(images())
    if kind == "siglip2":
        rows = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, -1)
        grid, mask = torch.tensor([[4, 4]] * 2), torch.ones(2, 16, dtype=torch.int64)
        wanted = tower(rows, mask, grid, output_hidden_states=True)
    else:
        wanted = tower(pixels, output_hidden_states=True)
    second, last = load_vision(str(folder_of(kind))).maps(images(), [1, 3])
    for found, state in ((second, wanted.hidden_states[1]), (last, wanted.last_hidden_state)):
        patches = state[:, BEFORE.get(kind, 0) :]
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), patches, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_a_convolutional_network_has_its_own_strides(folder_of: Callable[[str], Path], kind: str) -> None:
    vision = load_vision(str(folder_of(kind)))
    assert vision.strides[-4:] == [4, 8, 16, 32]
    assert vision.widths[-4:] == [8, 12, 16, 20]
    layers = list(range(vision.depth))
    with torch.no_grad():
        wanted = make_model(kind)(normalised(images(64, 96)), output_hidden_states=True).hidden_states
        found = vision.maps(images(64, 96), layers)
    for layer, state in zip(layers, wanted, strict=True):
        assert found[layer].shape == (2, vision.widths[layer], 64 // vision.strides[layer], 96 // vision.strides[layer])
        torch.testing.assert_close(found[layer], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*VIT_LIKE, *CONVOLUTIONAL])
def test_a_frozen_network_has_no_parameters_and_nothing_to_save(folder_of: Callable[[str], Path], kind: str) -> None:
    vision = load_vision(str(folder_of(kind)))
    assert not list(vision.parameters())
    assert not vision.state_dict()
    assert not any(module.training for module in vision.network.modules())


def test_a_library_still_finds_the_type_and_device_that_a_frozen_network_computes_in(
    folder_of: Callable[[str], Path],
) -> None:
    network: Any = load_vision(str(folder_of("vit"))).network
    moved = copy.deepcopy(network).to("meta")
    assert (network.dtype, network.device.type) == (torch.float32, "cpu")
    assert moved.device.type == "meta"


@pytest.mark.parametrize("kind", ["siglip_full", "siglip2", "convnext"])
def test_without_storage_it_has_its_shapes_and_reads_no_weights(
    folder_of: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folder_of(kind) / "config.json").read_bytes())
    with torch.device("meta"):
        vision = load_vision(str(tmp_path))
        found = vision.maps(torch.zeros(2, 3, 64, 64), [vision.depth - 1])[0]
    real = load_vision(str(folder_of(kind)))
    assert (vision.widths, vision.strides) == (real.widths, real.strides)
    assert found.device.type == "meta"
    assert found.shape == real.maps(images(64), [real.depth - 1])[0].shape


def test_the_checksum_is_that_of_settings_and_weights(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    for file in folder_of("vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert TransformersVision(tmp_path).checksum == load_vision(str(folder_of("vit"))).checksum
    before = TransformersVision(tmp_path).checksum
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    assert TransformersVision(tmp_path).checksum != before


def test_a_classifier_lends_its_body(tmp_path: Path) -> None:
    import transformers as t  # noqa: PLC0415 (seconds)

    model = t.ViTForImageClassification(t.ViTConfig(**SQUARE)).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    wanted = model.vit(normalised(images())).last_hidden_state[:, 1:]
    found = TransformersVision(tmp_path).maps(images(), [3])[0]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)


def test_a_picture_that_is_not_to_be_normalised(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder_of("vit") / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "image_mean": MEAN}))
    wanted = make_model("vit")((images() + 1) / 2).last_hidden_state[:, 1:]
    found = TransformersVision(tmp_path).maps(images(), [3])[0]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_there_is_not(folder_of: Callable[[str], Path], layer: int) -> None:
    with pytest.raises(UserError, match=rf"there is no layer {layer} in this vision network: its layers are 0 to 3"):
        load_vision(str(folder_of("vit"))).maps(images(), [1, layer])


def test_a_layer_that_the_packaged_network_has_not() -> None:
    with pytest.raises(UserError, match="there is no layer 17 in this vision network: its layers are 0 to 16"):
        EfficientNetLite0().maps(images(32), [17])


def test_a_folder_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no vision model at .*nowhere \(no config.json\)"):
        load_vision(str(tmp_path / "nowhere"))


def test_a_pickle_is_not_read(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder_of("vit") / "config.json").read_bytes())
    torch.save(make_model("vit").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no weights as safetensors; pytorch_model.bin is a pickle"):
        TransformersVision(tmp_path)


def test_missing_weights_are_not_made_up(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder_of("vit") / "config.json").read_bytes())
    saved = load_file(folder_of("vit") / "model.safetensors")
    gone = next(name for name in saved if "layer" in name)
    save_file({k: v for k, v in saved.items() if k != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"holds no complete ViTModel: .* are missing \(1 tensors\)"):
        TransformersVision(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "not a valid JSON file"),
        ('{"model_type": "none such"}', "does not recognize this architecture"),
        ('{"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2}', ""),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}', ""),
    ],
)
def test_a_folder_of_something_else(tmp_path: Path, config: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "code.py").write_text("raise SystemExit('code that came with weights was run')")
    with pytest.raises(UserError, match=f"cannot be read as a vision model of transformers: .*{reason}"):
        TransformersVision(tmp_path)


def test_weights_that_are_damaged(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder_of("vit") / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="cannot be read as a vision model of transformers"):
        TransformersVision(tmp_path)


def test_tokens_that_stand_elsewhere_are_not_guessed(tmp_path: Path) -> None:
    import transformers as t  # noqa: PLC0415 (seconds)

    t.YolosModel(t.YolosConfig(**SQUARE | {"image_size": [SIZE, SIZE]}, num_detection_tokens=7)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="YolosModel makes 24 tokens of a picture of 4x4 patches"):
        TransformersVision(tmp_path)
