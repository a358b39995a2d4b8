"""transformers' models from their folders: their own tokens, for pixels prepared here by hand, laid out in time and place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.encoders import FrozenEncoder, open_encoder
from nextvid.evaluation.encoders.preprocessing import read_preprocessing, resized

WIDTH, PATCH, SIZE, LAYERS = 24, 4, 16, 3
TOKENS = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
SQUARE = {**TOKENS, "patch_size": PATCH, "image_size": SIZE}
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
IMAGE = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": SIZE, "width": SIZE},
}
VIDEO = {
    **IMAGE,
    "resample": 2,
    "size": {"shortest_edge": 18},
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
}
VIVIT = {**VIDEO, "image_processor_type": "VivitImageProcessor", "rescale_factor": 1 / 127.5, "offset": True}
VIDEOS = ["videomae", "videomae_pooled", "vjepa2", "vivit", "timesformer", "timesformer_space", "timesformer_joint"]
IMAGES = ["vit", "ijepa", "dinov2", "dinov3", "siglip", "siglip_full", "siglip2", "clip"]
BEFORE = {"vit": 1, "dinov2": 1, "dinov3": 5, "clip": 1}
FRAMES = 4
"""That the models of a fixed number take."""


def make_config(kind: str) -> Any:
    import transformers as t  # noqa: PLC0415 (seconds)

    words = {**TOKENS, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    clip = {"num_frames": FRAMES}
    jepa = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "mlp_ratio": 2}
    make: dict[str, Callable[[], Any]] = {
        "videomae": lambda: t.VideoMAEConfig(**SQUARE, **clip, tubelet_size=2, use_mean_pooling=False, **DECODER),
        "videomae_pooled": lambda: t.VideoMAEConfig(**SQUARE, **clip, tubelet_size=2, **DECODER),
        "vjepa2": lambda: t.VJEPA2Config(**TOKENS, patch_size=PATCH, crop_size=SIZE, frames_per_clip=FRAMES, **jepa),
        "vivit": lambda: t.VivitConfig(**TOKENS, **clip, image_size=SIZE, tubelet_size=[2, PATCH, PATCH]),
        "timesformer": lambda: t.TimesformerConfig(**SQUARE, **clip),
        "timesformer_space": lambda: t.TimesformerConfig(**SQUARE, **clip, attention_type="space_only"),
        "timesformer_joint": lambda: t.TimesformerConfig(**SQUARE, **clip, attention_type="joint_space_time"),
        "vit": lambda: t.ViTConfig(**SQUARE),
        "ijepa": lambda: t.IJepaConfig(**SQUARE),
        "dinov2": lambda: t.Dinov2Config(**SQUARE, mlp_ratio=2),
        "dinov3": lambda: t.DINOv3ViTConfig(**SQUARE, num_register_tokens=4),
        "siglip": lambda: t.SiglipVisionConfig(**SQUARE),
        "siglip_full": lambda: t.SiglipConfig(text_config=words, vision_config=SQUARE),
        "siglip2": lambda: t.Siglip2VisionConfig(**TOKENS, patch_size=PATCH, num_patches=16),
        "clip": lambda: t.CLIPVisionConfig(**SQUARE),
    }
    return make[kind]()


DECODER = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


def shaken(model: Any) -> Any:
    """``model`` with weights that are nowhere zero or one, so that every one of them counts."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def make_model(kind: str) -> Any:
    from transformers import AutoModel  # noqa: PLC0415 (seconds)

    torch.manual_seed(0)
    return shaken(AutoModel.from_config(make_config(kind)))


def save(model: Any, folder: Path, processor: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    model.save_pretrained(folder)
    (folder / name).write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            processor = VIVIT if kind == "vivit" else VIDEO if kind in VIDEOS else IMAGE
            name = "video_preprocessor_config.json" if kind == "vjepa2" else "preprocessor_config.json"
            made[kind] = save(make_model(kind), tmp_path_factory.mktemp(kind), processor, name)
        return made[kind]

    return folder


def opened(folder: Path) -> FrozenEncoder:
    return open_encoder(f"hf:{folder}")


def clip(frames: int = FRAMES, size: int = SIZE, batch: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, frames, 3, size, size), dtype=torch.uint8, generator=draw)


