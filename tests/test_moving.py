"""The beam's fine structure goes with its coarse structure, as references of several moments show."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.course import Background, cut, join
from txmcorrect.background.detail import flat_detail
from txmcorrect.background.methods import as_scan, references_of
from txmcorrect.background.moving import fewest, moments_of, moving_pattern, told_by_spectrum
from txmcorrect.background.survey import survey_scan
from txmcorrect.baselines.contract import Flats, Problem

FACTOR, SIDE = 4, 128
N = 12


def beams(weights):
    """Log beams `(m, h, w)`: a broad tilt and ripples of ten pixels that grow with it."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    tilt, ripples = x - 0.5, 0.06 * np.sin(2 * np.pi * SIDE * y / 10) * np.exp(-20 * (y - 0.5) ** 2)
    mean = 0.05 * np.cos(3 * x + 2 * y)
    return np.log(4000) + mean + np.asarray(weights)[:, None, None] * (0.2 * tilt + ripples)


def problem_of(rng, scan_weights, bank_weights, pattern, flats=10, bank=True):
    """Empty mosaic tiles and a bank of mean flats of as many moments, behind one detector."""
    frames = rng.poisson(np.exp(beams(scan_weights) + pattern))
    mean = rng.poisson(flats * np.exp(beams(bank_weights) + pattern)) / flats
    return Problem(
        frames=frames.astype(np.float32),
        dark=np.zeros((SIDE, SIDE), np.float32),
        lit=np.ones((SIDE, SIDE), bool),
        position_px=np.array([[0.0, 90.0 * i] for i in range(len(frames))]),
        bank=Flats(mean.astype(np.float32)) if bank else None,
    )


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def pattern(rng):
    return 0.01 * rng.standard_normal((SIDE, SIDE))


