import pytest
import torch

from nextvid.data.clip import ClipSpec
from nextvid.evaluation.baselines import chance, middle_frame, pixels
from nextvid.evaluation.features import extract
from nextvid.evaluation.fitting import train_probe
from nextvid.evaluation.probe import ProbeConfig

SPEC = ClipSpec(frames=4, fps=8.0, size=12)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_pixel_token_is_one_tubelet_patch():
    frames = bytes_of(2, 4, 3, 8, 12)
    tokens = pixels(patch=4)(frames)
    assert tokens.shape == (2, 2, 6, 2 * 3 * 16)
    patch = frames[1, 2:4, :, 4:8, 8:12].float() / 127.5 - 1
    torch.testing.assert_close(tokens[1, 1, 5].sort().values, patch.flatten().sort().values)


def test_positions_are_added_beside_the_pixels_and_tell_all_tokens_apart():
    frames = bytes_of(2, 8, 3, 12, 8)
    plain, placed = pixels(4)(frames), pixels(4, positions=True)(frames)
    assert torch.equal(placed[..., : plain.shape[-1]], plain)
    codes = placed[0, ..., plain.shape[-1] :].flatten(0, 1)
    assert codes.shape == (4 * 6, 24)
    assert len(codes.round(decimals=3).unique(dim=0)) == 24


def test_the_middle_frame_is_all_that_its_tokens_know():
    frames = bytes_of(2, 8, 3, 8, 8)
    other = bytes_of(2, 8, 3, 8, 8).flip(0)
    other[:, 4] = frames[:, 4]
    tokens = middle_frame(patch=4)(frames)
    assert tokens.shape == (2, 1, 4, 3 * 16)
    assert torch.equal(tokens, middle_frame(patch=4)(other))


@pytest.mark.parametrize(
    ("encode", "task", "low", "high"),
    [
        (pixels(4), "tint", 0.9, 1.0),
        (pixels(4, positions=True), "place", 0.9, 1.0),
        (middle_frame(4), "tint", 0.9, 1.0),
        (chance(), "place", 0.2, 0.45),
    ],
)
def test_baselines_read_what_they_can(colour_clips, encode, task, low, high):
    made = extract(encode, colour_clips(180), SPEC, progress=False)
    result = train_probe(made, made, task, ProbeConfig(epochs=8, batch=16, lrs=(3e-3,)), progress=False)
    assert low <= result.top1 <= high
