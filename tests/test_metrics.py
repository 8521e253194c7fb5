"""Figures of merit against other implementations and against known answers."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from txmcorrect import metrics

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def images():
    truth = np.clip(RNG.normal(0.8, 0.1, (40, 53)), 0, 1.3)
    return truth + RNG.normal(0, 0.03, truth.shape), truth


def test_psnr_and_ssim_agree_with_scikit_image(images):
    image, truth = images
    assert metrics.psnr(image, truth) == pytest.approx(
        peak_signal_noise_ratio(truth, image, data_range=1.0)
    )
    theirs = structural_similarity(
        truth,
        image,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(image, truth) == pytest.approx(theirs, abs=1e-6)


def test_unlit_pixels_do_not_count(images):
    image, truth = images
    lit = np.ones(truth.shape, bool)
    lit[:9] = False
    spoilt = image.copy()
    spoilt[:9] = 50
    for figure in (metrics.psnr, metrics.mae):
        assert figure(spoilt, truth, lit) == figure(image, truth, lit) != figure(spoilt, truth)


def test_ssim_works_on_frames_of_two_rows():
    truth = RNG.random((3, 2, 64))
    assert metrics.ssim(truth, truth) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(32, 32), (24, 50), (2, 64)])
def test_octaves_add_up(shape):
    error = RNG.normal(size=(3, *shape))
    lit = RNG.random(shape) > 0.2
    total = sum(p.mean() for p in metrics.band_power(error, lit).values())
    assert total == pytest.approx((metrics.log_rms(error, lit) ** 2).mean(), rel=0.05)
    full = metrics.band_power(error)
    np.testing.assert_allclose(sum(full.values()), metrics.log_rms(error) ** 2)
    parts = sum(metrics.band_pass(error).values())
    np.testing.assert_allclose(parts, error - error.mean((1, 2), keepdims=True), atol=1e-12)


def test_a_wave_falls_into_its_octave():
    x = np.arange(64)
    for wavelength, octave in ((3, "2-4"), (11, "8-16"), (45, "32-64")):
        wave = np.broadcast_to(np.cos(2 * np.pi * (x + 0.5) / wavelength), (1, 64, 64))
        rms = metrics.band_rms(wave)
        assert max(rms, key=rms.get) == octave


def test_slope():
    x = RNG.normal(size=100)
    assert metrics.slope(x, -0.3 * x) == pytest.approx(-0.3)
    assert np.isnan(metrics.slope(np.zeros(4), np.ones(4)))


def test_spread_figures_on_a_forecast_that_is_right():
    truth = RNG.normal(2, 0.5, 40_000)
    assert metrics.coverage(truth, 2.0, 0.5) == pytest.approx(0.90, abs=0.01)
    assert metrics.coverage(truth, 2.0, 0.25) < 0.65
    right = metrics.crps_normal(truth, 2.0, 0.5)
    assert right == pytest.approx(
        0.5 / np.sqrt(np.pi), rel=0.02
    )  # closed form for a right forecast
    assert metrics.crps_normal(truth, 2.3, 0.5) > right < metrics.crps_normal(truth, 2.0, 2.0)
    assert metrics.crps_normal(truth, 2.0, 0.0) == pytest.approx(np.abs(truth - 2).mean())
    ensemble = RNG.normal(2, 0.5, (16, 40_000))
    assert metrics.crps_samples(truth, ensemble) == pytest.approx(right, rel=0.02)


def test_contrast_to_noise_and_relative_error():
    image = RNG.normal(0, 0.1, (50, 50))
    inside = np.zeros((50, 50), bool)
    inside[20:30, 20:30] = True
    image[inside] += 1
    assert metrics.contrast_to_noise(image, inside, ~inside) == pytest.approx(10, rel=0.1)
    assert metrics.relative_error(image * 1.1, image) == pytest.approx(0.1)


def test_seams_measure_the_step_between_tiles():
    world = np.clip(RNG.normal(0.9, 0.02, (80, 80)), 0, 2)
    position = np.array([[0, 0], [0, 30], [30, 0], [30, 30]])
    tiles = np.stack([world[y : y + 50, x : x + 50] for y, x in position])
    assert metrics.seam_rms(tiles, position) == pytest.approx(0, abs=1e-12)
    tiles[0] *= np.exp(0.06)
    assert metrics.seam_rms(tiles, position) == pytest.approx(0.06 / np.sqrt(2), rel=1e-6)
    assert np.isnan(metrics.seam_rms(tiles, position * 10))