def by_hand(frames: Tensor, vivit: bool = False) -> Tensor:
    unit = frames.double() / 127.5 - 1 if vivit else frames.double() / 255
    return ((unit - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).float()


def states(kind: str, frames: Tensor) -> list[Tensor]:
    """What comes out of every block of the model itself, the last one as its output."""
    pixels = by_hand(frames, kind == "vivit")
    given = {"pixel_values_videos": pixels, "skip_predictor": True} if kind == "vjepa2" else {"pixel_values": pixels}
    with torch.no_grad():
        found = make_model(kind)(**given, output_hidden_states=True)
    return [*found.hidden_states[1:-1], found.last_hidden_state]


def in_order(kind: str, state: Tensor, batch: int = 2) -> Tensor:
    """Tokens by clip, time and place, by the layouts that the models' sources name."""
    if kind == "timesformer_space":  # (b t) (1 + h w)
        return state[:, 1:].reshape(batch, FRAMES, 16, WIDTH)
    if kind.startswith("timesformer"):  # b (1 + h w t)
        return state[:, 1:].reshape(batch, 16, FRAMES, WIDTH).permute(0, 2, 1, 3)
    return state[:, state.shape[1] % 2 :].reshape(batch, FRAMES // 2, 16, WIDTH)  # b ([1 +] t h w)


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_models_tokens_are_its_own(folder_of: Callable[[str], Path], kind: str) -> None:
    encoder = opened(folder_of(kind))
    assert (encoder.kind, encoder.width, encoder.layers, encoder.size) == ("transformers", WIDTH, LAYERS, SIZE)
    encoder.check(ClipSpec(FRAMES, 8.0, SIZE))
    found = encoder.encode(clip(), [2, 0])
    wanted = states(kind, clip())
    for tokens, layer in zip(found, (2, 0), strict=True):
        torch.testing.assert_close(tokens, in_order(kind, wanted[layer]), rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder(clip()), found[0])
    assert torch.equal(encoder(clip(), [0, 2]), torch.cat([found[1], found[0]], dim=1))


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_model_reads_every_frame_by_itself(folder_of: Callable[[str], Path], kind: str) -> None:
    encoder = opened(folder_of(kind))
    assert (encoder.kind, encoder.width, encoder.layers, encoder.size) == ("transformers", WIDTH, LAYERS, SIZE)
    model = make_model(kind)
    tower = model.vision_model if kind == "siglip_full" else model
    pixels = by_hand(clip(5)).flatten(0, 1)
    with torch.no_grad():
        if kind == "siglip2":
            rows = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 4, 5, 1).reshape(10, 16, -1)
            wanted = tower(rows, torch.ones(10, 16).long(), torch.tensor([[4, 4]] * 10), output_hidden_states=True)
        else:
            wanted = tower(pixels, output_hidden_states=True)
    encoder.check(ClipSpec(5, 8.0, SIZE))
    first, last = encoder.encode(clip(5), [0, LAYERS - 1])
    for tokens, state in ((first, wanted.hidden_states[1]), (last, wanted.last_hidden_state)):
        patches = state[:, BEFORE.get(kind, 0) :].unflatten(0, (2, 5))
        torch.testing.assert_close(tokens, patches, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in VIDEOS if kind != "timesformer_space"])
def test_tokens_stand_where_the_picture_changes(folder_of: Callable[[str], Path], kind: str) -> None:
    """With attention silenced a token of the first layer knows its own patch only: one patch is changed, one token is."""
    encoder = opened(folder_of(kind))
    network: Any = encoder.network
    with torch.no_grad():
        for name, values in network.named_buffers():
            if any(part in name for part in ("attention.output", "temporal_dense", "o_proj", "attention.proj")):
                values.zero_()
    changed = clip()
    changed[1, 3, :, 4:8, 8:12] = 255 - changed[1, 3, :, 4:8, 8:12]  # the last frame, row 1, column 2
    moved = (encoder.encode(clip(), [0])[0] - encoder.encode(changed, [0])[0]).abs().amax(dim=-1) > 1e-6
    assert moved.nonzero().tolist() == [[1, moved.shape[1] - 1, 1 * 4 + 2]]


