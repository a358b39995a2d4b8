"""Autoencoders as target spaces: VA-VAE's public files, and those of ``nextvid vae train``."""

import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import nextvid
import nextvid.targets
from nextvid.errors import UserError
from nextvid.models.autoencoder import Autoencoder, AutoencoderConfig, parameters_of
from nextvid.targets.registry import build_space
from nextvid.targets.vae import VaeConfig, VaeSpace, VaVaeConfig
from nextvid.targets.vae_file import MEAN, latent_statistics, write_vae

KEYS = Path(__file__).with_name("vavae_f16d32_keys.txt")
SMALL = AutoencoderConfig(width=8, multipliers=(1, 2, 2), blocks=1, attention=(2,), latent_channels=3, groups=4)


def layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public checkpoint, without its first line, which counts them."""
    lines = KEYS.read_text().splitlines()[1:]
    return {line.split()[0]: tuple(map(int, re.findall(r"\d+", line.partition(" ")[2]))) for line in lines}


@pytest.fixture(scope="module")
def public() -> dict[str, Tensor]:
    """All 342 tensors of VA-VAE f16d32 with numbers of a network's size, and what the public file holds beside them."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in layout().items():
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        tensors[name] = scale * torch.randn(shape, generator=draw)
    return {
        **tensors,
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "foundation_model.model.blocks.0.attn.qkv.weight": torch.zeros(6, 2),
        "linear_proj.weight": torch.zeros(1024, 32, 1, 1),
    }


@pytest.fixture(scope="module")
def files(public: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("vavae")
    weights, statistics = folder / "vavae-imagenet256-f16d32-dinov2.pt", folder / "latents_stats.pt"
    torch.save({"state_dict": public, "epoch": 3}, weights)
    torch.save({"mean": torch.linspace(-1, 1, 32).view(1, 32, 1, 1), "std": torch.full((1, 32, 1, 1), 2.0)}, statistics)
    yield weights, statistics
    weights.unlink()


def test_the_layout_is_that_of_the_public_weights() -> None:
    with torch.device("meta"):
        network = Autoencoder(AutoencoderConfig())
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == layout()
    assert len(layout()) == 342
    assert parameters_of(AutoencoderConfig()) == 69_836_067


def test_the_public_files_are_read_whole(files: tuple[Path, Path], public: dict[str, Tensor]) -> None:
    weights, statistics = files
    space = nextvid.targets.load("vavae", weights=weights, statistics=statistics)
    held = dict(space.space.network.named_buffers())
    assert held.keys() == layout().keys()
    assert all(torch.equal(held[name], public[name]) for name in held)
    assert space.channels == 2 * 32
    assert len(space.checksum) == 64
    frames = torch.rand(1, 4, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    latents = space.encode(frames)
    assert latents.shape == (1, 2, 2 * 3, 64)
    assert space.grid(frames) == (2, 2, 3)
    network = Autoencoder(AutoencoderConfig())
    network.load_state_dict({name: public[name] for name in layout()})
    with torch.no_grad():
        mode = network.encode(frames[0] * 2 - 1).mean
    first = (mode[0] - torch.linspace(-1, 1, 32)[:, None, None]) / 2
    torch.testing.assert_close(latents[0, 0, :, :32], first.flatten(1).T, rtol=1e-4, atol=1e-4)
    assert space.decode(latents, 2, 3).shape == frames.shape


def save_bare(public: dict[str, Tensor], file: Path) -> None:
    torch.save(public, file.with_suffix(".pt"))


def save_safetensors(public: dict[str, Tensor], file: Path) -> None:
    save_file(public, file.with_suffix(".safetensors"))


@pytest.mark.parametrize("save", [save_bare, save_safetensors])
def test_both_wrappings_and_safetensors_are_read(
    save: Callable[[dict[str, Tensor], Path], None], public: dict[str, Tensor], files: tuple[Path, Path], tmp_path: Path
) -> None:
    save(public, tmp_path / "weights")
    (file,) = tmp_path.iterdir()
    space = build_space(VaVaeConfig(weights=str(file), statistics=str(files[1])), 16, 2)
    assert torch.equal(space.get_buffer("network.quant_conv.weight"), public["quant_conv.weight"])
    file.unlink()


def test_a_file_that_lacks_or_adds_keys_is_refused_with_the_list(
    public: dict[str, Tensor], files: tuple[Path, Path], tmp_path: Path
) -> None:
    wrong = {name: tensor for name, tensor in public.items() if not name.startswith("encoder.mid.attn_1")}
    wrong["encoder.extra.weight"] = torch.zeros(1)
    wrong["quant_conv.bias"] = torch.zeros(3)
    file = tmp_path / "wrong.pt"
    torch.save(wrong, file)
    with pytest.raises(UserError) as refused:
        VaVaeConfig(weights=str(file), statistics=str(files[1])).build(16, 2)
    said = str(refused.value)
    absent = [name for name in public if name.startswith("encoder.mid.attn_1")]
    assert f"{len(absent)} missing" in said
    assert all(name in said for name in (*absent, "encoder.extra.weight", "quant_conv.bias (3,), not (64,)"))
    file.unlink()


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("evil-was-here"),))


