"""Latents beside prepared shards: what is stored is what training would compute, whole or absent, and made once."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from media import numbered, write_numbered, write_picture, write_video
from rich.console import Console
from small_vae import small_vae

from nextvid.data.clip import ClipSpec
from nextvid.data.footage import FootageSource
from nextvid.data.latents import LatentCache, read_index
from nextvid.data.manifest import Manifest
from nextvid.data.transforms import Augmentation, normalise
from nextvid.errors import Stopped, UserError
from nextvid.files import read_json
from nextvid.footage import latent_shard
from nextvid.footage.command import latents_asked_for
from nextvid.footage.latents import LatentSettings, prepare_latents, words_of
from nextvid.footage.plan import PrepareSettings
from nextvid.footage.prepare import prepare_footage
from nextvid.footage.scan import scan
from nextvid.targets.space import NetworkSpace
from nextvid.targets.vae import VaeConfig

SETTINGS = PrepareSettings(short_side=40, min_seconds=0.0, shard_mb=0.001)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of videos of several rates and sizes, one of a variable rate, and a picture; and an autoencoder beside them."""
    folder = tmp_path_factory.mktemp("latents")
    mine = folder / "mine"
    mine.mkdir()
    write_video(mine / "a.mp4", [numbered(number, 48, 80) for number in range(70)])
    write_numbered(mine / "b.mkv", 30, codec="mpeg4", seconds=(np.arange(30) ** 1.5 / 20).tolist())
    write_picture(mine / "c.png", np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8))
    write_video(mine / "d.mp4", [numbered(number, 64, 48) for number in range(20)], fps=25)
    write_numbered(mine / "e.mp4", 3)
    scan([str(mine)], folder / "mine.parquet", workers=1, console=QUIET)
    prepare_footage(folder / "mine.parquet", folder / "shards", SETTINGS, workers=1, console=QUIET)
    small_vae(folder / "vae.safetensors")
    return folder


