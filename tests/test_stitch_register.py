import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.ndimage import shift as spline_shift

from txmcorrect.stitch.measure import measure
from txmcorrect.stitch.register import (
    Evidence,
    Window,
    feature,
    linked_shifts,
    overlap_slices,
    peaks,
    search,
    vote,
)


def textured(shape, seed, width=1.5):
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), width)
    return np.exp(0.2 * field / field.std())


def pair(shift, size=128, noise=0.01, seed=0):
    """Two tiles of one world whose corners lie `shift` apart."""
    rng = np.random.default_rng(seed + 100)
    world = np.pad(textured((2 * size + 40, 2 * size + 40), seed), 2, mode="edge")
    tiles = []
    for corner in ((20.0, 20.0), (20.0 + shift[0], 20.0 + shift[1])):
        moved = spline_shift(world, -np.asarray(corner), order=3, mode="nearest")
        tiles.append(moved[:size, :size] * (1 + noise * rng.standard_normal((size, size))))
    lit = np.ones((size, size), bool)
    return [feature(t, lit) for t in tiles]


def direct_correlation(a, b, shift):
    one, two = overlap_slices(shift, a.values.shape)
    w = a.weight[one] * b.weight[two]
    x, y = a.values[one], b.values[two]
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    return (w * x * y).sum() / np.sqrt((w * x * x).sum() * (w * y * y).sum())


def test_the_score_follows_the_correlation_computed_directly():
    a, b = pair((3, 100))
    window = Window(0, 6, 96, 104)
    score = search(a, b, window).score
    rho = np.array([[direct_correlation(a, b, (y, x)) for x in range(96, 105)] for y in range(7)])
    pixels = np.array([[(128 - y) * (128 - x) for x in range(96, 105)] for y in range(7)])
    weight = np.mean(a.weight) * np.mean(b.weight)
    wanted = -0.5 * pixels * weight * np.log1p(-(np.clip(rho, 0, 1) ** 2))
    ratio = score[wanted > 0.05 * wanted.max()] / wanted[wanted > 0.05 * wanted.max()]
    assert ratio == pytest.approx(np.median(ratio), rel=0.08)  # one cell area for all shifts


@pytest.mark.parametrize("shift", [(2.3, 110.4), (-3.7, 96.1), (105.6, 4.2), (-100.3, -2.5)])
def test_sub_pixel_shifts_come_back(shift):
    a, b = pair(shift)
    whole = (round(shift[0]) + 1, round(shift[1]) - 1)
    found = measure(a, b, whole)
    assert found.shift == pytest.approx(shift, abs=0.1)
    assert found.correlation > 0.9


def test_narrow_overlaps_are_not_pulled_wide():
    errors = [measure(*pair((0.4, 119.3), seed=s), (0, 119)).shift - (0.4, 119.3) for s in range(4)]
    assert np.mean(errors, axis=0) == pytest.approx((0, 0), abs=0.1)


def test_noise_does_not_match():
    lit = np.ones((96, 96), bool)
    rng = np.random.default_rng(3)
    a, b = (feature(1 + 0.01 * rng.standard_normal((96, 96)), lit) for _ in range(2))
    evidence = search(a, b, Window(-5, 5, 70, 90))
    assert evidence.score.max() < np.log(evidence.cells) + 6


def test_a_single_fibre_is_uncertain_along_itself():
    y, x = np.indices((128, 200))
    world = 1 + 0.5 * np.exp(-(((y - 0.5 * x) / 2) ** 2))
    rng = np.random.default_rng(0)
    world = world * (1 + 0.003 * rng.standard_normal(world.shape))
    lit = np.ones((128, 128), bool)
    a = feature(world[:, :128], lit)
    b = feature(world[:, 72:] * (1 + 0.003 * rng.standard_normal((128, 128))), lit)
    found = measure(a, b, (0, 72))
    along = np.array([0.5, 1.0]) / np.hypot(0.5, 1)
    across = np.array([1.0, -0.5]) / np.hypot(0.5, 1)
    assert along @ found.covariance @ along > across @ found.covariance @ across


