"""Flats as they were measured: of two moments, of one, for a single frame; views in which nothing moves."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from txmcorrect.background import static_view
from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.correction import correct_scan
from txmcorrect.background.course import Background
from txmcorrect.background.measured import (
    Burst,
    bursts_of,
    course_weights,
    key_frames,
    measured_background,
)
from txmcorrect.background.pattern import fixed_pattern
from txmcorrect.background.scale import Reference
from txmcorrect.background.survey import survey_scan
from txmcorrect.config import CorrectSettings, MosaicSettings
from txmcorrect.errors import FlatFieldError
from txmcorrect.formats.corrected import read_result
from txmcorrect.scan import ArrayFrames, Scan
from txmcorrect.simulate import simulate_scan
from txmcorrect.synthesize import write_scan

SHAPE, FACTOR, LIGHT = (48, 64), 2, 5000.0
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]] / SHAPE[1]
PATTERN = np.exp(0.02 * np.random.default_rng(0).standard_normal(SHAPE))
BEFORE = LIGHT * np.exp(-((X - 0.45) ** 2) - (Y - 0.4) ** 2) * PATTERN
AFTER = BEFORE * np.exp(0.1 * (X - 0.5))


def reference(flats, before=None, exposure=None, n=9, photons=None):
    flats = np.asarray(flats, np.float32)
    return Reference(
        flats.mean(0),
        np.zeros(n) if exposure is None else exposure,
        exposure is not None,
        "flats",
        bin_mean(torch.from_numpy(flats), FACTOR).numpy(),
        before,
        photons,
        flats.__getitem__,
    )


def look(frames, least=1):
    scan = Scan(Path("frames"), "arrays", ArrayFrames(np.asarray(frames, np.float32)))
    return scan, survey_scan(
        scan, np.zeros(SHAPE, np.float32), 32, 2**28, lambda *a: None, least=least
    )


def log_background(found, survey, frame):
    n = len(survey.small)
    whole = Background(
        found.keys,
        np.zeros(0, np.intp),
        found.fields,
        found.std,
        (found.details,),
        found.shares,
        FACTOR,
        found.amplitude,
        np.zeros(n, np.uint32),
        found.lit,
        survey.dark,
        found.scale,
    )
    return whole.log_background(frame)


def test_between_two_moments_the_background_is_linear():
    flats = np.stack([BEFORE, BEFORE, AFTER, AFTER])
    exposure = np.log(np.linspace(1, 0.9, 9))
    _, survey = look(
        np.repeat(BEFORE[None], 9, 0) * (1 + 0.1 * np.random.default_rng(1).random((9, *SHAPE)))
    )
    found = measured_background(
        [reference(flats, np.array([0, 0, 9, 9]), exposure, photons=1e6)], survey
    )
    for frame in (0, 4, 8):
        share = (frame + 0.5) / 9
        wanted = (1 - share) * np.log(BEFORE) + share * np.log(AFTER) + exposure[frame]
        assert np.abs(log_background(found, survey, frame) - wanted)[found.lit].max() < 2e-3
    assert (
        found.lit.mean() > 0.99
        and found.notes == ()
        and found.scale == "reference (flats, exposure and current recorded)"
    )


def test_fine_noise_of_all_moments_is_averaged():
    """Two moments that differ by photon noise alone are one flat of as many frames."""
    rng = np.random.default_rng(2)
    flats = rng.poisson(BEFORE, (20, *SHAPE))
    _, survey = look(rng.poisson(BEFORE, (9, *SHAPE)))
    found = measured_background([reference(flats, np.repeat([0, 9], 10), photons=20.0)], survey)
    off = log_background(found, survey, 0) - np.log(BEFORE)
    noise = np.sqrt((1 / BEFORE).mean())
    fine = off - np.kron(off.reshape(24, 2, 32, 2).mean((1, 3)), np.ones((2, 2)))
    assert fine.std() < 1.1 * noise / 20**0.5 < noise / 10**0.5
    assert found.grain == pytest.approx(noise / 20**0.5, rel=0.05)


def test_flats_within_the_scan_count_where_they_were_taken():
    places = np.array([0.0, 4.0, 9.0])
    assert key_frames(places, 9).tolist() == [0, 3, 4, 8]
    weights = course_weights(places, np.array([3.0, 4.0]))
    np.testing.assert_allclose(weights, [[0.125, 0.875, 0], [0, 0.9, 0.1]])


def test_the_scans_own_flats_count_before_others():
    _, survey = look(np.repeat(BEFORE[None], 3, 0))
    own, other = reference([BEFORE, AFTER], np.array([0, 3]), n=3), reference([AFTER], n=3)
    assert [(b.place, b.counts[5, 5]) for b in bursts_of([other, own], survey)] == [
        (0, pytest.approx(BEFORE[5, 5])),
        (3, pytest.approx(AFTER[5, 5])),
    ]
    (only,) = bursts_of([other], survey)
    assert isinstance(only, Burst) and only.counts[5, 5] == pytest.approx(AFTER[5, 5])


def _simulated(**more):
    return simulate_scan("tomo", "slow", shape=(48, 64), seed=4, frames=8, **more)


def _correct(tmp_path, scan, frames=None, **options):
    write_scan(tmp_path / "scan.h5", scan)
    if frames is not None:
        with h5py.File(tmp_path / "scan.h5", "r+") as file:
            del file["exchange/data"]
            file["exchange/data"] = frames
            for name in list(file["exchange"]):
                if name.startswith("theta"):
                    del file["exchange"][name]
    out = tmp_path / "out.h5"
    settings = CorrectSettings(scans=[tmp_path / "scan.h5"], steps=1, samples=2, **options)
    outcome = correct_scan(settings, tmp_path / "scan.h5", out)
    with read_result(out) as result:
        return (
            outcome,
            result.transmission.read(0, result.shape[0]),
            result.lit,
            result.raw(0, result.shape[0]),
        )


def test_measured_flats_from_file_to_file(tmp_path):
    scan = _simulated(references="before-after")
    outcome, found, lit, raw = _correct(tmp_path, scan, flats="measured")
    assert "flats measured: as asked" in str(outcome.verdict)
    assert outcome.background.decided == "measured flats: as asked"
    error = np.log(found / scan.transmission)[:, lit & scan.lit]
    photon = np.sqrt(np.mean(1 / (scan.background * scan.transmission)[:, lit & scan.lit]))
    assert error.std() < 1.2 * photon and abs(np.median(error)) < 0.01
    assert np.abs(raw - scan.counts)[:, lit].max() < 0.1


def test_measured_flats_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(FlatFieldError, match="--flats measured, found none"):
        _correct(tmp_path, _simulated(), flats="measured")


def test_one_frame_is_divided_by_its_flats(tmp_path):
    scan = _simulated(references="stale")
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["exchange/data"] = scan.counts[:1]
        file["exchange/data_white"], file["exchange/data_dark"] = scan.flats, scan.dark
    settings = CorrectSettings(scans=[tmp_path / "one.h5"])
    outcome = correct_scan(settings, tmp_path / "one.h5", tmp_path / "out.h5")
    verdict = str(outcome.verdict)
    assert (
        "one frame alone does not show how the beam has changed" in verdict
        and "taken as equal" in verdict
    )
    dark = scan.dark.mean(0)
    flat = scan.flats.mean(0) - dark
    plain = (scan.counts[0] - dark) / np.where(scan.lit, flat, 1)
    with read_result(tmp_path / "out.h5") as result:
        lit = result.lit & scan.lit
        found = result.transmission.read(0, 1)[0]
        assert np.abs(found[lit] / plain[lit] - 1).max() < 0.02
    with pytest.raises(FlatFieldError, match="at least two frames"):
        generated = settings.model_copy(update={"flats": "generated"})
        correct_scan(generated, tmp_path / "one.h5", tmp_path / "other.h5")


@pytest.mark.parametrize("settings", [CorrectSettings, MosaicSettings])
def test_commands_leave_the_choice_to_the_scan(settings):
    assert settings(scans=["a.h5"]).flats == "auto"


def _moving(contrast):
    return np.stack([1 - contrast * ((X - 0.1 * i) ** 2 + (Y - 0.4) ** 2 < 0.02) for i in range(8)])


@pytest.mark.parametrize(("contrast", "static"), [(0.0, True), (0.02, False), (0.3, False)])
def test_a_view_in_which_nothing_moves_is_told(contrast, static):
    """A disk that stands still, levels that fall; contrast is that of one that moves."""
    level = np.linspace(1, 0.95, 8)[:, None, None]
    still = np.where((X - 0.6) ** 2 + (Y - 0.3) ** 2 < 0.03, 0.6, 1)
    frames = np.random.default_rng(3).poisson(BEFORE * still * level * _moving(contrast))
    _, survey = look(frames)
    assert static_view.is_static(survey, np.ones(survey.small.shape[1:], bool)) is static


def test_without_references_a_static_view_fails_and_says_why(tmp_path):
    frames = (
        np.random.default_rng(3)
        .poisson(BEFORE * np.where(X > 0.5, 0.6, 1), (6, *SHAPE))
        .astype(np.uint16)
    )
    np.save(tmp_path / "still.npy", frames)
    settings = CorrectSettings(scans=[tmp_path / "still.npy"], steps=1, samples=2)
    outcome = correct_scan(settings, tmp_path / "still.npy", tmp_path / "out.h5")
    assert outcome.verdict.word == "FAILED" and "nothing moves" in outcome.verdict.why


def _pattern_of(frames, flats):
    scan, survey = look(frames)
    return fixed_pattern(
        scan, survey, (reference(flats, n=len(frames), photons=float(len(flats))),), 2**28
    )


@pytest.mark.parametrize("light", [0.1, 1.0])
def test_flats_of_a_detector_without_pattern_are_used(light):
    rng = np.random.default_rng(4)
    smooth = light * BEFORE / PATTERN
    found = _pattern_of(rng.poisson(smooth * _moving(0.4)), rng.poisson(smooth, (10, *SHAPE)))
    assert found.fit.tolist() == [0]


def test_a_pattern_that_frames_deny_is_refused():
    rng = np.random.default_rng(5)
    frames = rng.poisson(BEFORE * _moving(0.4))
    wrong = BEFORE / PATTERN * PATTERN[::-1, ::-1]
    assert _pattern_of(frames, rng.poisson(wrong, (10, *SHAPE))).fit.tolist() == []
    assert _pattern_of(frames, rng.poisson(BEFORE, (10, *SHAPE))).fit.tolist() == [0]