@pytest.fixture
def shards(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    return Path(shutil.copytree(prepared / "shards", tmp_path / "shards"))


def settings_of(prepared: Path, **changes) -> LatentSettings:
    return LatentSettings(**{"space": f"vae:{prepared / 'vae.safetensors'}", "size": 32, **changes})


def only_cache(shards: Path) -> Path:
    (folder,) = (shards / "latents").iterdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


@pytest.mark.parametrize("crop", ["center", "none"])
@pytest.mark.parametrize("size", [32, 64])
def test_what_is_stored_is_what_the_space_makes_of_the_clip_that_training_draws(
    prepared: Path, shards: Path, crop: str, size: int
) -> None:
    prepare_latents(shards, settings_of(prepared, crop=crop, size=size), console=QUIET)
    source = FootageSource(Manifest(shards / "manifest.parquet"), augmentation=Augmentation(crop=crop))
    source.latents[size] = LatentCache(only_cache(shards))
    space = VaeConfig(weights=str(prepared / "vae.safetensors")).build(None, 2)
    pictures, distinct = 0, set()
    for item in range(source.items):
        for seed, fps in enumerate((3.0, 11.0, 60.0)):
            spec = ClipSpec(6, fps, size)
            frames = source.clip(np.random.default_rng(seed), spec, item)
            clip = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
            stored = source.maps(np.random.default_rng(seed), spec, item)
            expected = space.maps_of(normalise(clip))[0].detach()
            torch.testing.assert_close(torch.from_numpy(np.array(stored)), expected, rtol=1e-5, atol=1e-5)
            distinct.add(frames.tobytes())
        pictures += source.manifest[item].info.kind == "picture"
    assert pictures == 1
    assert len(distinct) > 2 * source.items


def test_a_crop_that_is_not_drawn_leaves_the_times_as_they_are(prepared: Path) -> None:
    manifest, spec = Manifest(prepared / "shards" / "manifest.parquet"), ClipSpec(4, 9.0, 32)
    sources = [FootageSource(manifest, augmentation=Augmentation(crop=crop)) for crop in ("random", "center", "none")]
    for item in range(sources[0].items):
        times = [source.drawn(np.random.default_rng(5), spec, item).times for source in sources]
        assert all(np.array_equal(times[0], other) for other in times[1:]) or times == [None] * 3


def test_once_more_makes_nothing_and_a_stop_loses_no_finished_shard(
    prepared: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(prepared)
    encode = latent_shard.encode

    def stopping(*arguments):
        if len(list(shards.glob("latents/*/*.safetensors"))) == 2 and list(shards.glob("latents/*/.*.tmp")):
            raise Stopped("enough")
        return encode(*arguments)

    monkeypatch.setattr(latent_shard, "encode", stopping)
    with pytest.raises(Stopped):
        prepare_latents(shards, settings, console=QUIET)
    monkeypatch.setattr(latent_shard, "encode", encode)
    folder = only_cache(shards)
    half = contents(folder)
    assert len(half) == 4 < 2 * len(list(shards.glob("*.tar")))
    assert not list(folder.glob(".*.tmp"))
    with pytest.raises(UserError, match="is not finished"):
        LatentCache(folder)
    (folder / ".shard-000009.npy.1.tmp").touch()
    before = {name: (folder / name).stat().st_mtime_ns for name in half}
    facts = prepare_latents(shards, settings, console=QUIET)
    assert {name: (folder / name).stat().st_mtime_ns for name in half} == before
    assert not list(folder.glob(".*.tmp"))
    whole = contents(folder)
    assert prepare_latents(shards, settings, console=QUIET) == facts == read_json(folder / "latents.json")
    other = shutil.copytree(prepared / "shards", shards.parent / "other")
    prepare_latents(other, settings, console=QUIET)
    assert contents(only_cache(other)) == whole


def test_the_figures_add_up(prepared: Path, shards: Path) -> None:
    facts = prepare_latents(shards, settings_of(prepared), console=QUIET)
    folder, summary = only_cache(shards), read_json(shards / "prepare.json")
    assert facts["clips"] == summary["clips"]
    assert facts["frames"] == 70 + 30 + 1 + 20 + 3 == 124
    assert facts["hours"] == pytest.approx(summary["hours"])
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.glob("shard-*"))
    assert facts["map"] == [4, 8, 8]
    assert facts["made"]["space"] | {"name": "vae", "stride": 4, "channels": 4} == facts["made"]["space"]
    assert "0.0" not in words_of(facts).split("broken")[1]
    assert facts["broken"] == {}


def test_a_clip_that_cannot_be_decoded_is_counted_and_named(prepared: Path, shards: Path) -> None:
    tar = shards / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    manifest = Manifest(shards / "manifest.parquet")
    place = manifest[0].place
    data[place.offset : place.offset + place.length] = b"\x00" * place.length
    tar.write_bytes(data)
    said = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    facts = prepare_latents(shards, settings_of(prepared), console=said)
    assert facts["broken"] == {"not_media": 1}
    assert facts["frames"] == 124 - manifest[0].info.frames
    assert "shard-000000.tar/000000000_00000.mp4: not_media" in said.export_text()
    cache = LatentCache(only_cache(shards))
    assert [cache.broken(number) for number in range(facts["clips"])] == ["not_media"] + [None] * (facts["clips"] - 1)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_what_is_damaged_is_said_and_made_anew(prepared: Path, shards: Path, suffix: str) -> None:
    settings = settings_of(prepared)
    prepare_latents(shards, settings, console=QUIET)
    folder = only_cache(shards)
    whole = contents(folder)
    path = folder / f"shard-000001{suffix}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"latents of shard-000001 .*shard-000001\{suffix} has .* bytes, not"):
        LatentCache(folder)
    prepare_latents(shards, settings, console=QUIET)
    assert contents(folder) == whole
    path.unlink()
    with pytest.raises(UserError, match=rf"shard-000001\{suffix} is missing"):
        LatentCache(folder)
    prepare_latents(shards, settings, console=QUIET)
    assert contents(folder) == whole


def test_a_flipped_byte_is_found_by_verify(prepared: Path, shards: Path) -> None:
    settings = settings_of(prepared)
    prepare_latents(shards, settings, console=QUIET)
    folder = only_cache(shards)
    whole = contents(folder)
    path = folder / "shard-000000.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    prepare_latents(shards, settings, console=QUIET)
    assert contents(folder) != whole
    prepare_latents(shards, settings, verify=True, console=QUIET)
    assert contents(folder) == whole


def test_an_index_that_is_nonsense_is_a_sentence(prepared: Path, shards: Path) -> None:
    prepare_latents(shards, settings_of(prepared), console=QUIET)
    folder = only_cache(shards)
    path = folder / "shard-000000.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError, match=r"latents of shard-000000 .* are damaged"):
        LatentCache(folder).maps(0, np.zeros(2), 2)
    with pytest.raises(ValueError, match="ends inside its header"):
        read_index(path)


def test_half_precision_takes_half_and_is_near(prepared: Path, shards: Path) -> None:
    full = prepare_latents(shards, settings_of(prepared), console=QUIET)
    folder = only_cache(shards)
    first = np.load(folder / "shard-000000.npy")
    with pytest.raises(UserError, match=r"holds latents of precision float32, not float16: remove that folder"):
        prepare_latents(shards, settings_of(prepared, precision="float16"), console=QUIET)
    shutil.rmtree(folder)
    half = prepare_latents(shards, settings_of(prepared, precision="float16"), console=QUIET)
    assert half["bytes"] < 0.6 * full["bytes"]
    np.testing.assert_allclose(np.load(folder / "shard-000000.npy").astype(np.float32), first, rtol=1e-3, atol=1e-4)


def test_another_size_crop_or_weights_lie_beside(prepared: Path, shards: Path, tmp_path: Path) -> None:
    small_vae(tmp_path / "other.safetensors", seed=1)
    for changes in ({}, {"size": 64}, {"crop": "none"}, {"space": f"vae:{tmp_path / 'other.safetensors'}"}):
        prepare_latents(shards, settings_of(prepared, **changes), console=QUIET)
    assert len(list((shards / "latents").iterdir())) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": "pixels"}, "latents of pixels are not stored"),
        ({"space": "vea:x"}, "no target space 'vea'.*did you mean 'vae'"),
        ({"space": "vae:nowhere"}, "no autoencoder at nowhere"),
        ({"space": "vavae:x.pt"}, "no file x.pt|needs statistics"),
        ({"further": ("wieghts=x",)}, "no setting 'wieghts'"),
        ({"further": ("weights",)}, "is not key=value"),
        ({"size": 30}, "not a multiple of the 4 pixels of a latent.*try 32"),
        ({"crop": "random"}, "is center or none"),
        ({"precision": "bfloat16"}, "float32 or float16"),
    ],
)
def test_what_cannot_be_stored_is_a_sentence(
    prepared: Path, shards: Path, changes: dict, words: str, unchecked: None
) -> None:
    with pytest.raises(UserError, match=words):
        prepare_latents(shards, settings_of(prepared, **changes), console=QUIET)
    assert not (shards / "latents").exists()