def test_code_in_a_checkpoint_is_not_run(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pt"
    file.write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        VaVaeConfig(weights=str(file), statistics=str(files[1])).build(16, 2)
    assert not (tmp_path / "evil-was-here").exists()


def test_statistics_are_asked_for_and_looked_at(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights = str(files[0])
    with pytest.raises(UserError, match=r"vavae needs statistics: the file latents_stats\.pt"):
        VaVaeConfig(weights=weights).build(16, 2)
    with pytest.raises(UserError, match="vavae needs weights"):
        VaVaeConfig().build(16, 2)
    with pytest.raises(UserError, match="there is no file"):
        VaVaeConfig(weights="nowhere.pt", statistics="nowhere.pt").build(16, 2)
    other = tmp_path / "other.pt"
    torch.save({"mean": torch.zeros(16), "std": torch.ones(16)}, other)
    with pytest.raises(UserError, match="16 means and 16 deviations, and the space has 32 channels"):
        VaVaeConfig(weights=weights, statistics=str(other)).build(16, 2)
    torch.save({"mean": torch.zeros(32), "std": torch.zeros(32)}, other)
    with pytest.raises(UserError, match="not above 0"):
        VaVaeConfig(weights=weights, statistics=str(other)).build(16, 2)


def test_a_grid_that_does_not_divide_is_refused_and_a_finer_one_is_folded() -> None:
    with torch.device("meta"):
        with pytest.raises(UserError, match="one latent every 16 pixels, which does not divide the patch of 8"):
            VaVaeConfig().build(8, 2)
        space = VaVaeConfig().build(32, 2)
    assert space.channels == 2 * 32 * 2 * 2


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A small autoencoder of one's own, as ``nextvid vae train`` writes it."""
    torch.manual_seed(0)
    network = Autoencoder(SMALL)
    mean, std = latent_statistics(network, torch.rand(32, 3, 16, 16) * 2 - 1)
    write_vae(network.state_dict(), mean, std, SMALL, {"recipe": "small", "step": 1}, tmp_path / "vae.safetensors")
    return tmp_path


def test_ones_own_autoencoder_is_read_from_its_run(own: Path) -> None:
    space = nextvid.targets.load("vae", weights=own)
    assert space.channels == 2 * 3
    frames = torch.randint(0, 256, (3, 4, 3, 16, 24), dtype=torch.uint8)
    latents = space.encode(frames)
    assert latents.shape == (3, 2, 4 * 6, 6)
    assert not latents.requires_grad
    torch.testing.assert_close(latents[1:], space.encode(frames[1:]), rtol=1e-4, atol=1e-5)
    drawn = space.decode(latents, 4, 6)
    assert drawn.shape == frames.shape
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_latents_over_frames_are_normalised(own: Path) -> None:
    space = nextvid.targets.load("vae", weights=own)
    latents = space.encode(torch.rand(16, 2, 3, 16, 16, generator=torch.Generator().manual_seed(3)))
    by_channel = latents.reshape(-1, 2, 3)
    assert by_channel.mean(dim=(0, 1)).abs().max() < 0.3
    assert (by_channel.std(dim=(0, 1)) - 1).abs().max() < 0.3


def test_folding_and_stacking_keep_every_number(own: Path) -> None:
    fine, folded = (VaeConfig(weights=str(own)).build(patch, 2) for patch in (4, 8))
    assert isinstance(folded, VaeSpace)
    frames = torch.rand(2, 4, 3, 16, 32) * 2 - 1
    latents, tokens = fine.encode(frames), folded.encode(frames)
    assert tokens.shape == (2, 2, 2 * 4, 2 * 3 * 4)
    assert torch.equal(folded.to_cells(tokens, 2, 4), fine.to_cells(latents, 4, 8))
    torch.testing.assert_close(folded.encode_next(frames), tokens[:, 1:])


def test_it_has_nothing_to_train_or_save_but_its_statistics(own: Path) -> None:
    space = VaeConfig(weights=str(own)).build(4, 2)
    assert list(space.parameters()) == []
    assert sorted(space.state_dict()) == ["mean", "std"]
    assert not space.encode(torch.rand(1, 2, 3, 8, 8, requires_grad=True)).requires_grad


def test_what_is_not_an_autoencoder_of_ours_is_refused(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no autoencoder at vae-fim"):
        VaeConfig(weights="vae-fim").build(4, 2)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="is not an autoencoder written by nextvid vae train"):
        VaeConfig(weights=str(other)).build(4, 2)
    saved = load_file(own / "vae.safetensors")
    saved.pop("quant_conv.bias")
    write_vae(
        {name: tensor for name, tensor in saved.items() if not name.startswith("latents.")},
        saved[MEAN],
        saved["latents.std"],
        SMALL,
        {},
        other,
    )
    with pytest.raises(UserError, match=r"quant_conv\.bias is missing"):
        VaeConfig(weights=str(other)).build(4, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no vae\.safetensors"):
        VaeConfig(weights=str(tmp_path / "empty")).build(4, 2)


def test_unknown_spaces_and_settings_are_named() -> None:
    assert nextvid.targets.names() == ["pixels", "vae", "vavae", "autoencoder_kl", "video_vae", "features"]
    with pytest.raises(UserError, match=r"there is no target space 'vavea'.*vavae"):
        nextvid.targets.load("vavea")
    with pytest.raises(UserError, match="the space pixels has no setting 'weights'"):
        nextvid.targets.load("pixels", weights="x.pt")
    with pytest.raises(UserError, match=r"whiten=2\.0 must lie in"):
        nextvid.targets.load("pixels", basis="dct", whiten=2.0)


def test_places_that_are_no_square_need_their_grid() -> None:
    space = nextvid.targets.load("pixels", patch=4)
    frames = torch.rand(1, 2, 3, 8, 16)
    latents = space.encode(frames)
    with pytest.raises(UserError, match="8 places are no square"):
        space.decode(latents)
    torch.testing.assert_close(space.decode(latents, 2, 4), frames, rtol=1e-4, atol=1e-5)


def test_targets_are_there_without_a_further_import() -> None:
    script = "import nextvid; print(nextvid.targets.load('pixels', patch=8).channels)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(2 * 3 * 8 * 8)


def test_the_interface_that_is_promised(own: Path) -> None:
    space = nextvid.targets.load("vae", weights=str(own / "vae.safetensors"))
    frames = torch.rand(1, 4, 3, 16, 16)
    assert space.decode(space.encode(frames)).shape == frames.shape
    assert (space.name, space.decodes) == ("vae", True)
