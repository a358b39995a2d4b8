"""Latents of causal video autoencoders as a target space: aligned with tubelets, and blind to the future."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import seeded
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextvid.errors import UserError
from nextvid.targets.diffusers_folder import USUAL_NAME, stated_statistics
from nextvid.targets.video_vae import VideoVae, VideoVaeConfig

CHANNELS = 3
PATCH = {"cosmos": 4, "cosmos_2": 4, "wan": 4, "wan_patched": 8}
PERIOD = {"cosmos": 4, "cosmos_2": 2, "wan": 4, "wan_patched": 4}
KINDS = list(PERIOD)


def make_network(kind: str) -> Any:
    import diffusers  # noqa: PLC0415 (seconds)

    torch.manual_seed(0)
    if kind.startswith("cosmos"):
        network = diffusers.AutoencoderKLCosmos(
            latent_channels=CHANNELS,
            encoder_block_out_channels=(8, 8, 8, 8),
            decode_block_out_channels=(8, 8, 8, 8),
            attention_resolutions=(4,),
            resolution=16,
            num_layers=1,
            patch_size=2,
            spatial_compression_ratio=4,
            temporal_compression_ratio=PERIOD[kind],
            latents_mean=None,
            latents_std=None,
        )
    else:
        further = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True}
        network = diffusers.AutoencoderKLWan(
            base_dim=6,
            z_dim=CHANNELS,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.1, 0.2, 0.3],
            latents_std=[1.0, 2.0, 3.0],
            **(further if kind == "wan_patched" else {}),
        )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(kind) / "vae" for kind in KINDS}
    for kind, folder in made.items():
        make_network(kind).save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def spaces(folders: dict[str, Path]) -> dict[str, VideoVae]:
    return {kind: build(folder, kind) for kind, folder in folders.items()}


def build(weights: Path, kind: str, tubelet: int | None = None, patch: int | None = None, **settings: Any) -> VideoVae:
    config = VideoVaeConfig(weights=str(weights), **settings)
    return config.build(patch or PATCH[kind], tubelet or PERIOD[kind])


def make_frames(kind: str, batch: int = 2, latent_frames: int = 3, rows: int = 2, columns: int = 3) -> Tensor:
    shape = (batch, latent_frames * PERIOD[kind], 3, rows * PATCH[kind], columns * PATCH[kind])
    return torch.rand(shape, generator=seeded(0)) * 2 - 1


def changed(folder: Path, to: Path, **settings: Any) -> Path:
    to.mkdir()
    (to / USUAL_NAME).write_bytes((folder / USUAL_NAME).read_bytes())
    (to / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | settings))
    return to


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_covers_the_frames_of_its_tubelet(spaces: dict[str, VideoVae], kind: str) -> None:
    space, frames = spaces[kind], make_frames(kind)
    latents = space.encode(frames)
    assert space.grid(frames) == (3, 2, 3)
    assert latents.shape == (2, 3, 6, CHANNELS)
    assert space.decode(latents, 2, 3).shape == frames.shape


@pytest.mark.parametrize("kind", KINDS)
def test_no_later_frame_changes_an_earlier_latent(spaces: dict[str, VideoVae], kind: str) -> None:
    space, frames, period = spaces[kind], make_frames(kind, batch=1), PERIOD[kind]
    latents = space.encode(frames)
    for frame in range(frames.shape[1]):
        other = frames.clone()
        other[:, frame] += 0.5
        moved = (space.encode(other) - latents).abs().amax(dim=(0, 2, 3))
        own = frame // period
        assert torch.equal(moved[:own], torch.zeros(own))
        assert moved[own] > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_shorter_clip_has_the_same_latents(spaces: dict[str, VideoVae], kind: str) -> None:
    space, frames = spaces[kind], make_frames(kind)
    torch.testing.assert_close(
        space.encode(frames[:, : PERIOD[kind]]), space.encode(frames)[:, :1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_encoded_behind_a_copy_of_its_first_frame(spaces: dict[str, VideoVae], kind: str) -> None:
    space, frames = spaces[kind], make_frames(kind)
    led = torch.cat([frames[:, :1], frames], dim=1).transpose(1, 2)
    with torch.no_grad():
        wanted = make_network(kind).encode(led).latent_dist.mode()[:, :, 1:]
    raw = space.to_cells(space.encode(frames), 2, 3) * space.std[:, None, None] + space.mean[:, None, None]
    torch.testing.assert_close(raw.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_back_in_their_order(spaces: dict[str, VideoVae], kind: str) -> None:
    space, period = spaces[kind], PERIOD[kind]
    latents = torch.randn(1, 3, 6, CHANNELS, generator=seeded(2))
    frames = space.decode(latents, 2, 3)
    other = latents.clone()
    other[:, -1] += 1
    moved = (space.decode(other, 2, 3) - frames).abs().amax(dim=(0, 2, 3, 4))
    assert torch.equal(moved[: 2 * period], torch.zeros(2 * period))
    assert (moved[2 * period :] > 1e-4).all()


@pytest.mark.parametrize("kind", ["cosmos_2", "wan"])
def test_latents_of_a_longer_tubelet_are_stacked_on_channels(
    folders: dict[str, Path], spaces: dict[str, VideoVae], kind: str
) -> None:
    frames, period = make_frames(kind, latent_frames=4), PERIOD[kind]
    double = build(folders[kind], kind, tubelet=2 * period)
    latents, single = double.encode(frames), spaces[kind].encode(frames)
    assert (double.channels, double.grid(frames)) == (2 * CHANNELS, (2, 2, 3))
    torch.testing.assert_close(latents, single.unflatten(1, (2, 2)).transpose(2, 3).flatten(3))
    torch.testing.assert_close(double.decode(latents, 2, 3), spaces[kind].decode(single, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tubelet_that_latents_do_not_fill_is_refused(folders: dict[str, Path], kind: str) -> None:
    with pytest.raises(
        UserError, match=f"one latent every {PERIOD[kind]} frames.*set encoder.tubelet to {PERIOD[kind]}"
    ):
        build(folders[kind], kind, tubelet=PERIOD[kind] + 1)


def test_a_patch_that_latents_do_not_divide_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="one latent every 4 pixels, which does not divide the patch of 6 pixels"):
        build(folders["cosmos"], "cosmos", patch=6)


def test_a_clip_that_is_no_whole_number_of_tubelets(spaces: dict[str, VideoVae]) -> None:
    with pytest.raises(UserError, match="a clip of 6 frames of 8x12 pixels cannot be cut into tokens of 4 frames"):
        spaces["cosmos"].encode(make_frames("cosmos")[:, :6])


@pytest.mark.parametrize("kind", ["cosmos", "wan"])
def test_how_many_clips_go_at_once_changes_nothing(
    folders: dict[str, Path], spaces: dict[str, VideoVae], kind: str
) -> None:
    few, frames = build(folders[kind], kind), make_frames(kind, batch=3)
    few.chunk = 1
    latents = spaces[kind].encode(frames)
    torch.testing.assert_close(few.encode(frames), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few.decode(latents, 2, 3), spaces[kind].decode(latents, 2, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_trained_and_only_statistics_are_kept(spaces: dict[str, VideoVae], kind: str) -> None:
    space = spaces[kind]
    assert not list(space.parameters())
    assert set(space.state_dict()) == {"mean", "std"}
    assert not space.encode(make_frames(kind).requires_grad_()).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_around_it_rounds_nothing_on_a_cpu(spaces: dict[str, VideoVae], kind: str) -> None:
    space, frames = spaces[kind], make_frames(kind)
    wanted = space.encode(frames)
    with torch.autocast("cpu", torch.bfloat16):
        latents = space.encode(frames)
        drawn = space.decode(latents, 2, 3)
    assert latents.dtype == drawn.dtype == torch.float32
    assert torch.equal(latents, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_without_storage_shapes_and_costs_are_known_and_no_weights_read(
    folders: dict[str, Path], spaces: dict[str, VideoVae], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folders[kind] / "config.json").read_bytes())
    with torch.device("meta"):
        space = build(tmp_path, kind)
        latents = space.encode(torch.zeros(make_frames(kind).shape))
    assert latents.device.type == "meta"
    assert latents.shape == (2, 3, 6, CHANNELS)
    frames, size = 2 * PERIOD[kind], 2 * PATCH[kind]
    assert spaces[kind].flops(frames, size) == space.flops(frames, size) > 0
    assert space.encode(make_frames(kind).to("meta")).shape == latents.shape


def test_a_real_one_built_after_one_without_storage_works(
    folders: dict[str, Path], spaces: dict[str, VideoVae]
) -> None:
    with torch.device("meta"):
        build(folders["cosmos"], "cosmos")
    frames = make_frames("cosmos")
    assert torch.equal(build(folders["cosmos"], "cosmos").encode(frames), spaces["cosmos"].encode(frames))


def test_statistics_of_the_settings_a_number_a_channel(spaces: dict[str, VideoVae]) -> None:
    space = spaces["wan"]
    space.fit(make_frames("wan"))
    torch.testing.assert_close(space.mean, torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(space.std, torch.tensor([1.0, 2.0, 3.0]))


def test_cosmos_statistics_of_every_latent_frame_are_pooled_without_the_first(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    values = torch.randn(CHANNELS, 4, 50_000, generator=seeded(0)) * torch.tensor([9.0, 1, 2, 1])[:, None] + 3
    mean, std = values.mean(-1).flatten().tolist(), values.std(-1).flatten().tolist()
    known = changed(folders["cosmos"], tmp_path / "known", latents_mean=mean, latents_std=std)
    space = build(known, "cosmos")
    pooled = values[:, 1:].flatten(1)
    torch.testing.assert_close(space.mean, pooled.mean(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(space.std, pooled.std(-1), rtol=1e-3, atol=1e-3)


def test_statistics_that_say_nothing() -> None:
    assert stated_statistics({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, 3) is None
    assert stated_statistics({"latents_mean": [0.0] * 3, "latents_std": None}, 3) is None
    assert stated_statistics({}, 3) is None


def test_statistics_that_are_not_known_are_measured(folders: dict[str, Path]) -> None:
    space, frames = build(folders["cosmos"], "cosmos"), make_frames("cosmos", batch=4)
    space.fit(frames)
    values = space.encode(frames).flatten(0, 2)
    torch.testing.assert_close(values.mean(0), torch.zeros(CHANNELS), rtol=0, atol=1e-4)
    torch.testing.assert_close(values.std(0), torch.ones(CHANNELS), rtol=0, atol=1e-3)


def test_a_file_of_statistics_comes_first(folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(3), "std": torch.full((3,), 5.0)}, tmp_path / "statistics.safetensors")
    space = build(folders["wan"], "wan", statistics=str(tmp_path / "statistics.safetensors"))
    assert space.std.tolist() == [5.0] * 3


def test_the_checksum_is_that_of_settings_and_weights(
    folders: dict[str, Path], spaces: dict[str, VideoVae], tmp_path: Path
) -> None:
    assert build(folders["wan"].parent, "wan").checksum == spaces["wan"].checksum
    other = changed(folders["wan"], tmp_path / "other", latents_mean=[0.0] * 3)
    assert build(other, "wan").checksum not in ("", spaces["wan"].checksum)


def test_weights_must_be_exactly_those_of_the_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    other = changed(folders["cosmos"], tmp_path / "other")
    saved = load_file(other / USUAL_NAME)
    saved.pop("quant_conv.bias")
    save_file(saved, other / USUAL_NAME)
    with pytest.raises(UserError, match=r"the AutoencoderKLCosmos that .* describes: quant_conv.bias is missing"):
        build(other, "cosmos")


def test_a_class_that_is_not_causal_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="AutoencoderKLCogVideoX, and this space reads AutoencoderKLCosmos and AutoencoderKLWan"
    ):
        build(changed(folders["cosmos"], tmp_path / "other", _class_name="AutoencoderKLCogVideoX"), "cosmos")


def test_a_compression_that_the_network_does_not_keep_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    halved = make_network("wan").from_config({**make_network("wan").config, "temperal_downsample": [False, True]})
    halved.save_pretrained(tmp_path)
    frames = make_frames("wan", latent_frames=1)[:, :2]
    with pytest.raises(UserError, match=r"makes 1 latent frames of 3 frames, where its config.json promises 2"):
        build(tmp_path, "wan", tubelet=2).encode(frames)
