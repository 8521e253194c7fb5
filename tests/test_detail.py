"""The fixed pattern: references and frames are averaged where they agree, and only there."""

from dataclasses import replace

import numpy as np
import pytest

from txmcorrect.background.detail import _robust, reference_detail, shrunk
from txmcorrect.background.mending import mended, odd_pixels
from txmcorrect.background.methods import as_scan, references_of
from txmcorrect.background.pattern import averaged, moves
from txmcorrect.background.pipeline import look_at
from txmcorrect.background.scale import Reference
from txmcorrect.baselines.contract import Flats, Problem
from txmcorrect.judge.scenes import Setting, simulated_scene
from txmcorrect.weights import load_model

SHAPE = (48, 64)


def noisy(rng, pattern, std):
    return (pattern + std * rng.standard_normal(SHAPE)).astype(np.float32)


def variance(std):
    return np.full(SHAPE, std**2, np.float32)


@pytest.mark.parametrize(("told", "seen"), [(0.004, 0.002), (0.003, 0.003), (0.002, 0.006)])
def test_frames_and_references_are_more_exposures_of_the_same_pattern(told, seen):
    rng = np.random.default_rng(0)
    pattern = 0.01 * rng.standard_normal(SHAPE)
    mean = averaged(
        noisy(rng, pattern, told), variance(told), noisy(rng, pattern, seen), variance(seen)
    )
    best = (told**-2 + seen**-2) ** -0.5
    assert (mean - pattern).std() < 1.15 * best
    assert (mean - pattern).std() < min(told, seen)


def test_a_sample_that_stands_still_stays_out():
    """A texture of the size of the noise in all frames goes into the pattern by a tenth at most."""
    rng = np.random.default_rng(1)
    pattern = 0.01 * rng.standard_normal(SHAPE)
    sample = np.zeros(SHAPE)
    sample[16:32, 20:40] = -0.01 * rng.random((16, 20)) - 0.01
    told = noisy(rng, pattern, 0.003)
    mean = averaged(told, variance(0.003), noisy(rng, pattern + sample, 0.001), variance(0.001))
    inside = sample < 0
    assert abs(np.mean((mean - pattern)[inside]) / sample[inside].mean()) < 0.1
    assert np.abs((mean - told)[18:30, 22:38]).max() < 1e-6


def test_what_is_shrunk_keeps_a_pattern_and_drops_noise():
    rng = np.random.default_rng(2)
    pattern = np.zeros(SHAPE)
    pattern[:, :32] = 0.02 * rng.standard_normal((48, 32))
    kept = shrunk(noisy(rng, pattern, 0.004), variance(0.004))
    assert (kept - pattern)[:, :28].std() < 0.0042
    assert kept[:, 36:].std() < 0.002


@pytest.mark.parametrize("bank_flats", [1, 25])
def test_references_count_by_their_own_noise(bank_flats):
    """Each member of a bank may be the mean of many flats: nobody says so, but their noise does."""
    rng = np.random.default_rng(8)
    shape, light = (128, 128), 4000.0
    gain = np.exp(0.01 * rng.standard_normal(shape))
    expected = light * gain
    problem = Problem(
        frames=rng.poisson(np.repeat(expected[None], 16, 0)).astype(np.float32),
        dark=np.zeros(shape, np.float32),
        lit=np.ones(shape, bool),
        stale=Flats(rng.poisson(np.repeat(expected[None], 4, 0)).astype(np.float32)),
        bank=Flats(
            (rng.poisson(np.repeat(bank_flats * expected[None], 6, 0)) / bank_flats).astype(
                np.float32
            )
        ),
    )
    references = references_of(problem, 64)
    counted = [reference.photons for reference in references]
    assert counted == pytest.approx([6 * bank_flats, 4], rel=0.15)
    seen = look_at(as_scan(problem), load_model("bundled", "stack"), references=references)
    error = seen.pattern.detail - reference_detail(
        replace(references[0], counts=expected.astype(np.float32)), 2
    )
    best = 1 / np.sqrt(light * (6 * bank_flats + 4))
    assert error.std() < 1.1 * best
    assert seen.pattern.grain == pytest.approx(best, rel=0.15)


def test_a_frame_that_shows_a_sample_counts_less_around_it():
    """A quarter of the frames show one: the pattern is nearly as good as that of the others."""
    rng = np.random.default_rng(9)
    pattern = 1 + 0.01 * rng.standard_normal((48, 96))
    ratios = pattern + 0.014 * rng.standard_normal((16, 48, 96))
    for i in range(16):  # a texture that moves from frame to frame
        ratios[i, :, 6 * i : 6 * i + 24] += 0.1 * rng.standard_normal((48, min(24, 96 - 6 * i)))
    centre, noise = _robust(ratios.astype(np.float32))
    error = float((centre - pattern).std())
    assert error < 1.1 * 0.014 / np.sqrt(12)
    assert float(np.sqrt(noise.mean())) == pytest.approx(error, rel=0.15)


