"""The one check of flats and darks: what is none is left out and named, an honest drift loses nothing."""

from dataclasses import replace

import numpy as np
import pytest

from txmcorrect.background.correction import correct_scan
from txmcorrect.background.reference_check import Interpolated, check_flats, usable_dark
from txmcorrect.config import CorrectSettings
from txmcorrect.errors import FlatFieldError
from txmcorrect.formats.corrected import read_result
from txmcorrect.matching import MatchedReferences
from txmcorrect.scan import ArrayFrames, References
from txmcorrect.simulate import simulate_scan
from txmcorrect.synthesize import write_scan

SHAPE = (64, 80)
LIGHT, DARK = 4000.0, 100.0
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]] / SHAPE[1]
BEAM = np.exp(-((X - 0.45) ** 2 + (Y - 0.4) ** 2))


def counts(image, seed=0):
    return (np.random.default_rng(seed).poisson(LIGHT * image) + DARK).astype(np.float32)


def flats(count=10):
    return np.stack([counts(BEAM, seed) for seed in range(count)])


def check(stack, before=None, light=0.6 * LIGHT):
    n = len(stack)
    group = References(ArrayFrames(stack), before=before, exposure_s=np.arange(n) + 1.0)
    match = MatchedReferences(group, np.ones(n), np.ones(3), True, None)
    return check_flats(match, np.full(SHAPE, DARK, np.float32), light)


def left(found):
    """Which of ten flats are still there, by their exposures."""
    return (found.references.exposure_s - 1).astype(int).tolist()


def sample():
    return np.where((X - 0.5) ** 2 + (Y - 0.3) ** 2 < 0.02, 0.5, 1.0)


