"""The robust fit of a scan's drift: known modes under samples, jumps, sizes, and what it doubts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from txmcorrect.background.base import find_base
from txmcorrect.background.departures import FRESH
from txmcorrect.background.drift import fit_drift
from txmcorrect.background.evidence import widened
from txmcorrect.background.groups import (
    ABRUPT,
    DRIFTING,
    MOVING,
    SLOW,
    STEADY,
    STRAIGHT,
    Group,
    courses,
    find_size,
)
from txmcorrect.background.known import Known
from txmcorrect.background.modes import cosines, moved, principal
from txmcorrect.background.steps import steps_of

SHAPE = (32, 40)
LIT = np.ones(SHAPE, bool)


def smooth(rng, count, width, rms):
    images = np.stack([gaussian_filter(rng.standard_normal(SHAPE), width) for _ in range(count)])
    images -= images.mean((1, 2), keepdims=True)
    return (rms * images / images.std((1, 2), keepdims=True)).astype(np.float32)


def particles(rng, count, share=0.3, depth=0.4):
    """Log transmission of frames that are covered here and there, elsewhere in every frame."""
    fields = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 2.5) for _ in range(count)])
    edges = np.quantile(fields, 1 - share, axis=(1, 2))[:, None, None]
    return (-depth * (fields > edges)).astype(np.float32)


def drifting(rng, count=14, noise=0.003):
    modes = smooth(rng, 4, 3.0, 0.03)
    weights = courses(np.linspace(0, 1, count))[:, :2] @ rng.standard_normal((2, 4))
    change = np.tensordot(weights, modes, 1).astype(np.float32)
    grain = noise * rng.standard_normal((count, *SHAPE))
    return modes, change, (change + particles(rng, count) + grain).astype(np.float32)


def jumped(at, jump, *stacks):
    """Let stacks jump before a frame, in place."""
    for stack in stacks:
        stack[at:] += jump


def that_bend_and_jump(modes):
    """Groups of modes: known ones, cosines that bend, and cosines that only jump."""
    broad, few = (np.float32(0.03) * cosines(SHAPE, orders) for orders in (8, 5))
    return [Group(modes, SLOW), Group(broad, DRIFTING), Group(few, ABRUPT, most=20.0)]


def shape_rms(error):
    return float((error - error.mean((1, 2), keepdims=True)).std())


def test_steps_are_blind_to_level_and_see_every_octave():
    image = np.zeros((16, 16), np.float32)
    image[:, 8:] = 1
    found = steps_of(image[None])
    assert np.abs(steps_of(image[None] + 5) - found).max() < 1e-5
    assert set(np.unique(found)) == {0.0, 1.0}
    assert steps_of(np.zeros((3, 5, 7), np.float32)).shape[0] == 3


@pytest.mark.parametrize("seed", range(4))
def test_known_modes_are_found_under_samples(seed):
    """Thirty per cent of every frame covered by 33 % absorbers; drift of 3-9 % found to 0.1 %."""
    rng = np.random.default_rng(seed)
    modes, change, logs = drifting(rng)
    fit = fit_drift(logs, LIT, [Group(modes, SLOW)])
    assert shape_rms(change) > 0.02
    assert shape_rms(fit.change - change) < 0.001
    assert fit.jumps == ()
    stated = float(np.sqrt((fit.std**2).mean()))
    assert 0.2 < shape_rms(fit.change - change) / stated < 5


def test_a_least_squares_fit_of_levels_fails_where_the_steps_do_not():
    """The check above can fail: without steps and robustness the sample pulls the weights."""
    rng = np.random.default_rng(0)
    modes, change, logs = drifting(rng)
    flat = modes.reshape(4, -1)
    weights = np.linalg.lstsq(flat.T, logs.reshape(len(logs), -1).T, rcond=None)[0]
    assert shape_rms(np.tensordot(weights.T, modes, 1) - change) > 0.01


def test_a_jump_is_found_and_not_smeared():
    rng = np.random.default_rng(5)
    modes, change, logs = drifting(rng)
    jump = np.tensordot(np.array([1.5, -1.0, 1.0, 0.5]), modes, 1).astype(np.float32)
    jumped(6, jump, logs, change)
    fit = fit_drift(logs, LIT, [Group(modes, SLOW)])
    assert fit.jumps == (6,)
    assert shape_rms(fit.change - change) < 0.004


def test_moves_of_the_beam_as_it_is_follow_where_those_of_the_reference_do_not():
    """Illumination that moved by as much as it is wide: slopes of the reference say little of it now."""
    rng = np.random.default_rng(7)
    wide = gaussian_filter(rng.standard_normal((SHAPE[0] + 16, SHAPE[1] + 16)), 2.0)
    wide *= 0.05 / wide.std()
    logs = np.stack([shift(wide, (0, 2 + 0.15 * t))[8:-8, 8:-8] for t in range(14)])
    logs = (logs - logs.mean((1, 2), keepdims=True)).astype(np.float32)
    reference = (wide[8:-8, 8:-8] - wide[8:-8, 8:-8].mean()).astype(np.float32)
    seen = logs - reference + particles(rng, 14)

    def error(more=None):
        broad = Group(np.float32(0.03) * cosines(SHAPE, 8), DRIFTING)
        near = Group(moved(reference), DRIFTING)
        fit = fit_drift(seen.astype(np.float32), LIT, [broad, near], more=more)
        assert len(fit.groups) == 2 + (more is not None)
        return shape_rms(fit.change + reference - logs)

    assert error(lambda change: Group(moved(reference + change), STRAIGHT)) < 0.85 * error()


@pytest.mark.parametrize("seed", range(3))
def test_a_large_jump_near_the_end_is_not_followed_by_what_bends(seed):
    """Three frames after a jump are enough, though cosines could follow them."""
    rng = np.random.default_rng(seed)
    modes, change, logs = drifting(rng)
    jumped(11, smooth(rng, 1, 8.0, 0.15)[0], logs, change)
    fit = fit_drift(logs, LIT, that_bend_and_jump(modes))
    assert fit.jumps == (11,)
    assert shape_rms(fit.change - change) < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_a_fast_drift_is_no_jump(seed):
    rng = np.random.default_rng(seed)
    modes, _, logs = drifting(rng)
    time = np.linspace(-1, 1, len(logs))[:, None, None]
    fast = smooth(rng, 1, 8.0, 0.075)[0] * time + smooth(rng, 1, 8.0, 0.03)[0] * time**2
    drifted = (logs + fast).astype(np.float32)
    assert fit_drift(drifted, LIT, that_bend_and_jump(modes)).jumps == ()


def test_what_the_frames_do_not_show_is_taken_for_small():
    """No drift under an object that fills all frames: the size found is small, and so the change."""
    rng = np.random.default_rng(6)
    logs = (particles(rng, 14, 0.5) + 0.003 * rng.standard_normal((14, *SHAPE))).astype(np.float32)
    group = Group(np.float32(0.03) * cosines(SHAPE, 6), SLOW)
    fit = fit_drift(logs, LIT, [group])
    assert group.size < 0.2
    assert shape_rms(fit.change) < 0.006


def test_frames_that_show_the_same_are_believed_less():
    """Seven views, each twice: no more is known than from seven."""
    rng = np.random.default_rng(7)
    modes, _, logs = drifting(rng)
    twice = np.repeat(logs[::2], 2, 0)
    once, again = (Group(modes, STEADY), Group(modes, STEADY))
    fit_drift(logs[::2], LIT, [once])
    fit_drift(twice, LIT, [again])
    assert again.std.mean() > 0.75 * once.std.mean()


def test_steady_and_moving_groups_are_told_apart():
    rng = np.random.default_rng(8)
    modes, change, logs = drifting(rng)
    still = smooth(rng, 3, 4.0, 0.03)
    moving = change - change.mean(0)
    logs = logs - change.mean(0) + still.sum(0)
    fit = fit_drift(logs, LIT, [Group(still, STEADY, 3.0), Group(modes, MOVING)])
    found = fit.change - fit.change.mean(0)
    assert shape_rms(found - moving) < 0.004


def facts(rng, frames, **references):
    n = len(frames)
    return Known(
        frames=frames,
        usable=np.ones(n, bool),
        log_exposure=np.zeros(n),
        photons=1.0,
        absolute=bool(references),
        **references,
    )


def test_more_references_bring_the_base_nearer():
    rng = np.random.default_rng(9)
    modes, change, logs = drifting(rng)
    fixed = smooth(rng, 1, 1.0, 0.1)[0]
    frames = np.exp(logs + fixed + 8)
    bank = np.exp(np.tensordot(rng.standard_normal((12, 4)), modes, 1) + fixed + 8)
    ends = {"before": np.exp(change[0] + fixed + 8), "after": np.exp(change[-1] + fixed + 8)}
    place = np.linspace(0, 1, len(frames))
    settings = [
        {},
        {"before": ends["before"]},
        {**ends, "place": place},
        {"bank": bank.astype(np.float32)},
    ]
    every = np.arange(len(frames))
    errors = [
        shape_rms(find_base(facts(rng, frames, **s)).fields(every) - change - fixed)
        for s in settings
    ]
    assert errors[3] < 0.004 and errors[2] < 0.004
    assert max(errors[2:]) < errors[1] < errors[0]


def test_a_base_is_there_for_frames_that_cannot_be_used_and_scans_too_long_to_fit_whole(
    monkeypatch,
):
    rng = np.random.default_rng(10)
    modes, change, logs = drifting(rng, 40)
    bank = np.exp(np.tensordot(rng.standard_normal((12, 4)), modes, 1) + 8).astype(np.float32)
    known = facts(rng, np.exp(logs + 8), bank=bank)
    known.usable[[0, 17]] = False
    known.frames[[0, 17]] = 0
    monkeypatch.setattr("txmcorrect.background.light.MOST_FRAMES", 16)
    fields = find_base(known).fields(np.arange(len(logs)))
    assert fields.shape == logs.shape and np.isfinite(fields).all()
    assert shape_rms((fields - change)[1:]) < 0.005


def test_what_stands_near_the_axis_in_most_frames_is_no_background():
    rng = np.random.default_rng(7)
    logs = 8 + 0.003 * rng.standard_normal((20, *SHAPE))
    near = np.hypot(*(np.indices(SHAPE) - np.array([16, 20])[:, None, None])) < 4
    logs[:13, near] -= 0.2
    known = Known(np.exp(logs).astype(np.float32), np.ones(20, bool), None, 1.0)
    off, kept = (
        (find_base(replace(known, turning=turns)).fields(np.arange(20)).mean(0) - 8)
        for turns in (False, True)
    )
    assert (off[near] - off[~near].mean()).mean() < -0.1
    assert abs((kept[near] - kept[~near].mean()).mean()) < 0.02
    assert abs(kept[~near].std()) < 0.01


def test_what_is_bright_in_single_frames_is_no_background():
    rng = np.random.default_rng(8)
    logs = 8 + 0.003 * rng.standard_normal((20, *SHAPE))
    shining = np.hypot(*(np.indices(SHAPE) - np.array([16, 20])[:, None, None])) < 4
    logs[::5, shining] += 0.2
    known = Known(np.exp(logs).astype(np.float32), np.ones(20, bool), None, 1.0, turning=True)
    found = find_base(known).fields(np.arange(20)).mean(0)
    assert abs((found[shining] - found[~shining].mean()).mean()) < 0.005


def test_components_are_as_large_as_the_bank_spreads():
    rng = np.random.default_rng(11)
    modes = smooth(rng, 3, 3.0, 0.03)
    bank = np.tensordot(rng.standard_normal((40, 3)), modes, 1).astype(np.float32)
    mean, components = principal(bank, LIT)
    spread = (bank - mean).std(0, ddof=1)
    assert np.allclose(np.sqrt((components**2).sum(0)), spread, atol=1e-4)


def test_a_reference_moves_by_its_gradient():
    rng = np.random.default_rng(12)
    image = smooth(rng, 1, 6.0, 0.1)[0]
    along_x = moved(image)[1]
    step = np.gradient(gaussian_filter(image, 1.5), axis=1) * 0.01 * 40
    assert np.allclose(along_x, step, atol=1e-6)
    assert moved(image[:1]).shape == (7, 1, 40)


def test_the_dim_rim_of_an_aperture_is_followed_when_it_moves():
    """Where a third to a thirtieth of the light is left; the corner itself is dark."""
    rng = np.random.default_rng(13)
    y, x = np.indices(SHAPE)

    def beam(shift):
        return -((np.hypot(y, x - shift) / 34) ** 12)  # natural log: 1 inside, a soft edge

    change = np.stack([beam(s) for s in np.linspace(0, 1.5, 14)]) - beam(0)
    frames = np.exp(8 + beam(0) + change + particles(rng, 14, 0.1))
    before = np.exp(8 + beam(-0.3)).astype(np.float32)
    error = find_base(facts(rng, frames, before=before)).fields(np.arange(14)) - beam(0) - change
    inside = beam(0) > -0.1
    error -= np.median(error[:, inside], 1)[:, None, None]
    rim = (beam(0) < np.log(0.3)) & (beam(0) > np.log(0.04))
    assert rim.sum() > 100
    stale = (beam(-0.3) - beam(0) - change)[:, rim]
    assert np.sqrt((error[:, rim] ** 2).mean()) < 0.2 * np.sqrt((stale**2).mean())


def test_cosines_are_orthogonal_and_fall_off():
    waves = cosines((24, 32), 4).reshape(-1, 24 * 32)
    gram = waves @ waves.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-3
    assert np.diag(gram).max() > 3 * np.diag(gram).min()


@pytest.mark.parametrize(("true", "found"), [(0.0, 0.01), (1.0, 1.0)])
def test_size_is_nothing_where_weights_are_chance(true, found):
    """A fresh reference: what is measured of 300 weights is noise; or they are as large as expected."""
    rng = np.random.default_rng(0)
    measured = true * rng.standard_normal((300, 1)) + 0.8 * rng.standard_normal((300, 1))
    group = Group(np.zeros((300, 1, 1), np.float32), DRIFTING, doubt=FRESH)
    for _ in range(5):
        prior = np.full((300, 1), group.size)
        known = prior**2 / (prior**2 + 0.8**2)
        group.weights, group.std = known * measured, np.sqrt(known) * 0.8
        find_size(group, prior, np.ones(1, bool))
    assert group.size == pytest.approx(found, rel=0.3)


def test_widening_takes_belief_and_makes_nothing_exact():
    """Nor what frames say nothing of, where some modes are believed less than others."""
    rng = np.random.default_rng(3)
    seen = rng.standard_normal((8, 40))
    matrix = 100 * seen @ seen.T
    weights = rng.standard_normal(8)
    wide, right = widened(matrix, matrix @ weights, np.full(8, 0.25))
    assert np.abs(wide - matrix / 4).max() < 0.02 * matrix.max()
    assert np.allclose(np.linalg.solve(wide, right), weights, atol=1e-3)
    blind = 100 * seen[:, :5] @ seen[:, :5].T
    wide, _ = widened(blind, blind @ weights, rng.uniform(1e-4, 0.5, 8))
    assert np.allclose(wide, wide.T)
    assert np.linalg.eigvalsh(wide).max() < 30 * np.linalg.eigvalsh(blind).max()  # else 1e7 times
