"""The linear model of a background with references: components, weights, levels, each against a known truth."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from txmcorrect.background.linear_model.components import (
    Components,
    SingleFlats,
    flat_modes,
)
from txmcorrect.background.linear_model.levels import (
    LevelPrior,
    flat_levels,
    settle_levels,
    vacuum_levels,
)
from txmcorrect.background.linear_model.scale_mixture import ScaleMixture
from txmcorrect.background.linear_model.solve import solve
from txmcorrect.background.linear_model.time_basis import time_basis
from txmcorrect.background.quality import Expected, judge_run
from txmcorrect.background.scale import LEFT_OUT, current_counts
from txmcorrect.matching import MatchedReferences
from txmcorrect.scan import ArrayFrames, References

SIZE = 32
LIT = np.ones((SIZE, SIZE), bool)


def texture(seed, width=3.0):
    image = gaussian_filter(
        np.random.default_rng(seed).standard_normal((SIZE, SIZE)), width, mode="wrap"
    )
    return ((image - image.mean()) / image.std()).astype(np.float32)


def flats(rng, count, component, rms, photons=20_000.0):
    """Counts of flats that differ by one component and photon noise, and the weights they have of it."""
    weights = rms * rng.standard_normal(count)
    mean = photons * np.exp(weights[:, None, None] * component)
    return rng.poisson(mean).astype(np.float32), weights


def particles(rng, n, dark=0.5, count=4):
    """Log transmission of a few opaque disks a frame."""
    y, x = np.mgrid[:SIZE, :SIZE]
    out = np.zeros((n, SIZE, SIZE), np.float32)
    for frame in out:
        for cy, cx, r in rng.uniform((0, 0, 2), (SIZE, SIZE, 5), (count, 3)):
            frame[(y - cy) ** 2 + (x - cx) ** 2 < r * r] -= dark
    return out


def group(images, jitter=1.0, walk=0.01, offset=0.01, rms=0.02, **more):
    variance = np.full(len(images), rms**2)
    return Components("test", images, variance, offset, walk, jitter, 3.0, **more)


def test_a_mixture_believes_gaussian_steps_alike_and_large_ones_less():
    rng = np.random.default_rng(0)
    steps = rng.normal(0, 0.01, (2, 4000)).astype(np.float32)
    steps[:, :40] = 1.0
    mixture, telling = ScaleMixture(), np.ones(steps.shape, bool)
    for _ in range(30):
        belief = mixture.precisions(steps, telling)
    usual = steps != 1.0
    # EM's fixed point: expected precision times square is one on average.
    assert float((belief * steps**2)[usual].mean()) == pytest.approx(1.0, abs=0.15)
    assert belief[~usual].max() < 0.01 * np.median(belief[usual])


def test_noise_alone_has_no_components():
    rng = np.random.default_rng(1)
    counts = rng.poisson(5000.0, (10, SIZE, SIZE)).astype(np.float32)
    assert len(flat_modes(np.log(counts), counts.mean(0), LIT).images) == 0


def test_a_component_of_flats_is_found_with_its_variance():
    rng, component = np.random.default_rng(2), texture(3)
    counts, weights = flats(rng, 20, component, 0.02)
    modes = flat_modes(np.log(counts), counts.mean(0), LIT)
    assert len(modes.images) == 1
    assert abs(np.corrcoef(modes.images[0].ravel(), component.ravel())[0, 1]) > 0.99
    assert modes.variance[0] == pytest.approx(weights.var(ddof=1), rel=0.1)
    assert abs(np.corrcoef(modes.scores[:, 0], weights)[0, 1]) > 0.99


def test_weights_are_not_too_small_for_noise_in_components():
    """Errors in variables: with the noise of few weak flats in the component its weights shrink."""
    rng, component = np.random.default_rng(4), texture(5, 4.0)
    counts, _ = flats(rng, 6, component, 0.01, 4000.0)
    logs = np.log(counts)
    modes = flat_modes(logs, counts.mean(0), LIT)
    raw = logs - logs.mean((1, 2), keepdims=True)
    noisy = np.linalg.svd((raw - raw.mean(0)).reshape(6, -1), full_matrices=False)[2][0]
    noisy = (noisy * SIZE).reshape(1, SIZE, SIZE).astype(np.float32)
    truth = 0.02 * rng.standard_normal(12)
    frames = truth[:, None, None] * component + particles(rng, 12, 0.3)
    slopes = []
    for images in (modes.images[:1], noisy):
        sign = np.sign((images[0] * component).sum())
        found = solve(frames.astype(np.float32), LIT, [group(images)], np.linspace(0, 1, 12))
        slopes.append(float(sign * found.weights[:, 0] @ truth / (truth @ truth)))
    assert slopes[0] > 0.85  # 0.90 here
    assert slopes[1] < 0.5  # 0.09


@pytest.mark.parametrize("dark", [0.05, 0.5])
def test_jitter_is_followed_behind_particles(dark):
    rng, images = np.random.default_rng(6), np.stack([texture(7), texture(8)])
    truth = 0.02 * rng.standard_normal((12, 2))
    logs = (np.tensordot(truth, images, 1) + particles(rng, 12, dark)).astype(np.float32)
    found = solve(logs, LIT, [group(images)], np.linspace(0, 1, 12))
    error = np.sqrt(((found.weights - truth) ** 2).mean())
    assert error < 0.1 * 0.02
    assert np.sqrt(found.variance.mean()) > error / 10


def test_the_order_of_frames_does_not_matter_without_a_walk():
    rng, images = np.random.default_rng(9), np.stack([texture(10)])
    truth = 0.02 * rng.standard_normal((8, 1))
    logs = (np.tensordot(truth, images, 1) + particles(rng, 8)).astype(np.float32)
    order = rng.permutation(8)
    one = solve(logs, LIT, [group(images, walk=1e-9)], np.linspace(0, 1, 8))
    other = solve(logs[order], LIT, [group(images, walk=1e-9)], np.linspace(0, 1, 8))
    assert np.abs(other.weights - one.weights[order]).max() < 2e-4


def test_frames_beyond_those_fitted_are_as_good():
    rng, images = np.random.default_rng(11), np.stack([texture(12)])
    n, time = 24, np.linspace(0, 1, 24)
    truth = 0.02 * rng.standard_normal((n, 1))
    logs = (np.tensordot(truth, images, 1) + particles(rng, n)).astype(np.float32)
    chosen = np.arange(0, n, 2)
    found = solve(logs[chosen], LIT, [group(images)], time[chosen]).extended(
        chosen, np.arange(n), n, time, lambda i: logs[i], 5
    )
    rest = np.setdiff1d(np.arange(n), chosen)
    assert np.sqrt(((found.weights - truth)[rest] ** 2).mean()) < 0.1 * 0.02


def test_vacuum_beside_a_turning_sample_is_found_and_used():
    rng, n = np.random.default_rng(13), 16
    broad = texture(14, 8.0)[None]
    x = np.arange(SIZE)
    logs = np.zeros((n, SIZE, SIZE), np.float32)
    for i in range(n):  # a body that moves and changes in the middle, nothing beside it
        inside = np.abs(x - SIZE / 2 - np.sin(i)) < 8
        logs[i, :, inside] = -0.6 - 0.2 * gaussian_filter(
            rng.standard_normal((inside.sum(), SIZE)), 2
        )
    truth = 0.02 * rng.standard_normal((n, 1))
    logs += np.tensordot(truth, broad, 1) + 0.001 * rng.standard_normal(logs.shape)
    found = solve(logs.astype(np.float32), LIT, [group(broad)], np.linspace(0, 1, n), None, True)
    assert found.vacuum is not None
    assert found.vacuum[:, [2, -3]].all() and not found.vacuum[:, 12:20].any()
    assert np.sqrt(((found.weights - truth) ** 2).mean()) < 0.15 * 0.02


def test_moves_do_not_count_behind_a_sample_that_covers_the_field():
    rng = np.random.default_rng(15)
    logs = np.cumsum(0.02 * rng.standard_normal((12, 1, 1)), 0) * texture(16, 6.0) - 0.5
    moves = group(texture(17, 8.0)[None], mistakable=True)
    found = solve(logs.astype(np.float32), LIT, [moves], np.linspace(0, 1, 12), None, True)
    assert found.vacuum is None
    assert np.abs(found.weights).max() < 1e-6


def test_a_walk_leads_from_flats_before_to_flats_after():
    """Frames that show nothing take what flats on both sides say, in between."""
    images = np.stack([texture(18)])
    times = np.array([-0.02, -0.02, 1.02, 1.02])
    scores = np.array([[-0.02], [-0.02], [0.02], [0.02]])
    rng = np.random.default_rng(19)
    logs = rng.normal(0, 1.0, (9, SIZE, SIZE)).astype(np.float32)  # so noisy that frames say little
    own = group(images, jitter=1e-6, walk=1.0, offset=1e-6, scores=scores)
    found = solve(logs, LIT, [own], np.linspace(0, 1, 9), times)
    slope = np.polyfit(np.linspace(-1, 1, 9), found.weights[:, 0], 1)[0]
    assert slope == pytest.approx(0.02, rel=0.3)


def test_the_basis_of_a_walk_has_about_its_variance():
    basis = time_basis(np.linspace(0, 1, 50))[:, 1:]
    ends = basis[-1] - basis[0]
    assert np.sqrt((ends**2).sum()) == pytest.approx(1.0, abs=0.15)


def prior(n, deviation=0.01):
    return LevelPrior(np.zeros(n), deviation, 0.003, 0.003)


def test_flats_before_and_after_lead_the_level_over():
    time = np.linspace(0, 1, 5)
    at = np.array([-0.02, -0.01, 1.01, 1.02])
    found = flat_levels(
        np.array([0.0, 0.0, 0.04, 0.04]), np.array([0, 0, 1, 1]), at, time, np.zeros(5)
    )
    assert found.mean[0] == pytest.approx(0.0, abs=0.006)
    assert found.mean[-1] == pytest.approx(0.04, abs=0.006)
    assert (np.diff(found.mean) > 0).all()


def test_levels_follow_visible_vacuum_against_the_prior():
    rng, n = np.random.default_rng(20), 10
    level = 0.01 * rng.standard_normal(n)
    left = level[:, None, None] + 0.003 * rng.standard_normal((n, SIZE, SIZE))
    left[:, 8:] -= rng.uniform(0.05, 1, (n, SIZE - 8, SIZE))
    noise = np.full(left.shape, 0.003, np.float32)
    offset, std = vacuum_levels(left.astype(np.float32), noise, LIT, None, prior(n))
    assert np.isfinite(std).all()
    found = settle_levels(prior(n), np.linspace(0, 1, n), offset, std)
    assert np.abs(found.level - level - (found.level - level).mean()).max() < 0.004
    assert abs((found.level - level).mean()) < 0.006


def test_without_vacuum_the_prior_stands():
    rng, n = np.random.default_rng(21), 6
    left = rng.uniform(-1, -0.2, (n, SIZE, SIZE)).astype(np.float32)
    offset, std = vacuum_levels(left, np.full(left.shape, 0.003, np.float32), LIT, None, prior(n))
    assert not np.isfinite(std).any()
    found = settle_levels(prior(n), np.linspace(0, 1, n), offset, std)
    assert (found.level == 0).all() and found.absolute == pytest.approx(0.01, abs=0.003)


def test_a_uniform_film_is_not_taken_for_vacuum():
    """Alike everywhere, but far below what is expected: between frames it counts, as a level it does not."""
    n = 8
    offset, std = np.full(n, -0.06), np.full(n, 0.001)
    offset[3] += 0.004
    found = settle_levels(prior(n), np.linspace(0, 1, n), offset, std)
    assert abs(found.level.mean()) < 0.005
    certain = settle_levels(prior(n), np.linspace(0, 1, n), offset, std, certain=True)
    assert certain.level.mean() == pytest.approx(-0.06, abs=0.005) and certain.contradicts


def test_one_frame_that_shows_no_vacuum_is_left_out():
    n = 10
    offset, std = np.zeros(n), np.full(n, 0.001)
    offset[4] = -0.03
    found = settle_levels(prior(n), np.linspace(0, 1, n), offset, std)
    assert not found.observed[4] and found.observed.sum() == n - 1
    assert abs(found.level[4]) < 0.005


def match(current):
    frames = ArrayFrames(np.ones((len(current), 2, 2), np.float32))
    scale = current.mean() / current
    return MatchedReferences(
        References(frames), scale, np.ones(3), True, None, (), scale, np.ones(3), True
    )


def test_a_current_counts_where_flats_agree_better_with_it():
    rng = np.random.default_rng(22)
    current = 400 * (1 - 0.05 * rng.random(10))
    flat = np.log(current) + 0.002 * rng.standard_normal(10)
    true = match(current)
    assert current_counts(flat + np.log(true.scale), true) == "current recorded"
    steady = 0.002 * rng.standard_normal(10)  # the beam did not change as the chamber says
    wrong = match(16 * np.round(current / 16))
    assert current_counts(steady + np.log(wrong.scale), wrong) == LEFT_OUT
    assert wrong.without_current(LEFT_OUT).scale == pytest.approx(1.0)


def test_trusted_is_said_where_the_promise_holds_with_margin():
    flag = np.zeros(4, np.uint32)

    def word(shape, levels, absolute):
        return judge_run(flag, "s", (), Expected(np.full(4, shape), levels, absolute)).word

    assert word(0.005, 0.002, 0.002) == "TRUSTED"
    assert word(0.015, 0.002, 0.002) == "CHECK (all frames)"
    assert word(0.005, 0.008, 0.002) == "CHECK (all frames)"
    assert word(0.005, 0.002, 0.008) == "CHECK (all frames)"
    assert word(0.005, 0.002, None) == "TRUSTED"
    said = judge_run(flag, "s", (), Expected(np.full(4, 0.014), 0.02, 0.03)).why
    assert (
        "shape 1.4 %" in said
        and "levels between frames 2 %" in said
        and "absolute level 3 %" in said
    )


def test_single_flats_know_which_are_near_the_scan():
    found = SingleFlats(np.ones((2, 2, 2), np.float32), np.array([0.5, np.nan]), np.ones(2))
    assert found.timed.tolist() == [True, False]