@pytest.mark.parametrize(("kind", "wanted"), [("videomae", "VideoMAE"), ("vjepa2", "VJEPA2"), ("vivit", "Vivit")])
def test_a_classifier_lends_its_backbone(
    folder_of: Callable[[str], Path], kind: str, wanted: str, tmp_path: Path
) -> None:
    import transformers as t  # noqa: PLC0415 (seconds)

    model = shaken(getattr(t, f"{wanted}ForVideoClassification")(make_config(kind)))
    encoder = opened(save(model, tmp_path, VIDEO))
    argument = "pixel_values_videos" if kind == "vjepa2" else "pixel_values"
    with torch.no_grad():
        state = getattr(model, kind)(**{argument: by_hand(clip())}).last_hidden_state
    torch.testing.assert_close(encoder(clip()), in_order(kind, state), rtol=1e-4, atol=1e-5)


def test_a_model_saved_with_its_decoder_lends_its_backbone(tmp_path: Path) -> None:
    import transformers as t  # noqa: PLC0415 (seconds)

    model = shaken(t.VideoMAEForPreTraining(make_config("videomae")))
    encoder = opened(save(model, tmp_path, VIDEO))
    with torch.no_grad():
        state = model.videomae(by_hand(clip())).last_hidden_state
    torch.testing.assert_close(encoder(clip()), in_order("videomae", state), rtol=1e-4, atol=1e-5)


