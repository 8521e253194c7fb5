import numpy as np
import pytest

from txmcorrect.stitch.layout import grid_cells, grid_neighbours
from txmcorrect.stitch.place import grid_stage, listed_stage, place
from txmcorrect.stitch.register import Match

CELLS = grid_cells((4, 4), "rows,bottom-left")
ACROSS, DOWN = np.array([-2.0, 100.0]), np.array([98.0, 5.0])


def true_positions(seed, repeated=4.0, own=1.0):
    rng = np.random.default_rng(seed)
    rows, columns = rng.normal(0, repeated, (2, 4, 2))
    place_ = CELLS[:, :1] * DOWN + CELLS[:, 1:] * ACROSS
    return place_ + rows[CELLS[:, 0]] + columns[CELLS[:, 1]] + rng.normal(0, own, (16, 2))


def match(truth, i, j, sigma=0.3, off=(0, 0), score=30.0, rng=None):
    noise = 0 if rng is None else rng.normal(0, sigma, 2)
    shift = truth[j] - truth[i] + noise + off
    return Match(i, j, shift, np.eye(2) * sigma**2, 0.8, score, score)


def error(placement, truth):
    difference = placement.positions - truth
    return np.hypot(*(difference - difference.mean(0)).T)


def test_good_matches_give_good_positions_and_honest_sigmas():
    errors, sigmas = [], []
    for seed in range(10):
        truth, rng = true_positions(seed), np.random.default_rng(seed + 50)
        matches = [match(truth, i, j, rng=rng) for i, j in grid_neighbours(CELLS)]
        placement = place(grid_stage(CELLS, ACROSS, DOWN, 8.0), matches)
        difference = placement.positions - truth
        errors.append(difference - difference.mean(0))
        sigmas.append(placement.sigma_px)
    assert np.std(errors) < 0.4
    assert np.std(np.array(errors) / np.array(sigmas)) == pytest.approx(1, abs=0.25)


def test_outliers_are_given_up():
    truth = true_positions(3)
    pairs = grid_neighbours(CELLS)
    matches = [match(truth, i, j) for i, j in pairs]
    matches[5] = match(truth, *pairs[5], off=(25, -12), score=5.0)
    placement = place(grid_stage(CELLS, ACROSS, DOWN, 8.0), matches)
    assert error(placement, truth).max() < 0.5
    assert placement.weights[5] < 0.05
    assert np.delete(placement.weights, 5).min() > 0.9


def test_a_tile_without_matches_follows_its_row_and_column():
    truth = true_positions(4, own=0.3)
    matches = [match(truth, i, j) for i, j in grid_neighbours(CELLS) if 10 not in (i, j)]
    placement = place(grid_stage(CELLS, ACROSS, DOWN, 8.0), matches)
    others = np.delete(np.arange(16), 10)
    assert error(placement, truth)[10] < 2.5  # of the stage's own 0.3 px a tile
    assert placement.sigma_px[10].min() > 2 * placement.sigma_px[others].max()


def test_without_matches_the_stage_stands():
    positions = np.array([[0.0, 0.0], [3.0, 90.0], [91.0, -2.0]])
    placement = place(listed_stage(positions, 5.0), [])
    assert placement.positions == pytest.approx(positions - positions.min(0))
    assert placement.sigma_px.min() > 1


def test_uncertain_directions_lean_on_others():
    """A fibre along x says nothing about x; the stage does."""
    positions = np.array([[0.0, 0.0], [0.0, 90.0]])
    loose = Match(0, 1, np.array([2.0, 70.0]), np.diag([0.01, 1e4]), 0.8, 30.0, 30.0)
    placement = place(listed_stage(positions, 3.0), [loose])
    shift = placement.positions[1] - placement.positions[0]
    assert shift[0] == pytest.approx(2.0, abs=0.1)
    assert shift[1] == pytest.approx(90.0, abs=0.5)
