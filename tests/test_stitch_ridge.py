import numpy as np

from txmcorrect.stitch.measure import Measured
from txmcorrect.stitch.ridge import ridge

EXPECTED = np.array([100.0, 4.0])
PRIOR = 16.0 * np.eye(2)
ALONG = np.array([1.0, -1.0]) / 2**0.5
ACROSS = np.array([1.0, 1.0]) / 2**0.5


def places(offsets, score=10.0):
    return [Measured(EXPECTED + o, 0.5 * np.eye(2), 0.5, score) for o in offsets]


def test_places_along_a_fibre_agree_across_it():
    """Four places in a row, 6 px beside what the stage says: that much is known, the rest is not."""
    found = ridge(places([6 * ACROSS + k * ALONG for k in (-12, -4, 4, 12)]), EXPECTED, PRIOR)
    assert abs((found.shift - EXPECTED) @ ACROSS - 6) < 0.3
    assert ACROSS @ found.covariance @ ACROSS < 1.0
    assert ALONG @ found.covariance @ ALONG > 10.0


def test_places_all_over_say_nothing():
    scattered = [k * d for k in (-5, 5) for d in (ALONG, ACROSS)]
    assert ridge(places(scattered), EXPECTED, PRIOR) is None
    assert ridge([], EXPECTED, PRIOR) is None


def test_one_place_is_that_place():
    found = ridge(places([2 * ACROSS]), EXPECTED, PRIOR)
    assert np.allclose(found.shift, EXPECTED + 2 * ACROSS, atol=1e-6)
    assert np.allclose(found.covariance, 0.5 * np.eye(2), atol=1e-6)


def test_the_same_place_found_twice_counts_once():
    twice = places([5 * ALONG, 5 * ALONG, -5 * ALONG])
    once = places([5 * ALONG, -5 * ALONG])
    assert np.allclose(
        ridge(twice, EXPECTED, PRIOR).shift, ridge(once, EXPECTED, PRIOR).shift, atol=1e-9
    )
