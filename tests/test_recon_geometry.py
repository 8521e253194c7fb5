"""Axis, alignment, selection of frames, flats and the logarithm."""

import math

import numpy as np
import pytest
import torch

from txmcorrect.errors import FlatFieldError, GeometryError
from txmcorrect.recon.absorption import absorption, is_phase_contrast, photon_floor
from txmcorrect.recon.align import METHODS, common_line, move
from txmcorrect.recon.centre import centre_from_pairs, find_centre
from txmcorrect.recon.flatfield import FlatFielded
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.projector import Projector
from txmcorrect.recon.selection import bad_frames, resolve_duplicates
from txmcorrect.recon.shifts import row_shifts
from txmcorrect.scan import ArrayFrames
from txmcorrect.simulate.scans import simulate_scan


@pytest.fixture(scope="module")
def scan():
    return simulate_scan("tomo", shape=(48, 72), frames=90, bank=0, seed=1)


def _slices(theta, center, noise, seed=0, size=64):
    rng = np.random.default_rng(seed)
    truth = np.zeros((3, size, size), np.float32)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    for one in truth:
        for _ in range(12):
            r, a = rng.uniform(0, 22), rng.uniform(0, 2 * math.pi)
            one += (np.hypot(x - r * np.cos(a), y - r * np.sin(a)) < rng.uniform(2, 6)) / 40
    beam = ParallelBeam(theta, size + 8, center)
    sinograms = Projector(beam, size).A(torch.from_numpy(truth))
    return sinograms + noise * torch.from_numpy(rng.standard_normal(sinograms.shape)).float()


@pytest.mark.parametrize(
    ("center", "span"), [(30.0, math.pi), (43.7, math.pi), (36.4, 2 * math.pi), (43.7, 2.5)]
)
def test_axis_is_found(center, span):
    theta = torch.linspace(0, span, 61)
    found = find_centre(_slices(theta, center, 0.02), theta)
    assert abs(found.value - center) < max(0.25, 3 * found.std)
    assert found.std < 0.6
    assert found.method == ("centroid" if span < 3 else "sharpness")


def test_opposite_views_give_the_axis():
    theta = torch.linspace(0, math.pi, 61)
    assert centre_from_pairs(_slices(theta, 33.3, 0.01), theta) == pytest.approx(33.3, abs=0.1)
    assert centre_from_pairs(_slices(theta[:50], 33.3, 0.01), theta[:50]) is None


def test_axis_needs_views():
    with pytest.raises(GeometryError, match="expected 4 views or more"):
        find_centre(torch.zeros(1, 3, 16), torch.arange(3.0))


def test_row_shifts_have_the_sign_they_say():
    x = np.arange(80.0)
    bump = np.exp(-((x - 40) ** 2) / 30)[None, None]
    later = np.exp(-((x - 33.7) ** 2) / 30)[None, None]  # later(x) = bump(x + 6.3)
    assert row_shifts(bump, later)[0] == pytest.approx(6.3, abs=0.1)


@pytest.mark.parametrize(("method", "limit"), [("common-line", 0.15), ("correlation", 0.3)])
def test_alignment_finds_random_shifts(scan, method, limit):
    rng = np.random.default_rng(0)
    wanted = rng.uniform(-3, 3, (90, 2))
    moved = move(-np.log(scan.transmission).astype(np.float32), -wanted).astype(np.float64)
    found = METHODS[method](moved.sum(2), moved.sum(1), scan.theta)
    error = found - wanted
    # A common shift is the axis' business, and so is a sinusoid: it moves the sample.
    basis = np.stack([np.ones(90), np.cos(scan.theta), np.sin(scan.theta)], 1)
    error[:, 0] -= error[:, 0].mean()
    error[:, 1] -= basis @ np.linalg.lstsq(basis, error[:, 1], rcond=None)[0]
    assert np.abs(error).max() < limit


def test_common_line_refuses_a_sample_that_leaves_the_view():
    columns = np.ones((20, 30)) * np.linspace(1, 2, 20)[:, None]
    with pytest.raises(GeometryError, match="expected the whole sample in every projection"):
        common_line(np.ones((20, 10)) + np.arange(10), columns, np.linspace(0, 3, 20))


def test_whole_shifts_are_exact():
    frames = np.random.default_rng(0).random((2, 9, 11)).astype(np.float32)
    moved = move(frames, np.array([[0.0, 0.0], [2.0, -3.0]]))
    assert np.array_equal(moved[0], frames[0])
    assert np.array_equal(moved[1, 2:, :-3], frames[1, :-2, 3:])


def test_latest_good_frame_of_an_angle_counts():
    theta = np.deg2rad([0, 1, 2, 3, 2.001, 1.0, 4, 3.0])
    bad = np.array([0, 0, 0, 0, 0, 1, 0, 0], bool)
    assert resolve_duplicates(theta, bad).tolist() == [0, 1, 4, 7, 6]


def test_bad_frames_stand_out():
    mass = 0.4 + 0.02 * np.sin(np.arange(60) / 5)
    finite = np.ones(60)
    assert not bad_frames(mass, finite).any()
    mass[17], mass[40], finite[50] = 3.0, 0.0, 0.1
    assert np.flatnonzero(bad_frames(mass, finite)).tolist() == [17, 40, 50]


def test_logarithm_is_never_clipped():
    t = torch.tensor([2.0, 1.0, 0.5, 0.01, 0.0, -0.02])
    p = absorption(t, 0.01)
    assert torch.allclose(p[:4], -t[:4].log())
    assert torch.isfinite(p).all() and (p[1:] > p[:-1]).all()
    below = torch.tensor([0.01 - 1e-5, 0.01 + 1e-5])
    slope = (absorption(below, 0.01)[0] - absorption(below, 0.01)[1]) / 2e-5
    assert float(slope) == pytest.approx(100, rel=0.01)


def test_photon_floor():
    assert photon_floor(100.0) == 0.01
    assert photon_floor(None) == photon_floor(1000.0) == 1e-3
    assert photon_floor(3.0) == 0.05


def test_phase_contrast_is_told_from_noise():
    rng = np.random.default_rng(0)
    noise = (rng.poisson(100, (3, 64, 64)) / 100).astype(np.float32)
    assert not is_phase_contrast(noise)
    noise[:, 20:44, 20:44] *= 1.2
    assert is_phase_contrast(noise)


def test_flats_before_and_after_are_interpolated():
    flats = np.stack([np.full((4, 6), 100.0), np.full((4, 6), 200.0)]).astype(np.float32)
    flats[:, 0, 0] = 0  # dead
    light = np.linspace(100, 200, 11, dtype=np.float32)
    counts = 5 + 0.5 * light[:, None, None] * np.ones((11, 4, 6), np.float32)
    dark = np.full((4, 6), 5, np.float32)
    at, scale = np.array([0.0, 10.0]), np.ones(11)
    seen = FlatFielded(ArrayFrames(counts), dark, flats, at, scale).read(2, 11)
    assert np.allclose(seen[:, 1:], 0.5)
    assert (seen[:, 0, 0] == 1).all()
    split = FlatFielded(ArrayFrames(counts), dark, flats, at, scale, split=6)
    assert split.flat(5)[1, 1] == 100 and split.flat(6)[1, 1] == 200


def test_flats_below_dark_are_refused():
    with pytest.raises(FlatFieldError, match="are they swapped"):
        flats = -np.ones((1, 4, 6), np.float32)
        frames = ArrayFrames(np.ones((2, 4, 6)))
        FlatFielded(frames, np.zeros((4, 6), np.float32), flats, np.zeros(1), np.ones(2))
