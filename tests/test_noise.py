"""Photons a count, from how frames that follow each other differ."""

import numpy as np
import pytest

from txmcorrect.background.noise import Pairs, usual_photons

SHAPE = (96, 128)


def frames_of(rng, light, photons, pattern=0.0, count=6):
    """Counts of a beam `(h, w)`, so many photons each, behind a fixed pixel pattern."""
    gain = np.exp(pattern * rng.standard_normal(SHAPE))
    return (rng.poisson(np.repeat((light * gain * photons)[None], count, 0)) / photons).astype(
        np.float32
    )


def photons_of(frames):
    pairs = Pairs()
    for frame in frames:
        pairs.also(frame)
    return usual_photons(pairs.photons)


@pytest.mark.parametrize("photons", [0.25, 1.0, 10.0])
@pytest.mark.parametrize("pattern", [0.0, 0.03])
def test_neither_a_fixed_pattern_nor_an_uneven_beam_counts(photons, pattern):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    spot = 6000 * np.exp(-((y - 40) ** 2 + (x - 60) ** 2) / 900) + 20
    assert photons_of(frames_of(rng, spot, photons, pattern)) == pytest.approx(photons, rel=0.08)


def test_frames_may_differ_in_brightness_and_in_what_they_show():
    rng = np.random.default_rng(1)
    frames = frames_of(rng, np.full(SHAPE, 3000.0), 1.0, 0.02)
    frames[::2] = rng.poisson(1.5 * frames[::2])  # one and a half as bright, and noisier than that
    frames[1, 20:70, 30:90] = rng.poisson(0.6 * frames[1, 20:70, 30:90])
    frames[3, 10:20] = 0
    assert 0.4 < photons_of(frames) < 1.05


def test_what_cannot_be_told_is_not():
    still = np.full((3, *SHAPE), 700, np.float32)
    assert photons_of(still) is None
    assert photons_of(np.zeros((3, *SHAPE), np.float32)) is None
    assert photons_of(still[:1]) is None
    assert photons_of(np.ones((3, 1, 1), np.float32)) is None


def test_a_large_frame_is_looked_at_in_part():
    rng = np.random.default_rng(2)
    frames = rng.poisson(500, (2, 1024, 1024)).astype(np.float32)
    assert photons_of(frames) == pytest.approx(1, rel=0.03)


def test_frames_that_do_not_count_are_still_seen_before_those_that_do():
    rng = np.random.default_rng(3)
    one, two, three = rng.poisson(400, (3, *SHAPE)).astype(np.float32)
    pairs = Pairs()
    for frame, counted in ((one, True), (two, False), (three, True)):
        pairs.also(frame, counted)
    alone = Pairs()
    alone.also(two)
    alone.also(three)
    assert pairs.photons == alone.photons
