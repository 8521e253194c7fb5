import numpy as np
from scipy.ndimage import gaussian_filter

from txmcorrect.stitch.align import Tiles, align_grid
from txmcorrect.stitch.groups import group_votes
from txmcorrect.stitch.layout import grid_cells, grid_neighbours
from txmcorrect.stitch.place import grid_stage, place
from txmcorrect.stitch.register import Evidence, Match, Window, feature

SIZE = 128
CELLS = grid_cells((3, 3), "rows,bottom-left")


def world(seed):
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((420, 420)), 1.5)
    return np.exp(0.1 * field / field.std())


def tiles(seed, scene, noise=0.01):
    rng = np.random.default_rng(seed + 9)
    places = 10 + CELLS * 108 + rng.integers(-4, 5, (9, 2))
    lit = np.ones((SIZE, SIZE), bool)
    found = [
        feature(
            scene[y : y + SIZE, x : x + SIZE] * (1 + noise * rng.standard_normal((SIZE, SIZE))), lit
        )
        for y, x in places
    ]
    return Tiles(found, (SIZE, SIZE)), places


def error_px(found, truth):
    difference = found - truth
    return np.hypot(*(difference - difference.mean(0)).T).max()


def test_tiles_find_their_places_and_say_how_well():
    for seed in range(3):
        shown, places = tiles(seed, world(seed))
        found = align_grid(shown, CELLS)
        assert error_px(found.positions, places) < 0.3
        assert found.placement.sigma_px.max() < 0.5


def test_nothing_to_see_is_not_matched():
    """Noise alone must not place tiles, and the positions must not claim to be known."""
    for seed in range(4):
        shown, _ = tiles(seed, np.ones((420, 420)))
        found = align_grid(shown, CELLS, overlap=20 / 128)
        believed = found.placement.weights > 0.25
        assert believed.sum() <= 1
        assert found.placement.sigma_px.max() > 2


def test_rows_that_fit_in_one_place_agree_on_it():
    """Each pair between two rows fits in two places; only one of them is common to all."""
    cells = grid_cells((2, 3), "rows,top-left")
    stage = grid_stage(cells, np.array([0.0, 100.0]), np.array([100.0, 0.0]), 8.0)
    held = [p for p in grid_neighbours(cells) if cells[p[0]][0] == cells[p[1]][0]]
    sure = [Match(i, j, np.array([0.0, 100.0]), 0.1 * np.eye(2), 0.9, 40.0, 40.0) for i, j in held]
    placement = place(stage, sure)
    evidence = {}
    for k in range(3):
        score = np.zeros((41, 41), np.float32)
        score[20 + 6, 20 - 5] = 7.0
        score[20 - 12 + 9 * k, 20 + 15 - 14 * k] = 7.5
        evidence[k, k + 3] = Evidence(Window(80, 120, -20, 20), score, 100.0)
    agreed = group_votes(evidence, placement, held)
    assert set(agreed) == set(evidence)
    for shift in agreed.values():
        assert np.abs(shift - (106, -5)).max() <= 2
    one = {(0, 3): evidence[0, 3]}
    assert group_votes(one, placement, held) == {}
