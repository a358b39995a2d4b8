"""Boards and films hold the pictures that they are made of."""

from pathlib import Path

import numpy as np
import pytest

from nextvid.data.decode import decode_clip, probe_file
from nextvid.generation.board import BORDER, PAPER, Row, Tile, paint, side_for, sized
from nextvid.generation.films import write_mp4
from nextvid.report.pictures import DRAWN_BORDER, REAL_BORDER

RED, BLUE = np.full((8, 8, 3), (200, 0, 0), np.uint8), np.full((8, 8, 3), (0, 0, 200), np.uint8)


@pytest.mark.parametrize(("pixels", "side"), [(16, 64), (24, 72), (64, 64), (100, 100), (224, 112)])
def test_tiles_are_whole_multiples_or_averaged_down(pixels: int, side: int) -> None:
    assert side_for(pixels, 64, 112) == side
    picture = np.random.default_rng(0).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
    shown = sized(picture, side)
    assert shown.shape == (side, side, 3)
    if side > pixels:
        assert np.array_equal(shown[:: side // pixels, :: side // pixels], picture)


def test_a_board_shows_every_tile_in_its_place_with_the_border_of_its_kind() -> None:
    board = paint([Row("truth", [Tile(RED, False), None]), Row("drawn", [None, Tile(BLUE, True)])], ["0 s", "1 s"], 16)
    for colour, border in (((200, 0, 0), REAL_BORDER), ((0, 0, 200), DRAWN_BORDER)):
        inside = (board == colour).all(axis=-1)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert len(rows) == len(columns) == 16
        assert inside.sum() == 256
        assert tuple(board[rows[0] - BORDER, columns[0]]) == border
    red, blue = ((board == colour).all(axis=-1) for colour in ((200, 0, 0), (0, 0, 200)))
    assert np.flatnonzero(red.any(axis=1)).max() < np.flatnonzero(blue.any(axis=1)).min()
    assert np.flatnonzero(red.any(axis=0)).max() < np.flatnonzero(blue.any(axis=0)).min()


def test_names_and_titles_have_room() -> None:
    tile = [Row("a rather long name", [Tile(RED, False)])]
    plain, titled = paint(tile, [""], 16), paint(tile, ["0.00 s"], 16, "a title that is wider than the tiles are")
    for board in (plain, titled):
        edges = np.concatenate(
            [
                board[:2].reshape(-1, 3),
                board[-2:].reshape(-1, 3),
                board[:, :2].reshape(-1, 3),
                board[:, -2:].reshape(-1, 3),
            ]
        )
        assert (edges == PAPER).all()
    assert titled.shape[0] > plain.shape[0]


def test_a_film_has_its_frames_in_order_at_its_rate_and_even_sides(tmp_path: Path) -> None:
    film = [np.full((31, 45, 3), 40 * number, np.uint8) for number in range(6)]
    write_mp4(tmp_path / "film.mp4", film, 6.0)
    info = probe_file(str(tmp_path / "film.mp4"))
    assert (info.width, info.height, info.fps, info.frames) == (46, 32, 6.0, 6)
    shown = decode_clip(str(tmp_path / "film.mp4"), np.arange(6) / 6)
    assert np.abs(shown[:, 4:27, 4:40].mean(axis=(1, 2, 3)) - 40 * np.arange(6)).max() < 4
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]