def test_options_without_a_space_are_refused() -> None:
    assert latents_asked_for(None, None, None, None, None, None) is None
    with pytest.raises(UserError, match="--latents-size says of what latents are"):
        latents_asked_for(None, 64, None, None, None, None)


def test_weights_that_give_no_numbers_are_refused(
    prepared: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = NetworkSpace.maps_of
    monkeypatch.setattr(NetworkSpace, "maps_of", lambda self, frames: real(self, frames) * 1e6)
    with pytest.raises(UserError, match="not finite numbers in float16; use --latents-precision float32"):
        prepare_latents(shards, settings_of(prepared, precision="float16"), console=QUIET)


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(prepared: Path, tmp_path: Path) -> None:
    shards, weights = tmp_path / "shards", prepared / "vae.safetensors"
    command = [sys.executable, "-m", "nextvid", "prepare", str(prepared / "mine.parquet"), "-o", str(shards)]
    command += ["--short-side", "40", "--min-seconds", "0", "--shard-mb", "0.001", "--workers", "1", "--json"]
    command += ["--latents", f"vae:{weights}", "--latents-size", "64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(shards.glob("latents/*/shard-*.safetensors")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["latents"]["frames"] == 124
    LatentCache(only_cache(shards))
    assert not list(only_cache(shards).glob(".*.tmp"))
