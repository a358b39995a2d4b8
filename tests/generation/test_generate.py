"""``nextvid generate``: files, figures, and sentences for what cannot be or changes nothing."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import recipe_mapping
from media import numbered, write_picture, write_video
from PIL import Image
from rich.console import Console

from nextvid.cli import main
from nextvid.config import parse_recipe
from nextvid.data.decode import decode_clip, probe_file
from nextvid.errors import UserError
from nextvid.generation import Request, generate
from nextvid.training.loop import pretrain

QUICK = {"samples": 2, "steps": 2}


def drawn(run: Path, video: Path | str, out: Path, against: Path | None = None, **said: Any) -> dict[str, Any]:
    request = Request(**{**QUICK, **said})
    return generate(str(run), str(video), request, Console(quiet=True), against and str(against), out)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A second and a half, 10 frames a second."""
    return write_video(tmp_path / "clip.mp4", [numbered(number) for number in range(15)])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "still.png", numbered(77))


def test_next_frames_of_a_video(run: Path, video: Path, tmp_path: Path) -> None:
    found = drawn(run, video, tmp_path / "out")
    folder = tmp_path / "out"
    assert json.loads((folder / "generation.json").read_text()) == found
    assert sorted(file.name for file in folder.iterdir()) == sorted([*found["files"], "generation.json"])
    assert set(found["files"]) == {
        "contact.png",
        "drawn.mp4",
        "drawn.gif",
        "sample_1.mp4",
        "sample_2.mp4",
        "report.html",
    }
    assert found["format_version"] == 1
    assert found["mode"] == "next frames"
    assert found["material"]["frames"] == 6
    measured = found["figures"]
    assert {"clips", "samples", "next_frame", "copy_last", "single_sample", "sharpness", "diversity"} <= set(measured)
    assert measured["next_frame"]["psnr"] > 0
    for name in ("drawn.mp4", "sample_1.mp4"):
        info = probe_file(str(folder / name))
        assert info.frames == 6
        assert info.fps == 5
    assert Image.open(folder / "drawn.gif").n_frames == 6
    assert min(Image.open(folder / "contact.png").size) > 200


def test_a_roll_out_goes_on_for_as_long_as_is_asked_and_is_measured_while_the_video_lasts(
    run: Path, video: Path, tmp_path: Path
) -> None:
    found = drawn(run, video, tmp_path / "out", frames=7)
    assert found["mode"] == "roll-out"
    assert {"frames": 7, "context": 4}.items() <= found["settings"].items()
    assert probe_file(str(tmp_path / "out/sample_1.mp4")).frames == 4 + 7
    # 1.5 s are 8 frames at 5 a second, of which 4 are context: two latent frames can be measured
    assert len(found["figures"]["rollout"]["psnr"]) == len(found["figures"]["rollout"]["copy_psnr"]) == 2
    assert found["figures"]["rollout"]["mean"]["psnr"] > 0
    assert "next_frame" not in found["figures"]
    later = drawn(run, video, tmp_path / "later", frames=2, context=2, start=0.5)
    assert {"frames": 2, "context": 2, "start": 0.5}.items() <= later["settings"].items()


def test_a_picture_is_rolled_out_and_has_no_truth(run: Path, picture: Path, tmp_path: Path) -> None:
    found = drawn(run, picture, tmp_path / "out", frames=3)
    assert found["mode"] == "roll-out"
    assert set(found["figures"]) == {"clips", "samples", "sharpness", "diversity"}
    assert probe_file(str(tmp_path / "out/drawn.mp4")).frames == 4 + 3
    assert drawn(run, picture, tmp_path / "out")["settings"]["frames"] == 6


def test_a_benchmark_has_figures_over_all_its_clips_and_frechet_distances(run: Path, tmp_path: Path) -> None:
    found = drawn(run, "moving-sprites:plain", tmp_path / "out", clips=8, mask=True)
    measured = found["figures"]
    assert measured["clips"] == found["material"]["clips"] == 8
    assert measured["frechet"]["frames"] == 8 * 4
    assert measured["frechet"]["biased"]
    assert measured["frechet"]["copy_last"] < measured["frechet"]["single_sample"]
    assert measured["frechet"]["halves"]["frames"] == [16, 16]
    assert found["files"] == ["contact.png", "drawn.mp4", "drawn.gif", "report.html"]


def test_equal_seeds_draw_alike_and_a_mask_or_a_seed_draws_otherwise(run: Path, video: Path, tmp_path: Path) -> None:
    def bytes_of(name: str, **said: Any) -> bytes:
        drawn(run, video, tmp_path / name, **said)
        return (tmp_path / name / "contact.png").read_bytes()

    first = bytes_of("a", seed=3)
    assert first == bytes_of("b", seed=3)
    assert first != bytes_of("c", seed=4)
    assert first != bytes_of("d", seed=3, mask=True)