def found_in(problem, weights):
    """What moves, if the background on the grid is known."""
    scan = as_scan(problem)
    survey = survey_scan(scan, problem.dark, SIDE // FACTOR, 2**28, lambda *a: None)
    assert survey.factor == FACTOR
    counts = torch.from_numpy(np.exp(beams(weights)).astype(np.float32))
    fields = np.log(bin_mean(counts, FACTOR).numpy())
    cells, lit = np.ones(fields.shape[1:], bool), np.ones((SIDE, SIDE), bool)
    references = references_of(problem, SIDE // FACTOR)
    return moving_pattern(scan, survey, references, fields, cells, lit, 2**28)


def errors(found, weights, pattern):
    """Of the fine pattern at the scan's mean, and of how that of all frames departs from it, rms."""
    truth = np.stack(
        [flat_detail(np.exp(b + pattern), FACTOR) for b in beams(weights).astype(np.float32)]
    )
    apart = np.tensordot(found.shares, found.images, 1)
    middle = truth.mean(0)
    return float((found.detail - middle).std()), float((apart - truth + middle).std())


def test_fine_structure_moves_as_a_bank_shows(rng, pattern):
    weights = np.linspace(0.2, 1.2, N)
    problem = problem_of(rng, weights, np.linspace(-1, 1, 12), pattern)
    found = found_in(problem, weights)
    assert found is not None
    middle, moving = errors(found, weights, pattern)
    still = replace(found, shares=0 * found.shares)
    noise = 1 / np.sqrt(12 * 10 * 4000)
    assert middle < 1.6 * noise
    assert moving < 0.15 * errors(still, weights, pattern)[1]
    assert abs(found.shares.mean(0)).max() < 1e-6, "the detail is that of the mean frame"


def test_a_beam_that_stands_still_moves_nothing(rng, pattern):
    problem = problem_of(rng, np.zeros(N), np.zeros(12), pattern)
    assert found_in(problem, np.zeros(N)) is None


def test_frames_that_contradict_a_bank_are_believed(rng, pattern):
    """Its ripples went the other way: this is another beam."""
    weights = np.linspace(0.5, 1.2, N)
    problem = problem_of(rng, weights, np.linspace(-1, 1, 12), pattern)
    flats = np.exp(2 * beams(np.zeros(12)) - beams(np.linspace(-1, 1, 12)) + pattern)
    x = np.arange(SIDE) / SIDE
    tilt = 0.4 * np.linspace(-1, 1, 12)[:, None, None] * (x - 0.5)
    other = Flats((flats * np.exp(tilt)).astype(np.float32))
    assert found_in(replace(problem, bank=other), weights) is None
    assert found_in(problem, weights) is not None


def test_without_references_of_several_moments_nothing_is_known_to_move(rng, pattern):
    weights = np.linspace(0.2, 1.2, N)
    problem = problem_of(rng, weights, np.zeros(12), pattern, bank=False)
    assert found_in(problem, weights) is None
    burst = Flats(rng.poisson(np.exp(beams(np.zeros(10)) + pattern)).astype(np.float32))
    alone = replace(problem, stale=burst)
    survey = survey_scan(as_scan(alone), alone.dark, SIDE // FACTOR, 2**28, lambda *a: None)
    (moment,) = moments_of(references_of(alone, SIDE // FACTOR), survey)
    assert moment.numbers == tuple(range(10))
    assert moment.photons == pytest.approx(10, rel=0.1)
    assert found_in(alone, weights) is None


def test_references_before_and_after_are_two_moments(rng, pattern):
    problem = problem_of(rng, np.linspace(-1, 1, N), np.zeros(2), pattern, bank=False)
    before, after = (
        Flats(rng.poisson(np.exp(beams(np.full(10, w)) + pattern)).astype(np.float32))
        for w in (-1, 1)
    )
    both = replace(problem, before=before, after=after)
    weights = np.linspace(-1, 1, N)
    found = found_in(both, weights)
    assert found is not None and found.images.shape[0] == 1
    still = replace(found, shares=0 * found.shares)
    moving, fixed = (errors(f, weights, pattern)[1] for f in (found, still))
    assert moving < 0.25 * fixed


def test_no_more_images_are_kept_than_frames_need(rng):
    """Eleven components of a bank, and a beam that goes two ways."""
    images = rng.standard_normal((11, 16, 24)).astype(np.float32)
    ways = 0.01 * rng.standard_normal((2, 11))
    shares = np.stack([np.linspace(-1, 1, 40), np.linspace(-1, 1, 40) ** 2], 1) @ ways
    few, how_much = fewest(images, shares)
    assert few.shape == (2, 16, 24)
    expected = np.tensordot(shares, images, 1)
    np.testing.assert_allclose(np.tensordot(how_much, few, 1), expected, atol=1e-6)
    assert fewest(images, 0 * shares)[0].shape == (0, 16, 24)


def test_a_spectrum_keeps_ripples_and_drops_white_noise(rng):
    y = np.arange(SIDE)[:, None] / 10
    ripples = (0.01 * np.sin(2 * np.pi * y) * np.ones((1, SIDE))).astype(np.float32)
    noise = np.full((SIDE, SIDE), 0.01**2, np.float32)
    lit = np.ones((SIDE, SIDE), bool)
    seen = ripples + 0.01 * rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    kept = told_by_spectrum(seen, noise, lit)
    assert (kept - ripples).std() < 0.003
    nothing = told_by_spectrum(seen - ripples, noise, lit)
    assert nothing.std() < 0.0005
    half = lit.copy()
    half[:, :40] = False
    assert np.all(told_by_spectrum(seen, noise, half)[~half] == 0)


# --- in the background of a scan -----------------------------------------------------------------


def background_of(details, shares, keys):
    rng = np.random.default_rng(int(shares.sum() * 8))
    n, k = 9, len(keys)
    return Background(
        keys=np.array(keys),
        jumps=np.zeros(0, np.intp),
        fields=rng.standard_normal((k, 4, 4)).astype(np.float32),
        std=np.ones((k, 4, 4), np.float32),
        details=details,
        shares=shares,
        factor=2,
        amplitude=np.ones(n),
        flag=np.zeros(n, np.uint32),
        lit=np.ones((8, 8), bool),
        dark=np.zeros((8, 8), np.float32),
        scale="relative",
        leak=np.zeros(k),
    )


def test_what_moves_is_interpolated_as_key_images_are(rng):
    """What lies between two key frames is what their images would give."""
    details = (rng.standard_normal((3, 8, 8)).astype(np.float32),)
    shares = np.array([[1, 0.2, -1], [1, 0.8, 0.5], [1, -0.3, 0]])
    background = background_of(details, shares, [0, 4, 8])
    one, two = background.key_image(0), background.key_image(1)
    np.testing.assert_allclose(background.interpolated(3), 0.25 * one + 0.75 * two, atol=1e-5)
    fine = one - background.native(background.fields[0])
    np.testing.assert_allclose(fine, np.tensordot(shares[0], details[0], 1), atol=1e-5)
    later = cut(background, 4)
    np.testing.assert_array_equal(later.key_image(0), two)


def test_parts_in_which_different_things_move_join(rng):
    many, none = (rng.standard_normal((c, 8, 8)).astype(np.float32) for c in (3, 1))
    first = background_of((many,), np.array([[1, 0.2, -1], [1, 0.8, 0.5]]), [0, 8])
    second = background_of((none,), np.ones((2, 1)), [0, 8])
    whole = join([first, second], (many, none))
    for key, image in enumerate([first.key_image(0), first.key_image(1)]):
        np.testing.assert_array_equal(whole.key_image(key), image)
    np.testing.assert_array_equal(whole.key_image(3), second.key_image(1))
