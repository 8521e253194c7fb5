"""Where the sample stands in every frame, and what a fit learns from there and from empty cells."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from txmcorrect.background import steps
from txmcorrect.background.drift import fit_drift
from txmcorrect.background.estimate import stack_conditions
from txmcorrect.background.groups import BENT, COURSE, DRIFTING, SLOW, Group, courses
from txmcorrect.background.known import Known
from txmcorrect.background.modes import cosines
from txmcorrect.background.quality import MISTAKABLE
from txmcorrect.background.steps import LEVELS, SCALES, Steps, covered_cells, empty_cells

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
def test_a_sample_that_stands_in_all_frames_is_not_taken_for_background(seed, monkeypatch):
    """The same frames without being told that the sample turns: it is."""
    modes, change, logs = turning(np.random.default_rng(seed), capillary())
    fit = fit_drift(logs, LIT, [Group(modes, SLOW)], turning=True)
    assert fit.told
    told = shape_rms(fit.change - change)
    assert told < 0.0015
    monkeypatch.setattr(steps, "LEAST_COVERED", 1.0)  # nor is it told by its darkness
    blind = fit_drift(logs, LIT, [Group(modes, SLOW)], turning=False)
    assert told < shape_rms(blind.change - change) / 2


@pytest.mark.parametrize("seed", range(2))
def test_a_sample_that_covers_every_cell_is_fitted_as_if_it_did_not_turn(seed):
    modes, _, logs = turning(np.random.default_rng(seed), capillary(radius=40.0))
    told, blind = (
        fit_drift(logs, LIT, [Group(modes, SLOW)], turning=t).change for t in (True, False)
    )
    assert shape_rms(told - blind) < 0.001


def test_steps_beside_a_sample_hardly_count_and_do_not_say_what_is_usual():
    rng = np.random.default_rng(1)
    modes, _, logs = turning(rng, capillary())
    steps = Steps(logs, LIT, [modes])
    assert not steps.beside.any()
    assert steps.find_standing(np.tile(capillary().astype(np.float32), (FRAMES, 1, 1)))
    assert 0.2 < steps.beside.mean() < 0.8
    counted = ~are_distant(steps)  # the others count where a passing sample is told
    left = np.full(steps.data.shape, 0.01, np.float32)
    left[:, counted] = rng.normal(0, 0.01, (FRAMES, counted.sum()))
    belief = steps.belief(left)
    left[:, steps.beside] *= 5
    other = steps.belief(left)
    assert np.array_equal(other[:, ~steps.beside], belief[:, ~steps.beside])
    free = other[:, ~steps.beside & counted]
    assert other[:, steps.beside].max() < 1e-2 * np.median(free)


def are_distant(steps):
    """Whether steps `(p,)` lie between squares that are no neighbours."""
    return np.array([apart > 1 for _, apart in SCALES] + [False])[steps.scale]


def passing(rng, depth=0.1):
    """Frames over their background in which a disk passes, and where it is, `(n, h, w)` both."""
    rows, columns = np.indices(SHAPE)
    places = np.linspace(8, 40, FRAMES)
    inside = np.stack([(rows - 16) ** 2 + (columns - x) ** 2 < 100 for x in places])
    left = 0.003 * rng.standard_normal(inside.shape) - depth * inside
    return left.astype(np.float32), inside


def test_cells_that_a_passing_sample_covers_are_told_frame_by_frame():
    left, inside = passing(np.random.default_rng(3))
    covered, certain = covered_cells(left + np.float32(0.5), LIT)  # whatever the level
    assert certain.all()
    assert covered[inside].mean() > 0.9
    assert covered[~inside].mean() < 0.1


@pytest.mark.parametrize("wide", [True, False])
def test_none_is_called_covered_where_all_cells_may_be_or_none(wide):
    left = passing(np.random.default_rng(4), 0.0)[0]
    if wide:  # a film, uneven throughout
        left += np.linspace(0, 0.5, SHAPE[1], dtype=np.float32)
    covered, certain = covered_cells(left, LIT)
    assert not certain.any()
    assert not covered.any()


def test_steps_across_a_passing_sample_hardly_count_and_distant_ones_do_where_it_is_told():
    left = passing(np.random.default_rng(5))[0]
    left[-3:] = passing(np.random.default_rng(6), 0.0)[0][-3:]  # nothing to see
    steps = Steps(left, LIT, [])
    distant = are_distant(steps)
    assert not steps.belief(steps.data)[:, distant].any()
    steps.find_passing(left)
    assert steps.certain[:-3].all() and not steps.certain[-3:].any()
    belief = steps.belief(steps.data)
    assert not belief[-3:, distant].any()
    assert (belief[:-3][~steps.beside[:-3]] > 0).all()
    for k in range(LEVELS):
        free = (steps.scale == k) & ~steps.beside[0]
        crossed = (steps.scale == k) & steps.beside[0]
        if free.any() and crossed.any():
            assert belief[0, crossed].max() < 0.11 * belief[0, free].max()


def test_a_sample_with_soft_edges_is_told_by_its_darkness(monkeypatch):
    """No step of it is large."""
    rng = np.random.default_rng(6)
    modes = smooth(rng, 5, 8.0, 0.03)
    weights = courses(np.linspace(0, 1, FRAMES))[:, :3] @ rng.standard_normal((3, 5))
    change = np.tensordot(weights, modes, 1).astype(np.float32)
    inside = passing(rng)[1]
    soft = -0.1 * np.stack([gaussian_filter(i.astype(float), 3.0) for i in inside])
    logs = (change + soft + 0.003 * rng.standard_normal(change.shape)).astype(np.float32)

    def error():
        return shape_rms(fit_drift(logs, LIT, [Group(modes, SLOW)]).change - change)

    told = error()
    monkeypatch.setattr(steps, "LEAST_COVERED", 1.0)
    assert told < 0.7 * error()


def test_what_passes_through_a_cell_in_a_few_frames_makes_it_a_part_of_the_sample():
    rng = np.random.default_rng(2)
    modes, _, logs = turning(rng, capillary())
    left = np.tile(capillary().astype(np.float32), (FRAMES, 1, 1))
    left += 0.001 * rng.standard_normal(left.shape).astype(np.float32)
    left[:5, 10:20, :6] -= 0.1
    steps = Steps(logs, LIT, [modes])
    assert steps.find_standing(left)
    empty = steps.data[:, steps.scale == LEVELS].shape[1]
    left[:5, 10:20, :6] += 0.1
    assert steps.find_standing(left)
    assert steps.data[:, steps.scale == LEVELS].shape[1] > empty


@pytest.mark.parametrize("seed", range(3))
def test_a_large_sphere_that_turns_keeps_its_attenuation(seed):
    """It is as smooth as the background and moves as slowly: cells without sample tell them apart."""
    rng = np.random.default_rng(seed)
    modes = np.float32(0.03) * cosines(SHAPE, 6)
    course = courses(np.linspace(0, 1, FRAMES))[:, :4] * COURSE[:4]
    change = np.tensordot(course @ rng.standard_normal((4, len(modes))), modes, 1)
    noise = 0.003 * rng.standard_normal((FRAMES, *SHAPE))
    logs = (change + capillary() + noise).astype(np.float32)
    y, x = np.indices(SHAPE, np.float64)
    middle = SHAPE[1] / 2 + 7 * np.cos(np.linspace(0, np.pi, FRAMES)[:, None, None] + seed)
    chord2 = 1 - ((y - SHAPE[0] / 2) ** 2 + (x - middle) ** 2) / 8**2
    sphere = (-0.1 * np.sqrt(np.clip(chord2, 0, None))).astype(np.float32)
    without, with_it = (
        fit_drift(frames, LIT, [Group(modes, DRIFTING)], turning=True).change
        for frames in (logs, logs + sphere)
    )
    taken = ((with_it - without) * sphere).sum() / (sphere**2).sum()
    assert abs(taken) < 0.06  # 0.4 and more where steps beside the sample count as others


def test_bends_are_nothing_at_both_ends():
    course = courses(np.linspace(0, 1, 11))
    assert course.shape == (11, len(COURSE))
    assert np.abs(course[[0, -1]][:, list(BENT)]).max() < 1e-12
    assert np.abs(course[5, BENT[0]] - 1) < 1e-12


@pytest.mark.parametrize(
    ("radius", "bank", "told"), [(15.0, True, True), (40.0, True, False), (15.0, False, False)]
)
def test_a_turning_sample_that_nothing_tells_from_drift_is_a_doubt_about_the_scan(
    radius, bank, told
):
    """Cells without sample and a bank tell; a sample that covers all, or one old reference, do not."""
    rng = np.random.default_rng(0)
    modes, change, logs = turning(rng, capillary(radius))
    reference = 8 + change[0] + rng.normal(0, 0.001, SHAPE)
    others = 8 + np.tensordot(rng.standard_normal((9, len(modes))), modes, 1)
    known = Known(
        frames=np.exp(8 + logs),
        usable=np.ones(FRAMES, bool),
        log_exposure=np.zeros(FRAMES),
        photons=1.0,
        before=np.exp(reference).astype(np.float32),
        bank=np.exp(others).astype(np.float32) if bank else None,
        turning=True,
    )
    assert stack_conditions(known).notes == (() if told else (MISTAKABLE,))