BAD = {
    "no light": lambda flat: np.full(SHAPE, DARK) + np.random.default_rng(9).normal(0, 3, SHAPE),
    "not finite": lambda flat: np.full(SHAPE, -np.inf),
    "brightness": lambda flat: counts(3 * BEAM, 9),
    "sample": lambda flat: counts(BEAM * sample(), 9),
    "saturated": lambda flat: np.minimum(flat, DARK + 0.8 * LIGHT),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_flat_that_is_none_is_left_out_and_named(reason):
    stack = flats()
    stack[3] = BAD[reason](stack[3])
    found, notes = check(stack)
    assert left(found) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(found.scale) == 9 and found.references.frames.shape == (9, *SHAPE)
    assert len(notes) == 1 and "flat 4 of 10 left out" in notes[0] and reason in notes[0]


@pytest.mark.parametrize("kind", ["white", "trend", "jump", "current", "one after"])
def test_an_honest_drift_loses_no_flat(kind):
    rng = np.random.default_rng(5)
    mode = np.cos(2 * np.pi * 3 * X) * np.cos(np.pi * 2 * Y)
    course = {
        "white": 0.05 * rng.standard_normal(10),
        "trend": np.linspace(0, 0.2, 10),
        "jump": np.where(np.arange(10) < 8, 0, 0.2),
        "current": np.zeros(10),
        "one after": np.where(np.arange(10) < 9, 0, 0.3),
    }[kind]
    level = np.linspace(1, 0.6, 10) if kind == "current" else np.ones(10)
    stack = np.stack(
        [
            counts(v * BEAM * np.exp(c * mode), i)
            for i, (c, v) in enumerate(zip(course, level, strict=True))
        ]
    )
    before = np.where(np.arange(10) < 9, 0, 40) if kind == "one after" else None
    found, notes = check(stack, before)
    assert left(found) == list(range(10)) and notes == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_single_bad_pixel_is_interpolated_from_the_other_flats(value):
    stack = flats()
    truth = stack[:, 20, 30].copy()
    stack[2, 20, 30] = value
    stack[:, 40, 50] = value  # in all of them: from the pixels around
    found, notes = check(stack)
    values = found.references.frames.read(0, 10)
    assert isinstance(found.references.frames, Interpolated) and np.isfinite(values).all()
    noise = LIGHT**0.5
    assert abs(values[2, 20, 30] - np.delete(truth, 2).mean()) < noise
    assert np.abs(values[:, 40, 50] - LIGHT * BEAM[40, 50] - DARK).max() < 3 * noise
    assert "11 bad pixels in 10 of 10 flats interpolated" in notes


def test_half_precision_is_read_as_single():
    found, notes = check(flats().astype(np.float16))
    assert found.references.frames.read(0, 1).dtype == np.float32 and notes == ()


def test_only_shut_flats_are_an_error_that_says_so():
    dark = DARK + np.random.default_rng(0).normal(0, 10, (4, *SHAPE)).astype(np.float32)
    with pytest.raises(FlatFieldError, match=r"all 4 are bad.*no light"):
        check(dark)


def test_most_may_be_shut():
    stack = DARK + np.random.default_rng(0).normal(0, 10, (10, *SHAPE)).astype(np.float32)
    stack[[2, 6]] = flats(2)
    assert left(check(stack)[0]) == [2, 6]


def darks(count=10, light=0.0):
    return np.stack([counts(light * BEAM, 100 + seed) for seed in range(count)])


def test_good_darks_are_averaged():
    found = usable_dark(ArrayFrames(darks()), "dark", flats(1)[0])
    np.testing.assert_allclose(found.image, DARK)
    assert found.notes == () and found.doubt == ""


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_darks_that_show_the_beam_are_none(share):
    found = usable_dark(ArrayFrames(darks(light=share)), "dark", flats(1)[0])
    assert found.image is None
    assert ("as bright as the flats" if share == 1 else f"{100 * share:.0f} %") in found.doubt


def test_a_large_pedestal_is_no_light():
    """Most of what little a flat holds may be the detector's own, and not even."""
    pedestal = 2000 * (1 + 0.3 * Y)
    rng = np.random.default_rng(1)
    dim = (pedestal + rng.poisson(200 * BEAM)).astype(np.float32)
    frames = (pedestal + rng.normal(0, 5, (10, *SHAPE))).astype(np.float32)
    assert usable_dark(ArrayFrames(frames), "dark", dim).image is not None


@pytest.mark.parametrize("wrong", ["bright", "not finite"])
def test_one_bad_dark_is_left_out(wrong):
    stack = darks()
    if wrong == "bright":
        stack[6] = counts(0.5 * BEAM)
    else:
        stack[6, 3, 3] = np.nan
    found = usable_dark(ArrayFrames(stack), "dark", flats(1)[0])
    np.testing.assert_allclose(found.image, DARK)
    assert (
        len(found.notes) == 1
        and "dark 7 of 10 left out" in found.notes[0]
        and wrong in found.notes[0]
    )


def test_a_bad_pixel_of_the_only_dark_is_interpolated():
    stack = darks(1)
    stack[0, 3, 3] = np.nan
    found = usable_dark(ArrayFrames(stack), "dark", flats(1)[0])
    assert found.image[3, 3] == DARK


def test_what_was_left_out_stands_in_the_verdict(tmp_path):
    scan = simulate_scan(
        "film", "slow", shape=(48, 64), seed=3, frames=5, references="before-after"
    )
    kept = scan.flats.copy()
    bad = scan.flats.copy()
    bad[4] = scan.dark[0]
    found = {}
    for name, flats in (("good", kept), ("bad", bad)):
        write_scan(tmp_path / f"{name}.h5", replace(scan, flats=flats))
        settings = CorrectSettings(scans=[tmp_path / f"{name}.h5"], flats="measured")
        outcome = correct_scan(settings, tmp_path / f"{name}.h5", tmp_path / f"{name}.out.h5")
        with read_result(tmp_path / f"{name}.out.h5") as result:
            found[name] = result.transmission.read(0, 5)
    assert outcome.verdict.word == "TRUSTED" and "flat 5 of 20 left out" in outcome.verdict.why
    assert np.abs(found["bad"] / found["good"] - 1).std() < 0.01  # a flat less of ten


def test_darks_that_show_the_beam_cost_trust(tmp_path):
    scan = simulate_scan(
        "film", "slow", shape=(48, 64), seed=3, frames=5, references="before-after"
    )
    write_scan(tmp_path / "scan.h5", replace(scan, dark=(0.4 * scan.flats[:10]).astype(np.uint16)))
    settings = CorrectSettings(scans=[tmp_path / "scan.h5"], flats="measured")
    outcome = correct_scan(settings, tmp_path / "scan.h5", tmp_path / "out.h5")
    assert outcome.verdict.word.startswith("CHECK") and "darks not used" in outcome.verdict.why
    assert not outcome.background.dark.any()
