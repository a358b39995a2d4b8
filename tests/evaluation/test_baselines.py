import numpy as np
import pytest
import torch

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.baselines import chance, middle_frame, optical_flow, pixels
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


def shifting(across: int, down: int, frames: int = 4, size: int = 48) -> torch.Tensor:
    """A smooth texture that moves by so many pixels a frame, to the right and down."""
    import cv2  # noqa: PLC0415

    noise = np.random.default_rng(0).integers(0, 256, (size + 64, size + 64, 3), dtype=np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)
    starts = [(32 - t * down, 32 - t * across) for t in range(frames)]
    clip = np.stack([texture[y : y + size, x : x + size] for y, x in starts])
    return torch.from_numpy(clip).permute(0, 3, 1, 2)[None].contiguous()


@pytest.mark.parametrize(
    ("across", "down", "direction"),
    [(3, 0, 0), (2, 2, 1), (0, 3, 2), (-2, 2, 3), (-3, 0, 4), (-2, -2, 5), (0, -3, 6), (2, -2, 7)],
)
def test_the_flows_direction_and_length_are_those_of_the_movement(across: int, down: int, direction: int):
    tokens = optical_flow()(shifting(across, down))
    assert tokens.shape == (1, 3, 16, 8 + 1 + 24)
    histogram, length = tokens[..., :8], tokens[..., 8]
    assert (histogram.argmax(-1) == direction).all()
    expected = (across**2 + down**2) ** 0.5 / 48 / 0.05
    torch.testing.assert_close(length, torch.full_like(length, expected), rtol=0.15, atol=0)
    torch.testing.assert_close(histogram.sum(-1), length)


def test_what_moves_in_one_cell_moves_there_alone():
    still = shifting(0, 0, frames=2)
    moved = still.clone()
    moved[0, 1, :, 24:, 24:] = shifting(0, 2, frames=2)[0, 1, :, 24:, 24:]
    lengths = optical_flow(cells=2, bins=4)(moved)[0, 0, :, 4]
    assert lengths[3] > 0.5 > 5 * lengths[0]


@pytest.mark.parametrize("frames", [1, 3])
def test_a_still_clip_has_no_flow(frames: int):
    tokens = optical_flow(cells=3, bins=6)(shifting(0, 0, frames).expand(2, -1, -1, -1, -1))
    assert tokens.shape == (2, max(frames - 1, 1), 9, 6 + 1 + 24)
    assert not tokens[..., :7].any()
    assert len(tokens[0, ..., 7:].flatten(0, 1).round(decimals=3).unique(dim=0)) == tokens.shape[1] * 9


def test_frames_that_are_too_small_for_a_flow():
    with pytest.raises(UserError, match="of 8x8 pixels in 4x4 cells: give frames of 12 pixels a side or more"):
        optical_flow()(bytes_of(1, 2, 3, 8, 8))