def test_vjepa2_without_its_predictor_is_complete_and_keeps_none(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = make_model("vjepa2")
    state = {name: values for name, values in model.state_dict().items() if not name.startswith("predictor.")}
    model.save_pretrained(tmp_path, state_dict=state)
    shutil.copy(folder_of("vjepa2") / "video_preprocessor_config.json", tmp_path)
    encoder = opened(tmp_path)
    assert not any("predictor" in name for name, _ in encoder.named_buffers())
    assert torch.equal(encoder(clip()), opened(folder_of("vjepa2"))(clip()))


@pytest.mark.parametrize("kind", ["videomae", "vivit", "timesformer"])
def test_a_fixed_number_of_frames_is_sampled_or_held_and_said(folder_of: Callable[[str], Path], kind: str) -> None:
    encoder = opened(folder_of(kind))
    assert encoder.preprocessing["frames"] == "4, evenly spaced or held"
    long = clip(12)
    for given, same, said in (
        (long, long[:, [0, 3, 6, 9]], "4 of 12, evenly spaced"),
        (long[:, :2], long[:, [0, 0, 1, 1]], "4 of 2, each held 2 times"),
        (long[:, :1], long[:, [0] * 4], "4 of 1, each held 4 times"),
        (long[:, :4], long[:, :4], "all 4"),
    ):
        encoder.check(ClipSpec(given.shape[1], 8.0, SIZE))
        assert encoder.preprocessing["frames"] == said
        assert torch.equal(encoder(given), encoder(same))
    for call in (lambda: encoder.check(ClipSpec(6, 8.0, SIZE)), lambda: encoder(clip(6))):
        with pytest.raises(UserError, match="takes 4 frames, and a clip of 6 cannot be sampled evenly to that: give"):
            call()


def test_vjepa2_takes_any_whole_number_of_tubelets(folder_of: Callable[[str], Path]) -> None:
    encoder = opened(folder_of("vjepa2"))
    assert encoder.preprocessing["frames"] == "as given"
    assert encoder(clip(10)).shape == (2, 5, 16, WIDTH)
    torch.testing.assert_close(encoder(clip(1)), encoder(clip(1).expand(-1, 2, -1, -1, -1)))
    encoder.check(ClipSpec(1, 8.0, SIZE))
    assert encoder.preprocessing["frames"] == "2 of 1, each held 2 times"
    with pytest.raises(UserError, match="takes 2 frames at a time, and clips have 5: give a multiple of 2"):
        encoder.check(ClipSpec(5, 8.0, SIZE))


@pytest.mark.parametrize("kind", ["videomae", "vjepa2", "siglip"])
def test_clips_of_another_size_are_resized_to_the_models_own(folder_of: Callable[[str], Path], kind: str) -> None:
    encoder = opened(folder_of(kind))
    large = clip(size=40)
    small = resized(large, SIZE, "bicubic" if kind == "siglip" else "bilinear").to(torch.uint8)
    encoder.check(ClipSpec(FRAMES, 8.0, 40))
    assert torch.equal(encoder(large), encoder(small))


def test_pixels_are_those_of_the_models_processor(tmp_path: Path) -> None:
    """ViViT's is the one that needs no torchvision; VideoMAE's and ViT's have siblings that do not."""
    from transformers import VivitImageProcessor  # noqa: PLC0415 (seconds)
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil  # noqa: PLC0415
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # noqa: PLC0415

    square = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    sizes = {"size": {"height": SIZE, "width": SIZE}}
    for number, processor in enumerate(
        [
            VivitImageProcessor(**square, image_mean=MEAN, image_std=STD),
            VivitImageProcessor(**square, offset=False, rescale_factor=1 / 255, do_normalize=False),
            VideoMAEImageProcessorPil(**square, image_mean=MEAN, image_std=STD, resample=3),
            ViTImageProcessorPil(**sizes, do_rescale=False),
        ]
    ):
        folder = tmp_path / str(number)
        processor.save_pretrained(folder)
        prepare = read_preprocessing(folder)
        for size, tolerance in ((SIZE, 1e-5), (40, 0.015)):
            frames = clip(size=size, batch=1)
            pictures = list(frames[0].permute(0, 2, 3, 1).numpy())
            wanted = (
                torch.from_numpy(np.array(processor(pictures)["pixel_values"])).float().reshape(1, 4, 3, SIZE, SIZE)
            )
            scale = wanted.abs().amax().clamp_min(1)
            torch.testing.assert_close(prepare(frames, SIZE) / scale, wanted / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("fields", "size", "scale", "offset", "resize"),
    [
        (VIDEO, 16, 1 / 255, 0.0, "bilinear"),
        (IMAGE, 16, 1 / 255, 0.0, "bicubic"),
        (VIVIT, 16, 1 / 127.5, 1.0, "bilinear"),
        ({**VIVIT, "offset": False}, 16, 1 / 127.5, 0.0, "bilinear"),
        ({"image_mean": MEAN, "image_std": STD, "size": 224, "do_center_crop": True}, 224, 1 / 255, 0.0, "bilinear"),
        ({**VIDEO, "do_center_crop": False}, 18, 1 / 255, 0.0, "bilinear"),
        ({**IMAGE, "crop_size": None, "do_center_crop": None, "do_rescale": False}, 16, 1.0, 0.0, "bicubic"),
        (
            {"image_mean": 0.5, "image_std": 0.5, "max_num_patches": 256, "patch_size": 16},
            256,
            1 / 255,
            0.0,
            "bilinear",
        ),
    ],
)
def test_a_processors_file_is_read(
    tmp_path: Path, fields: dict[str, Any], size: int, scale: float, offset: float, resize: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = read_preprocessing(tmp_path)
    assert (found.size, found.scale, found.offset, found.resize) == (size, scale, offset, resize)
    assert found.record(found.size)["read_from"] == "preprocessor_config.json"


def test_statistics_may_be_left_out_where_nothing_is_normalised(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": {"do_normalize": False, "size": 16}})
    )
    found = read_preprocessing(tmp_path)
    assert (found.mean, found.std, found.file) == ((0.0,) * 3, (1.0,) * 3, "processor_config.json")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image_mean": None}, "has no image_mean, and it is not guessed: write in the three numbers"),
        ({"image_std": [1.0, 1.0]}, r"has image_std \[1.0, 1.0\]: give three numbers"),
        ({"image_std": [1.0, 0.0, 1.0]}, "a deviation must be above 0"),
        ({"image_mean": ["a", 1, 1]}, "has image_mean 'a', which is no number"),
        ({"size": {"height": 16, "width": 20}}, "which is that of no square: set size"),
        ({"size": None}, "has no size: set size"),
        ({"resample": 1}, "asks for resampling 1, which is not known here: set resample to 2"),
    ],
)
def test_what_a_processors_file_leaves_open_is_not_guessed(
    tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**IMAGE, **fields}))
    with pytest.raises(UserError, match=rf"preprocessor_config.json .*{sentence}"):
        read_preprocessing(tmp_path)


