"""Figures of merit on plain arrays: images, backgrounds by octave, spread, seams, contrast."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from txmcorrect.memo import remembered

Array = NDArray[Any]
Mask = NDArray[np.bool_]

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # Wang 2004: 11 x 11 Gaussian window


def _lit(values: Array, lit: Mask | None) -> Array:
    """Values of lit pixels, frame by frame: (..., h, w) -> (..., p)."""
    if lit is None:
        return values.reshape(*values.shape[:-2], -1)
    return np.asarray(values[..., lit])


def mse(image: Array, truth: Array, lit: Mask | None = None) -> float:
    """Mean squared error over lit pixels; `image`, `truth` `(..., h, w)`, `lit` `(h, w)`."""
    difference = _lit(np.asarray(image, np.float64) - truth, lit)
    return float(np.mean(difference**2))


def psnr(image: Array, truth: Array, lit: Mask | None = None, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio over lit pixels in dB; vacuum is 1, hence the range."""
    error = mse(image, truth, lit)
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def mae(image: Array, truth: Array, lit: Mask | None = None) -> float:
    """Mean absolute error over lit pixels."""
    return float(np.mean(np.abs(_lit(np.asarray(image, np.float64) - truth, lit))))


def ssim(image: Array, truth: Array, lit: Mask | None = None, data_range: float = 1.0) -> float:
    """Structural similarity, averaged over lit pixels whose window lies inside the frame.

    Parameters
    ----------
    image, truth : `(..., h, w)`, at least 11 pixels a side, or the window is cut to the frame.
    lit : `(h, w)` pixels that count.

    Source: Wang et al. 2004, Gaussian window of sigma 1.5, population covariance.
    """
    h, w = truth.shape[-2:]
    margin_y, margin_x = (SSIM_RADIUS if side > 2 * SSIM_RADIUS else 0 for side in (h, w))
    inside = np.zeros((h, w), bool)
    inside[margin_y : h - margin_y, margin_x : w - margin_x] = True
    counted = inside if lit is None else inside & lit
    return float(np.mean(_ssim_map(image, truth, data_range)[..., counted]))


def _window(x: Array) -> Array:
    return np.asarray(gaussian_filter(x, SSIM_SIGMA, radius=SSIM_RADIUS, axes=(-2, -1)))


@remembered()
def _moments(truth: Array) -> tuple[Array, Array, Array]:
    """What is compared with, its mean and its variance in every window; many images share a truth."""
    b = np.asarray(truth, np.float64)
    mean = _window(b)
    return b, mean, _window(b * b) - mean**2


def _ssim_map(image: Array, truth: Array, data_range: float) -> Array:
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    a = np.asarray(image, np.float64)
    b, mean_b, var_b = _moments(truth)
    mean_a = _window(a)
    var_a = _window(a * a) - mean_a**2
    covariance = _window(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return np.asarray(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))


def log_rms(log_error: Array, lit: Mask | None = None) -> Array:
    """Rms over lit pixels with the mean removed, `(..., h, w)` -> `(...)`: the shape error."""
    return np.asarray(np.std(_lit(np.asarray(log_error, np.float64), lit), axis=-1))


@remembered(4)
def octave_index(shape: tuple[int, int]) -> tuple[Array, list[str]]:
    """Octave of every cosine mode of a frame, and the octaves' names by wavelength in pixels.

    Returns
    -------
    `(h, w)` int octave, 0 the finest (2-4 pixels and shorter diagonals), -1 the mean;
    names such as `2-4`, `4-8`; the last octave takes all that is longer.
    """
    h, w = shape
    fy, fx = np.arange(h) / (2 * h), np.arange(w) / (2 * w)
    frequency = np.hypot(fy[:, None], fx[None, :])
    count = max(1, int(np.log2(max(h, w))))
    with np.errstate(divide="ignore"):
        octave = np.clip(np.floor(-np.log2(2 * frequency)), 0, count - 1)
    octave[0, 0] = -1
    names = [f"{2 << j}-{4 << j}" for j in range(count)]
    return octave.astype(np.intp), names


def band_power(log_error: Array, lit: Mask | None = None) -> dict[str, Array]:
    """Mean square per lit pixel in each octave: `(n, h, w)` -> `{octave: (n,)}`.

    Unlit pixels count as zero error. Cosine modes, not Fourier's: a ramp then stays in the
    coarsest octave instead of leaking into all through the frame's edge.
    """
    error = np.asarray(log_error, np.float64)
    lit = np.ones(error.shape[-2:], bool) if lit is None else lit
    centred = np.where(lit, error - _lit(error, lit).mean(-1)[..., None, None], 0.0)
    power = scipy.fft.dctn(centred, axes=(-2, -1), norm="ortho") ** 2
    octave, names = octave_index((error.shape[-2], error.shape[-1]))
    return {name: power[..., octave == j].sum(-1) / lit.sum() for j, name in enumerate(names)}