def test_only_samples_that_move_are_averaged_over():
    """A film, or a scan of time, shows the same in all frames: that is no detector's pattern."""
    scans = {
        kind: as_scan(simulated_scene(Setting(kind, shape=(32, 32)), 3).problem)
        for kind in ("mosaic-sparse", "tomo", "film")
    }
    assert moves(scans["mosaic-sparse"]) and moves(scans["tomo"]) and not moves(scans["film"])
    assert not moves(replace(scans["tomo"], theta=0.1 * scans["tomo"].theta))


# --- a mosaic after its illumination moved ------------------------------------------------------


def errors_of_detail(kind, moved_px):
    """Of the reference's detail and of what is made of it and 16 tiles, against the true one; rms."""
    scene = simulated_scene(Setting(kind, "slow", references="stale", shape=(128, 128)), 2)
    truth = np.exp(scene.truth.log_background.mean(0))
    rng = np.random.default_rng(4)
    moved = np.roll(truth, moved_px, (0, 1)) + scene.problem.dark
    flats = rng.poisson(np.repeat(moved[None], 10, 0)).astype(np.float32)
    found = seen_with(flats, scene)
    true = reference_detail(replace(found.references[0], counts=truth), found.survey.factor)
    told = reference_detail(found.references[0], found.survey.factor)
    lit = scene.problem.lit & ~np.pad(np.zeros((112, 112), bool), 8, constant_values=True)
    return [np.sqrt(((x - true)[lit] ** 2).mean()) for x in (told, found.pattern.detail)]


def test_what_either_half_of_a_mosaic_shows_moved_since_the_reference_was_taken():
    told, made = errors_of_detail("mosaic-sparse", (1, 1))
    assert told > 0.01
    assert made < 0.5 * told


@pytest.mark.parametrize("kind", ["mosaic-sparse", "mosaic-dense"])
def test_a_reference_that_fits_is_not_spoilt_by_samples(kind):
    told, made = errors_of_detail(kind, (0, 0))
    assert made < 1.05 * told


# --- pixels that broke or came back since -------------------------------------------------------


def seen_with(flats, scene):
    """What is known before the network when the stale reference is `flats`."""
    problem = replace(scene.problem, stale=replace(scene.problem.stale, counts=flats))
    model = load_model("bundled", "stack")
    references = references_of(problem, model.spec.size)
    return look_at(as_scan(problem), model, references=references, dark=problem.dark)


@pytest.mark.parametrize("value", [0, 65535])
def test_pixels_that_only_a_reference_had_dead_or_hot_spoil_nothing(value):
    scene = simulated_scene(
        Setting("mosaic-sparse", "slow", references="stale", shape=(128, 128)), 4
    )
    flats = scene.problem.stale.counts
    rng = np.random.default_rng(3)
    y, x = rng.integers(20, 108, (2, 12))
    spoilt = flats.copy()
    spoilt[:, y, x] = value
    clean, found = (seen_with(f, scene) for f in (flats, spoilt))
    lit = scene.problem.lit
    apart = np.abs(found.pattern.detail - clean.pattern.detail)[lit]
    assert apart.max() < 0.1  # pixel noise in the places themselves; cells were off by 1.4
    assert np.quantile(apart, 0.99) < 0.005
    (one,), (other,) = clean.references, found.references
    assert np.abs(np.log(other.flats / one.flats)).max() < 0.02


def test_pixels_that_are_broken_in_the_scan_as_well_are_left_as_they_are():
    scene = simulated_scene(
        Setting("mosaic-sparse", "slow", references="stale", shape=(128, 128)), 4
    )
    frames, flats = scene.problem.frames.copy(), scene.problem.stale.counts.copy()
    frames[:, 60, 70] = flats[:, 60, 70] = 65535
    broken = replace(scene, problem=replace(scene.problem, frames=frames))
    (reference,) = seen_with(flats, broken).references
    assert reference.counts[60, 70] > 60000


def test_dust_that_both_show_is_no_odd_pixel():
    rng = np.random.default_rng(5)
    counts = rng.poisson(4000, SHAPE).astype(np.float32)
    counts[20, 30] = 900
    reference = Reference(counts, np.zeros(3), False, "test")
    apart = 0.01 * rng.standard_normal(SHAPE).astype(np.float32)
    working = np.ones(SHAPE, bool)
    assert len(odd_pixels(reference, apart, working)) == 0
    apart[20, 30] = -1.4
    assert odd_pixels(reference, apart, working).tolist() == [20 * SHAPE[1] + 30]
    assert len(odd_pixels(reference, apart, ~working)) == 0
    assert mended(reference, np.array([20 * SHAPE[1] + 30]), 4).counts[20, 30] > 3500
