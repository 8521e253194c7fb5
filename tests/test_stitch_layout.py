import numpy as np
import pytest

from txmcorrect.errors import GeometryError
from txmcorrect.stitch import layout


def test_the_source_instrument_starts_bottom_left_goes_right_then_up():
    cells = layout.grid_cells((2, 3), "rows,bottom-left")
    assert cells.tolist() == [[1, 0], [1, 1], [1, 2], [0, 0], [0, 1], [0, 2]]


def test_snake_turns_back_on_every_second_row():
    cells = layout.grid_cells((2, 3), "snake,top-right")
    assert cells.tolist() == [[0, 2], [0, 1], [0, 0], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("order", ["columns,top-left", "rows,middle", "snake;top-left"])
def test_an_unknown_order_is_refused(order):
    with pytest.raises(GeometryError, match="expected an order such as rows,bottom-left"):
        layout.parse_order(order)


def test_neighbours_are_left_right_and_upper_lower():
    cells = layout.grid_cells((2, 2), "rows,bottom-left")  # 0 1 below, 2 3 above
    assert layout.grid_neighbours(cells) == [(0, 1), (2, 0), (2, 3), (3, 1)]


def test_cells_come_back_from_jittered_positions():
    cells = layout.grid_cells((3, 4), "snake,bottom-right")
    positions = cells * np.array([90.0, 95.0]) + np.random.default_rng(1).uniform(-8, 8, (12, 2))
    assert (layout.cells_of(positions, (100, 100)) == cells).all()


def test_positions_that_are_no_grid_have_no_cells():
    positions = np.array([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0]])
    assert layout.cells_of(positions, (100, 100)) is None


def test_near_neighbours_share_an_edge_not_a_corner():
    positions = np.array([[0.0, 0.0], [2.0, 90.0], [90.0, 1.0], [91.0, 92.0]])
    assert layout.near_neighbours(positions, (100, 100), 3) == [(0, 1), (0, 2), (1, 3), (2, 3)]


def test_a_layout_survives_writing_and_reading():
    names = ["b 01.tif", "a_2.tif"]
    positions = np.array([[1.5, -2.25], [0.0, 480.125]])
    found = layout.parse_tile_configuration(layout.format_tile_configuration(names, positions))
    assert list(found) == names
    assert np.array(list(found.values())) == pytest.approx(positions, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim = 2\na.tif; ; (1, 2, 3)\n", "line 2: expected"),
        ("a.tif; ; (1, x)\n", "line 1: expected"),
        ("a.tif; ; (1, 2)\na.tif; ; (3, 4)\n", "listed twice"),
        ("# nothing\n", "found none"),
    ],
)
def test_a_bad_layout_says_which_line(text, message):
    with pytest.raises(GeometryError, match=message):
        layout.parse_tile_configuration(text)


def test_the_layout_of_real_tiles_is_read(shared_data):
    text = (shared_data / "lm_mosaic_4x4" / "TileConfiguration.txt").read_text()
    found = layout.parse_tile_configuration(text)
    assert len(found) == 16
    assert found["20230426_Lm-1-b2-60sm4x4_0004.tif"] == (1487.0, 2521.0)