def band_rms(log_error: Array, lit: Mask | None = None) -> dict[str, float]:
    """Rms over frames and lit pixels in each octave: `{octave: rms}`."""
    power = band_power(log_error, lit)
    return {name: float(np.sqrt(np.mean(value))) for name, value in power.items()}


def band_pass(image: Array, lit: Mask | None = None) -> dict[str, Array]:
    """Split `(n, h, w)` into octaves that add up to the image less its lit mean."""
    lit = np.ones(image.shape[-2:], bool) if lit is None else lit
    centred = np.where(lit, image - _lit(image, lit).mean(-1)[..., None, None], 0.0)
    modes = scipy.fft.dctn(centred, axes=(-2, -1), norm="ortho")
    octave, names = octave_index((image.shape[-2], image.shape[-1]))
    return {
        name: scipy.fft.idctn(np.where(octave == j, modes, 0.0), axes=(-2, -1), norm="ortho")
        for j, name in enumerate(names)
    }


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Least-squares slope of y on x through the origin; NaN where x is zero everywhere."""
    x, y = np.ravel(np.asarray(x, np.float64)), np.ravel(np.asarray(y, np.float64))
    power = float(x @ x)
    return float(x @ y) / power if power > 0 else float("nan")


def coverage(truth: Array, mean: Array, std: Array, z: float = 1.645) -> float:
    """Share of values inside mean +- z std; 0.90 is right for z = 1.645."""
    return float(np.mean(np.abs(np.asarray(truth) - mean) <= z * np.asarray(std)))


def crps_normal(truth: Array, mean: Array, std: Array) -> float:
    """Continuous ranked probability score of a normal forecast, averaged.

    Source: Gneiting et al. 2005, Eq. 5; zero spread gives the absolute error.
    """
    std = np.maximum(np.asarray(std, np.float64), 1e-12)
    z = (np.asarray(truth, np.float64) - mean) / std
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return float(np.mean(std * (z * erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi))))


def crps_samples(truth: Array, samples: Array) -> float:
    """Fair CRPS of an ensemble: `truth` `(...)`, `samples` `(k, ...)` with k >= 2.

    Source: Ferro 2014: E|X - y| - E|X - X'| / 2 with the unbiased second term.
    """
    k = len(samples)
    ordered = np.sort(np.asarray(samples, np.float64), axis=0)
    weight = (2 * np.arange(1, k + 1) - k - 1).reshape(-1, *[1] * (ordered.ndim - 1))
    spread = (weight * ordered).sum(0) / (k * (k - 1))
    return float(np.mean(np.abs(ordered - truth).mean(0) - spread))


def contrast_to_noise(image: Array, inside: Mask, outside: Mask) -> float:
    """|mean inside - mean outside| over the standard deviation outside."""
    noise = float(np.std(image[outside]))
    contrast = abs(float(np.mean(image[inside]) - np.mean(image[outside])))
    return contrast / noise if noise > 0 else float("inf")


def relative_error(image: Array, truth: Array, mask: Mask | None = None) -> float:
    """||image - truth|| / ||truth||: the error of a reconstructed slice or volume."""
    chosen = slice(None) if mask is None else mask
    difference = np.linalg.norm((np.asarray(image, np.float64) - truth)[chosen])
    return float(difference / np.linalg.norm(np.asarray(truth, np.float64)[chosen]))


def seam_rms(
    corrected: Array, position_px: Array, lit: Mask | None = None, least_px: int = 64
) -> float:
    """Rms over overlapping pairs of the mean log-step between two tiles; NaN without overlap.

    Parameters
    ----------
    corrected : `(n, h, w)` transmission. position_px : `(n, 2)` (y, x) of the tiles' corners.
    lit : `(h, w)` pixels that count. least_px : smallest overlap that counts, in pixels.
    """
    n, h, w = corrected.shape
    lit = np.ones((h, w), bool) if lit is None else lit
    corner = np.rint(position_px).astype(int)
    steps = []
    for i in range(n):
        for j in range(i + 1, n):
            (ya, yb), (xa, xb) = (
                _overlap(int(corner[j, axis] - corner[i, axis]), side)
                for axis, side in enumerate((h, w))
            )
            both = lit[ya, xa] & lit[yb, xb]
            if both.sum() < least_px:
                continue
            first, second = corrected[i][ya, xa][both], corrected[j][yb, xb][both]
            # The log of the means, not the mean of the logs: counts may be few.
            steps.append(np.log(max(first.mean(), 1e-6) / max(second.mean(), 1e-6)))
    return float(np.sqrt(np.mean(np.square(steps)))) if steps else float("nan")


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Where two tiles shifted by `shift` pixels overlap, in each tile's own pixels."""
    if abs(shift) >= side:
        return slice(0, 0), slice(0, 0)
    first = slice(max(shift, 0), side + min(shift, 0))
    return first, slice(first.start - shift, first.stop - shift)
