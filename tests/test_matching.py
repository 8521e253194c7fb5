"""References match or are refused; exposure and current are scaled, age is told."""

from pathlib import Path

import numpy as np
import pytest

from txmcorrect.errors import ReferenceMismatchError
from txmcorrect.matching import match_references
from txmcorrect.scan import ArrayFrames, Optics, References, Scan

OPTICS = Optics(energy_ev=8000.0, pixel_size_nm=20.0, magnification=500.0, binning=(1, 1))


def make_scan(**more):
    frames = ArrayFrames(np.ones((4, 6, 8), np.uint16))
    return Scan(Path("scan.h5"), "data exchange", frames, optics=OPTICS, **more)


def make_references(shape=(2, 6, 8), **more):
    return References(
        ArrayFrames(np.ones(shape, np.uint16)), **{"optics": OPTICS, "origin": "refs", **more}
    )


def test_counts_are_scaled_by_exposure_and_current():
    scan = make_scan(exposure_s=np.full(4, 2.0), current_ma=np.array([100.0, 100, 100, 50]))
    refs = make_references(exposure_s=np.array([1.0, 4.0]), current_ma=np.array([100.0, 200.0]))
    (match,) = match_references(scan, refs)
    np.testing.assert_allclose(match.scale, [2, 0.25])
    np.testing.assert_allclose(match.frame_scale, [1, 1, 1, 0.5])
    assert match.absolute and match.warnings == ()


def test_what_is_not_recorded_is_said():
    (match,) = match_references(
        make_scan(), make_references(current_ma=np.ones(2), optics=Optics())
    )
    np.testing.assert_array_equal(match.scale, 1)
    assert not match.absolute
    text = " | ".join(match.warnings)
    assert "exposure of the scan and references is not recorded" in text
    assert "current of the scan is not recorded" in text
    assert "cannot be checked: energy, binning, magnification" in text


def test_currents_of_different_kinds_are_not_compared():
    scan = make_scan(exposure_s=np.ones(4), current_ma=np.full(4, 300.0))
    refs = make_references(exposure_s=np.ones(2), current_ma=np.full(2, 1e-3))
    (match,) = match_references(scan, refs)
    np.testing.assert_array_equal(match.scale, 1)
    assert not match.absolute and "taken for another quantity" in " ".join(match.warnings)


def test_age_is_the_time_to_the_nearest_projection():
    scan = make_scan(time_s=np.array([1000.0, 1010, 1020, 1030]))
    (match,) = match_references(scan, make_references(time_s=np.array([400.0, 1013.0])))
    np.testing.assert_allclose(match.age_s, [600, 3])
    (old,) = match_references(scan, make_references(time_s=np.array([1000.0 - 7500, -9000.0])))
    assert any("2.1 h old" in note for note in old.warnings)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"optics": Optics(energy_ev=8100.0)}, "energy 8100.0 eV for 8000.0 eV"),
        ({"optics": Optics(binning=(2, 2))}, "binning 2x2 for 1x1"),
        ({"optics": Optics(pixel_size_nm=40.0)}, "pixel size 40 nm for 20 nm"),
        ({"optics": Optics(magnification=400.0)}, "magnification 400x for 500x"),
    ],
)
def test_other_optics_are_refused_unless_forced(change, word):
    with pytest.raises(ReferenceMismatchError, match=f"{word}.*--force"):
        match_references(make_scan(), make_references(**change))
    (match,) = match_references(make_scan(), make_references(**change), force=True)
    assert match.warnings[0].startswith("forced: ") and word in match.warnings[0]


def test_other_frame_size_is_refused_even_when_forced():
    for force in (False, True):
        with pytest.raises(ReferenceMismatchError, match="frames of 3x4 for a scan of 6x8"):
            match_references(make_scan(), make_references((2, 3, 4)), force=force)


def test_groups_that_fit_are_kept_and_others_left_out(caplog):
    good, bad = make_references(), make_references(optics=Optics(energy_ev=9000.0))
    (match,) = match_references(make_scan(), [bad, good])
    assert match.references is good
    assert "energy 9000.0 eV" in caplog.text
    assert match_references(make_scan(), ()) == ()


def test_small_differences_are_tolerated():
    near = Optics(energy_ev=8003.0, pixel_size_nm=20.1, magnification=502.0, binning=(1, 1))
    assert match_references(make_scan(), make_references(optics=near))


def test_energy_scans_take_references_within_their_range():
    scan = make_scan(energy_ev=np.array([7900.0, 8000, 8100, 8200]))
    assert match_references(scan, make_references(optics=Optics(energy_ev=8150.0)))
    with pytest.raises(ReferenceMismatchError, match="energy"):
        match_references(scan, make_references(optics=Optics(energy_ev=8400.0)))


def test_corrected_data_are_refused_unless_forced():
    scan = make_scan(corrected_by="the vendor's software")
    with pytest.raises(ReferenceMismatchError, match="vendor's software has already corrected"):
        match_references(scan, make_references())
    assert match_references(scan, make_references(), force=True)
