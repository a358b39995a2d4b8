import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvid.data.transforms import (
    Augmentation,
    Crop,
    centre_crop,
    draw_crop,
    fixed_crop,
    normalise,
    resized_crop,
    to_uint8,
)

WHOLE = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0)
sides = st.integers(1, 500)


@settings(deadline=None)
@given(sides, sides, st.integers(0, 2**32), st.floats(0.01, 1), st.floats(1, 3))
def test_a_drawn_crop_lies_inside_the_picture(height, width, seed, least, aspect):
    augmentation = Augmentation((least, 1.0), (1 / aspect, aspect), 0.5)
    crop = draw_crop(np.random.default_rng(seed), height, width, augmentation)
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert crop.height > 0
    assert crop.width > 0


@settings(deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**32))
def test_a_scaled_crop_lies_inside_the_scaled_picture(height, width, tall, wide, seed):
    crop = draw_crop(np.random.default_rng(seed), height, width, Augmentation())
    scaled = crop.scaled((height, width), (tall, wide))
    assert 0 <= scaled.top < scaled.top + scaled.height <= tall
    assert 0 <= scaled.left < scaled.left + scaled.width <= wide
    assert scaled.flip == crop.flip


def test_crops_fill_the_ranges_that_are_asked_for():
    draw = np.random.default_rng(0)
    crops = [draw_crop(draw, 400, 400, Augmentation((0.2, 0.5), (0.8, 1.25), 0.3)) for _ in range(2000)]
    shares = np.array([crop.height * crop.width for crop in crops]) / 400**2
    aspects = np.array([crop.width / crop.height for crop in crops])
    assert 0.19 < shares.min() < 0.22
    assert 0.48 < shares.max() < 0.51
    assert 0.79 < aspects.min() < 0.82
    assert 1.2 < aspects.max() < 1.26
    assert np.mean([crop.flip for crop in crops]) == pytest.approx(0.3, abs=0.04)


def test_a_crop_is_a_pure_function_of_the_draw():
    first, second = (draw_crop(np.random.default_rng(7), 90, 160, Augmentation()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (48, 48)])
def test_the_whole_of_a_picture_is_its_largest_square(height, width):
    side = min(height, width)
    crop = draw_crop(np.random.default_rng(0), height, width, WHOLE)
    assert (crop.height, crop.width, crop.flip) == (side, side, False)
    assert centre_crop(height, width) == Crop((height - side) // 2, (width - side) // 2, side, side)


def test_all_frames_of_a_clip_are_cropped_alike():
    picture = np.random.default_rng(0).integers(0, 256, (1, 90, 160, 3), dtype=np.uint8)
    clip = resized_crop(np.repeat(picture, 5, axis=0), Crop(10, 20, 50, 70, True), 32)
    assert clip.shape == (5, 32, 32, 3)
    assert (clip == clip[:1]).all()


def test_a_crop_of_the_right_size_is_copied_as_it_is():
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    plain = resized_crop(frames, Crop(3, 5, 16, 16), 16)
    assert (plain == frames[:, 3:19, 5:21]).all()
    assert (resized_crop(frames, Crop(3, 5, 16, 16, True), 16) == plain[:, :, ::-1]).all()


def test_shrinking_averages_instead_of_skipping():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    frames = np.broadcast_to(board[None, :, :, None], (1, 64, 64, 3)).copy()
    small = resized_crop(frames, Crop(0, 0, 64, 64), 8)
    assert abs(small.astype(int) - 127.5).max() < 8


def test_a_resize_does_not_depend_on_threads():
    frames = np.random.default_rng(0).integers(0, 256, (4, 90, 160, 3), dtype=np.uint8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = resized_crop(frames, Crop(1, 2, 80, 90, True), 48)
        torch.set_num_threads(2)
        assert (resized_crop(frames, Crop(1, 2, 80, 90, True), 48) == alone).all()
    finally:
        torch.set_num_threads(threads)


def test_normalise_and_its_inverse():
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 1, 3, 16, 16)
    floats = normalise(frames)
    assert (floats.min().item(), floats.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(floats), frames)
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.0]).repeat(3).reshape(1, 1, 3, 3, 1)).unique().tolist() == [0, 128, 255]


@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 99))
def test_a_crop_that_is_fixed_takes_the_numbers_that_a_random_one_takes(height: int, width: int, seed: int) -> None:
    draws = {kind: np.random.default_rng(seed) for kind in ("random", "center", "none")}
    crops = {kind: draw_crop(draw, height, width, Augmentation(crop=kind)) for kind, draw in draws.items()}
    assert len({draw.random() for draw in draws.values()}) == 1
    assert crops["center"] == centre_crop(height, width) == fixed_crop("center", height, width)
    assert crops["none"] == (0, 0, height, width, False)
    assert crops["random"] == draw_crop(np.random.default_rng(seed), height, width, Augmentation())
