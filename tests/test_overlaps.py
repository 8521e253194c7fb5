"""Where frames of a mosaic overlap: the same sample before two places of a drifting background."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from txmcorrect.background import departures
from txmcorrect.background.base import Base, find_base
from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.drift import fit_drift
from txmcorrect.background.estimate import Conditions, combined, deviations, network_share
from txmcorrect.background.gradients import fine, from_steps
from txmcorrect.background.groups import ABRUPT, SLOW, Group, courses
from txmcorrect.background.known import Known
from txmcorrect.background.modes import cosines, levelled
from txmcorrect.background.overlaps import LEAST_BLOCKS, MOST_BLOCKS, find_overlaps, read_overlaps
from txmcorrect.background.quality import Flag
from txmcorrect.background.survey import Survey
from txmcorrect.scan import ArrayFrames

SHAPE = (32, 40)
LIT = np.ones(SHAPE, bool)
STEP = np.array([26, 32])  # of a grid of 4 x 4 tiles


def smooth(rng, shape, width, rms):
    image = gaussian_filter(rng.standard_normal(shape), width)
    return ((image - image.mean()) * rms / image.std()).astype(np.float32)


def mosaic(rng, drift=True, noise=0.002):
    """Tiles of a dense sample, in rows: logs `(16, h, w)`, what drifted, modes, corners."""
    corner = np.array([(i, j) for i in range(4) for j in range(4)]) * STEP
    world = smooth(rng, corner.max(0) + SHAPE, 3.0, 0.3)
    tiles = np.stack([world[y : y + SHAPE[0], x : x + SHAPE[1]] for y, x in corner])
    modes = np.stack([smooth(rng, SHAPE, 5.0, 0.03) for _ in range(4)])
    weights = courses(np.linspace(0, 1, 16))[:, :2] @ rng.standard_normal((2, 4)) * drift
    change = np.tensordot(weights, modes, 1).astype(np.float32)
    logs = change + tiles + noise * rng.standard_normal(tiles.shape).astype(np.float32)
    return logs, change, modes, corner.astype(float)


def survey_of(frames, factor, usable=None):
    """A survey of `frames` counts, with nothing broken and no dark."""
    n, h, w = frames.shape
    none = np.zeros((h, w), np.float32)
    flag = np.zeros(n, np.uint32)
    if usable is not None:
        flag[~usable] = Flag.NO_LIGHT
    small = bin_mean(torch.from_numpy(frames), factor).numpy()
    return Survey(none, True, small, factor, flag, 1.0, none > 0)


def shared_of(logs, corner, factor=1, usable=None):
    """Overlaps of frames with these logarithms, `(n, h, w)`."""
    frames = (1000 * np.exp(logs)).astype(np.float32)
    detail = np.zeros(frames.shape[1:], np.float32)
    return read_overlaps(ArrayFrames(frames), survey_of(frames, factor, usable), detail, corner)


def overlaps_of(logs, corner, **options):
    zero, at = np.zeros(SHAPE, np.float32), np.arange(len(logs))
    return find_overlaps(shared_of(logs, corner), zero, 0.0 * at, LIT, at, **options)


def shape_rms(error):
    return float((error - error.mean((1, 2), keepdims=True)).std())


def test_both_frames_are_read_at_the_same_place_of_the_sample():
    """A ramp over the sample is read nearly without error, between pixels as well."""
    corner = np.array([[0.0, 0.0], [3.25, 30.5]])
    y, x = np.indices(SHAPE)
    logs = np.stack([0.1 * (y + top) - 0.03 * (x + left) for top, left in corner])
    (found,) = overlaps_of(logs.astype(np.float32), corner)
    assert np.abs(found.data).max() < 2e-3  # counts are interpolated, not their logarithms
    one, two = found.modes(np.stack([y, x]).astype(np.float32))
    inner = (two > 0.5).all(0) & (one < np.array(SHAPE)[:, None] - 1.5).all(0)
    assert np.allclose((one - two)[:, inner], corner[1][:, None], atol=1e-5)


def test_overlaps_thinner_than_a_cell_are_read_from_the_frames():
    """Frames 6 pixels over each other, cells of 8: the background at both edges is seen."""
    rng = np.random.default_rng(3)
    shape, factor = (256, 128), 8
    corner = np.array([[0.0, 0.0], [2.0, 122.0]])
    world = smooth(rng, (260, 256), 2.0, 0.3)
    y, x = np.indices(shape) / factor - 0.5 + 0.5 / factor
    background = 0.02 * y + 0.05 * x
    tiles = [world[t : t + shape[0], u : u + shape[1]] for t, u in corner.astype(int)]
    (pair,) = shared_of(np.stack(tiles) + background, corner, factor)
    assert pair.frames == (0, 1)
    assert len(pair.data) >= LEAST_BLOCKS
    assert np.allclose(pair.data, (pair.one - pair.two) @ [0.02, 0.05], atol=1e-3)
    assert np.allclose(pair.one - pair.two, corner[1] / factor)


def test_frames_that_share_too_little_are_no_pair():
    logs = np.zeros((2, *SHAPE), np.float32)
    assert overlaps_of(logs, np.array([[0.0, 0.0], [0.0, 40.0]])) == []
    assert overlaps_of(logs, np.array([[0.0, 0.0], [31.0, 20.0]])) == []
    (near,) = overlaps_of(logs, np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert LEAST_BLOCKS <= len(near.data) <= MOST_BLOCKS


def test_frames_without_light_are_left_out():
    logs = np.zeros((3, *SHAPE), np.float32)
    (only,) = shared_of(logs, np.zeros((3, 2)), usable=np.array([True, False, True]))
    assert only.frames == (0, 2)
    zero, at = np.zeros(SHAPE, np.float32), np.arange(3.0)
    (seen,) = find_overlaps([only], zero, 0 * at, LIT, at)
    assert seen.at.tolist() == [0, 2]


def test_dead_pixels_and_what_is_no_number_do_not_count():
    logs = np.zeros((2, *SHAPE), np.float32)
    logs[0, 3:20, 4:9] = np.nan
    (pair,) = shared_of(logs, np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert len(pair.data) > LEAST_BLOCKS
    assert np.abs(pair.data).max() < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_a_dense_sample_drops_out(seed):
    """A sample of 30 % in every cell hides a drift of 3 % from frames; overlaps show it."""
    logs, change, modes, corner = mosaic(np.random.default_rng(seed))
    alone = fit_drift(logs, LIT, [Group(modes, SLOW)])
    both = fit_drift(logs, LIT, [Group(modes, SLOW)], overlaps_of(logs, corner))
    assert shape_rms(both.change - change) < 0.004
    assert shape_rms(both.change - change) < 0.3 * shape_rms(alone.change - change)
    assert both.std.mean() < alone.std.mean()


def test_corners_that_are_a_little_off_still_help():
    rng = np.random.default_rng(5)
    logs, change, modes, corner = mosaic(rng)
    alone = fit_drift(logs, LIT, [Group(modes, SLOW)])
    off = corner + 0.5 * rng.standard_normal(corner.shape)
    both = fit_drift(logs, LIT, [Group(modes, SLOW)], overlaps_of(logs, off))
    assert shape_rms(both.change - change) < 0.6 * shape_rms(alone.change - change)


def test_levels_tell_a_slope_that_all_frames_share():
    """A slope is the same step at all overlaps of a row: only known exposures tell it from gains."""
    rng = np.random.default_rng(6)
    logs, _, _, corner = mosaic(rng, drift=False)
    slope = (0.04 * np.linspace(-1, 1, SHAPE[1]) * np.ones(SHAPE)).astype(np.float32)
    group = [Group(slope[None] / 2, SLOW) for _ in range(2)]
    fit_drift(logs + slope, LIT, [group[0]], overlaps_of(logs + slope, corner, levelled=True))
    assert group[0].weights[0, 0] == pytest.approx(2, abs=0.15)
    assert group[0].std[0, 0] < 0.15


def beam_with_a_rim(moved):
    """Log light of a hump in a soft aperture, bent away from the middle by as many cells."""
    y, x = np.indices(SHAPE)
    r = np.hypot((y - 15.5) / 16, (x - 19.5 - moved) / 20)
    return np.float32(-0.2 * r**2 - np.logaddexp(0, (r - 1.0) / 0.06).clip(0, 6))


def level_error(seed):
    """How far the level of a tile is off (deviation over tiles), under a rim that moves."""
    rng = np.random.default_rng(seed)
    tiles, _, _, corner = mosaic(rng, drift=False)
    exposure = 0.02 * rng.standard_normal(len(tiles))
    beam = np.stack([beam_with_a_rim(shift) for shift in np.linspace(-0.25, 0.25, len(tiles))])
    logs = tiles + beam + exposure[:, None, None].astype(np.float32)
    known = Known(
        frames=(1000 * np.exp(logs)).astype(np.float32),
        usable=np.ones(len(logs), bool),
        log_exposure=exposure,
        photons=1.0,
        overlaps=shared_of(logs, corner),
    )
    error = find_base(known).fields(np.arange(len(logs))) - (logs - tiles)
    return error[:, 8:24, 10:30].mean((1, 2)).std()


def test_levels_follow_recorded_exposures_where_overlaps_cannot_tell():
    """A slope that all tiles share and levels that rise from tile to tile look alike in overlaps."""
    assert np.mean([level_error(seed) for seed in range(6)]) < 0.002  # unlevelled 0.0048


def test_the_rim_of_the_beam_says_nothing_of_its_level():
    rng = np.random.default_rng(0)
    light, images = beam_with_a_rim(0), rng.standard_normal((3, *SHAPE)).astype(np.float32)
    lit = light > -2
    other = np.where(light < -0.5, 5.0, images).astype(np.float32)
    difference = levelled(images, light, lit) - levelled(other, light, lit)
    assert np.abs(difference[:, light > -0.5]).max() < 1e-5
    assert levelled(images, light, np.zeros(SHAPE, bool)) is images


@pytest.mark.parametrize("seed", range(3))
def test_a_jump_under_a_dense_sample_is_found_by_overlaps(seed):
    rng = np.random.default_rng(seed + 10)
    logs, change, modes, corner = mosaic(rng)
    jump = smooth(rng, SHAPE, 8.0, 0.15)
    logs[12:] += jump
    change[12:] += jump

    def groups():
        return [Group(modes, SLOW), Group(np.float32(0.03) * cosines(SHAPE, 5), ABRUPT, most=20.0)]

    found = fit_drift(logs, LIT, groups(), overlaps_of(logs, corner))
    assert found.jumps == (12,)
    assert shape_rms((found.change - change)[12:]) < 0.6 * 0.15  # unfound: all of it


def test_one_odd_frame_is_no_jump():
    logs, _, modes, corner = mosaic(np.random.default_rng(20))
    logs[7] += smooth(np.random.default_rng(21), SHAPE, 8.0, 0.3)
    groups = [Group(modes, SLOW), Group(np.float32(0.03) * cosines(SHAPE, 5), ABRUPT, most=20.0)]
    assert fit_drift(logs, LIT, groups, overlaps_of(logs, corner)).jumps == ()


def test_network_and_fit_count_by_what_they_know():
    """Equal doubts share alike."""
    ones = torch.ones(2, *SHAPE)

    def share(doubt, std):
        return network_share(doubt * ones, std * ones, ones)

    assert torch.allclose(share(0.02, 0.02), torch.tensor(0.5), atol=1e-4)
    assert share(1e-5, 0.05).max() < 1e-6
    assert share(0.5, 0.001).min() > 0.999


def test_draws_deviate_as_much_as_is_stated_and_as_slowly_as_the_fit_does():
    logs, _, modes, corner = mosaic(np.random.default_rng(22))
    groups = [Group(modes, SLOW)]
    fit = fit_drift(logs, LIT, groups, overlaps_of(logs, corner))
    none = np.zeros(len(logs))
    base = Base(modes[0], fit, np.arange(len(logs)), none, LIT, (), doubt=3.0)
    conditions = Conditions((), base, spread=2.0)
    rng = torch.Generator().manual_seed(0)
    targets, samples = np.array([2, 9]), 0.002 * torch.randn(400, 2, *SHAPE, generator=rng)
    drawn = deviations(conditions, targets, samples, seed=5)
    _, std = combined(conditions, targets, samples[0], samples.std(0))
    inside = torch.from_numpy(LIT)
    shapes = drawn - drawn[..., inside].mean(-1)[..., None, None]
    ratio = shapes.std(0)[:, inside] / std[:, inside]
    assert float(ratio.median()) == pytest.approx(1, abs=0.1)
    again = deviations(conditions, targets[1:], samples[:, 1:], seed=5)
    assert torch.allclose(again, drawn[:, 1:], atol=1e-6)
    # Of neighbouring frames a draw says nearly the same, far from what noise would.
    near = [base.deviation(np.array([4, 5]), np.random.default_rng(k)) for k in range(50)]
    one, two = np.array(near)[:, :, LIT].transpose(1, 0, 2)
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9


def ripples_that_moved(rng):
    """A mosaic of few grains under ripples that moved by half a wave since the reference was taken."""
    corner = np.array([(i, j) for i in range(4) for j in range(4)]) * STEP
    world = np.zeros(corner.max(0) + SHAPE, np.float32)
    for y, x in rng.integers(0, np.array(world.shape) - 6, (60, 2)):
        world[y : y + 6, x : x + 6] -= 0.3
    tiles = np.stack([world[y : y + SHAPE[0], x : x + SHAPE[1]] for y, x in corner])
    beam = smooth(rng, (SHAPE[0], SHAPE[1] + 4), 1.5, 0.05)
    reference, now = beam[:, 4:], beam[:, :-4]
    logs = now + tiles + 0.005 * rng.standard_normal(tiles.shape).astype(np.float32)
    return Known(
        frames=(1000 * np.exp(logs)).astype(np.float32),
        usable=np.ones(len(logs), bool),
        log_exposure=None,
        photons=1.0,
        before=1000 * np.exp(reference),
        overlaps=shared_of(logs, corner.astype(float)),
    ), now


def test_a_stale_reference_is_brought_up_to_date_by_what_all_tiles_share(monkeypatch):
    known, now = ripples_that_moved(np.random.default_rng(8))
    every = np.arange(len(known.frames))
    found = shape_rms(find_base(known).fields(every) - now)
    stale = shape_rms((np.log(known.before) - now)[None])
    monkeypatch.setattr(departures, "halves_agree", lambda logs, lit: False)
    without = shape_rms(find_base(known).fields(every) - now)
    assert found < 0.4 * without < 0.4 * stale


def test_a_fresh_reference_is_not_made_worse_by_what_tiles_share():
    """What half of the tiles have in common with it the other half has not: noise and sample."""
    known, now = ripples_that_moved(np.random.default_rng(8))
    noise = 0.001 * np.random.default_rng(1).standard_normal(SHAPE)
    fresh = replace(known, before=1000 * np.exp(now + noise))
    every = np.arange(len(known.frames))
    assert shape_rms(find_base(fresh).fields(every) - now) < 1.3 * noise.std()


def test_what_stands_still_is_kept_where_nobody_says_that_the_sample_moves():
    """The same frames without positions: a grain in all of them is no background."""
    known, _ = ripples_that_moved(np.random.default_rng(8))
    grain = np.zeros(SHAPE, np.float32)
    grain[10:16, 10:16] = -0.3
    stands = replace(known, frames=known.frames * np.exp(grain), overlaps=())
    every = np.arange(len(known.frames))
    change = find_base(stands).fields(every) - find_base(replace(known, overlaps=())).fields(every)
    inside = change[:, 10:16, 10:16].mean() - change[:, :8].mean()
    assert abs(inside) < 0.1 * 0.3


def test_steps_tell_what_is_fine_where_samples_cover_half_of_the_frames():
    """Grains in more than half of the frames at a time: the median is theirs, that of steps is not."""
    rng = np.random.default_rng(9)
    shape, n = (48, 64), 16
    background = smooth(rng, shape, 1.5, 0.05)
    grains = np.zeros((n, *shape), np.float32)
    for grain in grains:
        for y, x in rng.integers(-10, np.array(shape), (12, 2)):
            grain[max(y, 0) : y + 16, max(x, 0) : x + 16] = -0.4
    lit = np.ones(shape, bool)
    lit[:, 30:33] = False  # two parts that do not touch
    assert 0.5 < (grains != 0).mean() < 0.8
    logs = background + grains + 0.01 * rng.standard_normal(grains.shape).astype(np.float32)
    truth = fine(background, lit, 6.0)
    found, median = (fine(i, lit, 6.0) for i in (from_steps(logs, lit), np.median(logs, 0)))
    assert (found - truth)[lit].std() < 0.35 * (median - truth)[lit].std()
    assert not found[~lit].any()
    assert not from_steps(logs, np.zeros(shape, bool)).any()