def test_beside_a_regression_decoder(run: Path, regression: Path, video: Path, tmp_path: Path) -> None:
    found = drawn(run, video, tmp_path / "out", against=regression)
    assert found["against"] == {"model": str(regression), "decoder": "regression"}
    assert found["figures"]["against"]["samples"] == 1
    assert found["figures"]["against"]["mean"]["psnr"] > 0
    assert found["figures"]["sharpness"]["against"] > 0
    other = drawn(regression, video, tmp_path / "other", samples=None, steps=None)
    assert other["figures"]["next_frame"] == pytest.approx(found["figures"]["against"]["mean"])
    assert other["figures"]["diversity"] == 0
    assert "sample_1.mp4" in other["files"]


def test_by_default_it_goes_into_the_run_and_leaves_no_old_samples(run: Path, video: Path, tmp_path: Path) -> None:
    generate(str(run), str(video), Request(samples=3, steps=1), Console(quiet=True))
    folder = run / "generated/clip"
    assert (folder / "sample_3.mp4").is_file()
    generate(str(run), str(video), Request(samples=1, steps=1), Console(quiet=True))
    assert [file.name for file in folder.glob("sample_*")] == ["sample_1.mp4"]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"context": 4}, "--context changes nothing .*for a roll-out"),
        ({"frames": 2, "context": 3}, "--context 3 must be a multiple of the 2 frames"),
        ({"solver": "adaptive", "steps": 5}, "--steps changes nothing"),
        ({"tolerance": 0.1}, "--tolerance changes nothing"),
        ({"temperature": 0.0, "samples": 4}, "--samples changes nothing"),
        ({"temperature": 0.0, "samples": None, "seed": 1}, "--seed changes nothing"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"size": 20}, "--size 20 is not a multiple of the model's patch of 8 pixels"),
        ({"fps": 0.0}, "--fps 0.0 must be above 0"),
        ({"clips": 2}, "--clips changes nothing"),
        ({"start": 1.4}, "lasts 1.50 s, from 1.4 s on 1 frames"),
    ],
)
def test_what_cannot_be_or_changes_nothing_is_refused(
    run: Path, video: Path, tmp_path: Path, said: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        drawn(run, video, tmp_path / "out", **said)
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_regresses_takes_no_settings_of_noise(regression: Path, video: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--samples and --steps change nothing .a decoder that regresses"):
        drawn(regression, video, tmp_path / "out")
    masked = drawn(regression, video, tmp_path / "out", samples=None, steps=None, mask=True, seed=2)
    assert masked["settings"]["samples"] == 1


def pretrained(recipe: dict[str, Any], folder: Path) -> Path:
    pretrain(parse_recipe(recipe, "test"), folder, console=Console(quiet=True))
    return folder


def test_models_that_cannot_draw_or_not_beside_this_one_are_named(run: Path, video: Path, tmp_path: Path) -> None:
    small = recipe_mapping()
    control = recipe_mapping()
    control["objective"] = {"name": "videomae", "decoder": small["objective"]["decoder"]}
    control["stages"][0]["lr"] = {"encoder": 1e-3, "decoder": 1e-3}
    with pytest.raises(UserError, match="was trained by videomae, which draws no next frames"):
        drawn(pretrained(control, tmp_path / "videomae"), video, tmp_path / "out")
    with pytest.raises(UserError, match=r"has encoder.patch=4, and .* has 8"):
        drawn(run, video, tmp_path / "out", against=pretrained(small, tmp_path / "fine"))


def test_a_space_without_a_way_back_to_frames_is_named(video: Path, tmp_path: Path) -> None:
    recipe = recipe_mapping()
    recipe["objective"]["target"] = {"name": "features"}
    with pytest.raises(UserError, match="draws latents of the space features, which has no way back to frames"):
        drawn(pretrained(recipe, tmp_path / "features"), video, tmp_path / "out")


def test_the_command_prints_json_and_nothing_else(
    run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["nextvid", "generate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    options = ("--samples", 1, "--steps", 1, "--solver", "heun", "--temperature", 0.5, "--seed", 1, "--mask", "--json")
    assert ends(run, video, "-o", tmp_path / "out", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["sampling"]["solver"] == "heun"
    assert found == json.loads((tmp_path / "out/generation.json").read_text())
    assert ends(run, tmp_path / "gone.mp4") == 2
    assert "no footage at" in " ".join(capsys.readouterr().err.split())


def test_a_film_shows_the_context_and_then_what_is_drawn(run: Path, tmp_path: Path) -> None:
    white = write_picture(tmp_path / "white.png", np.full((32, 32, 3), 255, np.uint8))
    drawn(run, white, tmp_path / "out", frames=2, samples=1)
    frames = decode_clip(str(tmp_path / "out/sample_1.mp4"), np.arange(6) / 5)
    assert (frames[:4] > 250).all()
    assert frames[4:].mean() < 250
