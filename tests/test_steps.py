"""Where the sample stands in every frame, and what a fit learns from there and from empty cells."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from txmcorrect.background.drift import BENT, COURSE, SLOW, Group, courses, fit_drift
from txmcorrect.background.steps import Steps, empty_cells

SHAPE = (32, 48)
LIT = np.ones(SHAPE, bool)
FRAMES = 24


def smooth(rng, count, width, rms):
    images = np.stack([gaussian_filter(rng.standard_normal(SHAPE), width) for _ in range(count)])
    images -= images.mean((1, 2), keepdims=True)
    return (rms * images / images.std((1, 2), keepdims=True)).astype(np.float32)


def capillary(radius=15.0, depth=0.3):
    """Log transmission of a cylinder that turns about its own axis, `(h, w)`."""
    x = np.arange(SHAPE[1]) - (SHAPE[1] - 1) / 2
    return np.tile(-depth * np.sqrt(np.clip(1 - (x / radius) ** 2, 0, None)), (SHAPE[0], 1))


def turning(rng, sample):
    """Frames of a sample that never leaves, under smooth modes that drift: modes, change, logs."""
    modes = smooth(rng, 5, 8.0, 0.03)
    weights = courses(np.linspace(0, 1, FRAMES))[:, :3] @ rng.standard_normal((3, 5))
    change = np.tensordot(weights, modes, 1).astype(np.float32)
    noise = 0.003 * rng.standard_normal((FRAMES, *SHAPE))
    return modes, change, (change + sample + noise).astype(np.float32)


def shape_rms(error):
    return float((error - error.mean((1, 2), keepdims=True)).std())


def test_empty_cells_are_the_margins_of_a_capillary_less_a_rim():
    rng = np.random.default_rng(0)
    usual = capillary() + 0.003 * rng.standard_normal(SHAPE)
    empty, sure = empty_cells(usual.astype(np.float32), LIT)
    assert sure
    assert not empty[capillary() < -0.01].any()
    assert empty[capillary() == 0].mean() > 0.8


def test_nothing_is_called_empty_for_certain_where_the_sample_covers_all():
    usual = capillary(radius=40.0)
    empty, sure = empty_cells(usual.astype(np.float32), LIT)
    assert empty.any()
    assert not sure


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_that_stands_in_all_frames_is_not_taken_for_background(seed):
    """The same frames without being told that the sample turns: it is."""
    modes, change, logs = turning(np.random.default_rng(seed), capillary())
    told, blind = (
        shape_rms(fit_drift(logs, LIT, [Group(modes, SLOW)], turning=t).change - change)
        for t in (True, False)
    )
    assert told < 0.0015
    assert told < blind / 2


@pytest.mark.parametrize("seed", range(2))
def test_a_sample_that_covers_every_cell_is_fitted_as_if_it_did_not_turn(seed):
    modes, _, logs = turning(np.random.default_rng(seed), capillary(radius=40.0))
    told, blind = (
        fit_drift(logs, LIT, [Group(modes, SLOW)], turning=t).change for t in (True, False)
    )
    assert shape_rms(told - blind) < 0.001


def test_what_is_always_the_same_beside_a_standing_sample_does_not_count():
    rng = np.random.default_rng(1)
    modes, _, logs = turning(rng, capillary())
    steps = Steps(logs, LIT, [modes])
    assert not steps.standing.any()
    assert steps.find_standing(np.tile(capillary().astype(np.float32), (FRAMES, 1, 1)))
    belief = rng.uniform(0.5, 2, steps.data.shape).astype(np.float32)
    left, lack = steps.moving(steps.data, belief)
    mean = (belief * left).sum(0) / belief.sum(0)
    stands = steps.standing > 0
    assert 0.2 < stands.mean() < 0.8
    raw = (belief * steps.data).sum(0) / belief.sum(0)
    assert np.allclose(mean[stands], 0.01 * raw[stands], atol=1e-6)
    assert np.array_equal(left[:, ~stands], steps.data[:, ~stands])
    assert (lack[~stands] == 0).all()


def test_bends_are_nothing_at_both_ends():
    course = courses(np.linspace(0, 1, 11))
    assert course.shape == (11, len(COURSE))
    assert np.abs(course[[0, -1]][:, list(BENT)]).max() < 1e-12
    assert np.abs(course[5, BENT[0]] - 1) < 1e-12