def test_pairs_vote_for_the_overlap_and_one_liar_does_not_decide():
    window = Window(-5, 5, 80, 100)
    rng = np.random.default_rng(0)

    def pair(y, x, height):
        score = 0.5 * rng.random((11, 21)).astype(np.float32)
        score[y + 5, x - 80] = height
        return Evidence(window, score, 20.0)

    votes = [pair(1, 90, 12), pair(2, 91, 15), pair(0, 90, 9), pair(-5, 98, 200)]
    assert vote(votes, 1.0).best() == pytest.approx((1, 90), abs=1)


def test_the_prior_decides_between_equal_peaks():
    score = np.zeros((5, 41), np.float32)
    score[2, 5] = score[2, 35] = 10
    evidence = Evidence(Window(-2, 2, 80, 120), score, 10.0)
    found = peaks(evidence, np.array([0.0, 113.0]), 25.0 * np.eye(2))
    assert found[0] == (0, 115)  # the other is thirty pixels off what is expected
    nearer = peaks(evidence, np.array([0.0, 87.0]), 25.0 * np.eye(2))
    assert nearer[0] == (0, 85)


def test_wide_detail_in_a_narrow_overlap_does_not_stick_where_it_was_cut():
    """The frames' edges are no detail of the sample: a start a pixel off must not hold the shift."""
    errors, z = [], []
    for seed in range(6):
        a, b = detailed_strip(seed, width=12, overlap=10)
        found = measure(a, b, (1, 131))
        error = found.shift - (0, 130)
        errors.append(error)
        z.append(error / np.sqrt(np.diag(found.covariance)))
    assert np.mean(errors, axis=0) == pytest.approx((0, 0), abs=0.15)
    assert np.sqrt(np.mean(np.square(z))) < 1.5


def detailed_strip(seed, width, overlap):
    """Two noisy tiles `(512, 140)` that share `overlap` columns of smooth detail."""
    rng = np.random.default_rng(seed)
    world = gaussian_filter(rng.standard_normal((512, 300)), width)
    world *= 0.1 / world.std()
    lit = np.ones((512, 140), bool)
    tiles = [np.exp(world[:, x : x + 140]) for x in (0, 140 - overlap)]
    return [feature(t * (1 + 0.012 * rng.standard_normal(t.shape)), lit) for t in tiles]


def test_one_spot_is_one_coincidence():
    """A lone bright particle that fits another one speaks less than texture that fits all over."""
    y, x = np.indices((128, 128))
    rng = np.random.default_rng(0)
    lit = np.ones((128, 128), bool)

    def lone(column):
        spot = 0.5 * np.exp(-((y - 60) ** 2 + (x - column) ** 2) / 18)
        return feature(np.exp(-spot) * (1 + 0.01 * rng.standard_normal(spot.shape)), lit)

    spot = measure(lone(100), lone(20), (0, 80))
    assert spot.shift == pytest.approx((0, 80), abs=0.3)
    assert spot.score < 15
    assert measure(*pair((0.0, 80.0)), (0, 80)).score > 30


def test_overlap_slices_name_the_same_places():
    one, two = overlap_slices((-3, 5), (10, 20))
    y, x = np.indices((10, 20))
    assert (y[one] - y[two] == -3).all()
    assert (x[one] - x[two] == 5).all()


def test_a_direction_that_says_little_steps_as_the_other_does():
    """Down is all chance with a stray best shift; across is clear: both step by 90 of 100 px."""
    rng = np.random.default_rng(1)
    windows = (Window(-10, 10, 70, 99), Window(70, 99, -10, 10))
    across = rng.random((21, 30)).astype(np.float32)
    across[12, 20] = 20
    down = rng.random((30, 21)).astype(np.float32)
    down[3, 1], down[20, 8] = 3.0, 2.5
    votes = [
        vote([Evidence(w, s, 20.0)], 1.0) for w, s in zip(windows, (across, down), strict=True)
    ]
    assert votes[1].best() == pytest.approx((73, -9))
    one, two = linked_shifts(*votes, (100, 100), 2.0)
    assert one == pytest.approx((2, 90))
    assert two == pytest.approx((90, -2), abs=1)