def test_a_processors_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config.json cannot be read as JSON"):
        read_preprocessing(tmp_path)


def copied(folder: Path, to: Path, *names: str) -> Path:
    for name in names:
        shutil.copy(folder / name, to)
    return to


@pytest.mark.parametrize("kind", ["videomae", "dinov2"])
def test_a_model_without_a_processors_file_is_refused(
    folder_of: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    copied(folder_of(kind), tmp_path, "config.json", "model.safetensors")
    with pytest.raises(
        UserError, match=r"mean and deviation are not guessed. Put the file there that came with the model"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["vivit", "siglip"])
def test_missing_weights_are_not_made_up(folder_of: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    copied(folder_of(kind), tmp_path, "config.json", "preprocessor_config.json")
    saved = load_file(folder_of(kind) / "model.safetensors")
    lost = next(name for name in sorted(saved) if "layer" in name and name.endswith("weight"))
    save_file({k: v for k, v in saved.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"holds no complete .* are missing"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["videomae", "dinov2"])
def test_a_pickle_is_not_read(folder_of: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    copied(folder_of(kind), tmp_path, "config.json", "preprocessor_config.json")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no weights as safetensors; pytorch_model.bin is a pickle"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"model_type": "videomea"},
            r"the type 'videomea' \(did you mean 'videomae'\?\), whose tokens are not known here",
        ),
        (
            {"model_type": "bert"},
            "known are the video models videomae, vjepa2, vivit, timesformer and the image models",
        ),
        ({"architectures": ["X"]}, "names no model_type, so it is no model of transformers"),
        ([], "holds no settings, but a list"),
    ],
)
def test_a_folder_of_something_else(tmp_path: Path, config: Any, sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path)


def test_a_folder_that_there_is_not() -> None:
    with pytest.raises(
        UserError, match=r"there is no model at facebook/vjepa2 \(no config.json\).* none is downloaded"
    ):
        open_encoder("hf:facebook/vjepa2")


def test_a_model_of_wide_pictures_is_refused(tmp_path: Path) -> None:
    import transformers as t  # noqa: PLC0415 (seconds)

    config = t.VideoMAEConfig(**{**SQUARE, "image_size": [16, 24]}, num_frames=FRAMES)
    save(t.VideoMAEModel(config), tmp_path, VIDEO)
    with pytest.raises(UserError, match="which are not square: it cannot be read here"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["videomae", "dinov2"])
def test_the_digest_is_of_weights_and_preprocessing(
    folder_of: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    before = opened(folder_of(kind))
    copied(folder_of(kind), tmp_path, "config.json", "preprocessor_config.json", "model.safetensors")
    assert opened(tmp_path).digest == before.digest
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0.0, 0.0, 0.0]}))
    assert opened(tmp_path).digest != before.digest
    before.check(ClipSpec(8, 8.0, SIZE))
    assert before.digest == opened(folder_of(kind)).digest


@pytest.mark.parametrize("kind", ["videomae", "dinov2"])
def test_a_layer_that_there_is_not(folder_of: Callable[[str], Path], kind: str) -> None:
    with pytest.raises(UserError, match="has layers 0 to 2, and no layer 3: mend layers"):
        opened(folder_of(kind))(clip(), [3])


def test_a_choice_of_weights_is_for_our_own_files(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(
        UserError, match="has one set of weights, and no 'ema' beside it: leave the choice of weights out"
    ):
        open_encoder(f"hf:{folder_of('vit')}", "ema")


def test_its_record_can_be_written(folder_of: Callable[[str], Path]) -> None:
    for kind in ("videomae", "vit"):
        record = opened(folder_of(kind)).preprocessing
        assert json.loads(json.dumps(record)) == record
        assert record["mean"] == MEAN
