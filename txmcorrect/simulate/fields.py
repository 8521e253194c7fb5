"""Random fields: the raw material of beams, detectors and samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Image = NDArray[np.float32]
Shape = tuple[int, int]


def frequencies(shape: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cycles per pixel along y `(h, 1)` and, for the half spectrum of real fields, x `(1, w//2+1)`."""
    h, w = shape
    return scipy.fft.fftfreq(h)[:, None], scipy.fft.rfftfreq(w)[None]


def spectrum(rng: np.random.Generator, shape: Shape, low: float, slope: float) -> NDArray[Any]:
    """Half spectrum of a periodic Gaussian field of unit variance.

    Power is flat below the frequency `low` (cycles per pixel) and falls as `k**-slope` above it;
    the mean is zero.
    """
    fy, fx = frequencies(shape)
    amplitude = (1 + (fy**2 + fx**2) / low**2) ** (-slope / 4)
    white = scipy.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    amplitude[0, 0] = 0
    shaped = white * amplitude.astype(np.float32)
    return shaped / (scipy.fft.irfft2(shaped, s=shape).std() + 1e-12)


def smooth_field(
    rng: np.random.Generator, shape: Shape, width_px: float, slope: float = 6
) -> Image:
    """Gaussian random field `shape` of unit variance whose features are about `width_px` wide.

    Drawn on a grid a quarter larger than asked, so that opposite borders do not match.
    """
    h, w = shape
    grid = scipy.fft.next_fast_len(h * 5 // 4, True), scipy.fft.next_fast_len(w * 5 // 4, True)
    low = 1 / (4 * max(width_px, 1))
    field = scipy.fft.irfft2(spectrum(rng, grid, low, slope), s=grid)
    return np.asarray(field[:h, :w], np.float32)


def shifted(half_spectrum: NDArray[Any], grid: Shape, shifts: NDArray[Any]) -> Image:
    """Move a periodic field by sub-pixel `shifts` `(n, 2)` (y, x): `(n, *grid)` (Fourier shift theorem)."""
    fy, fx = frequencies(grid)
    phase = np.exp(-2j * np.pi * (shifts[:, 0, None, None] * fy + shifts[:, 1, None, None] * fx))
    return np.asarray(
        scipy.fft.irfft2(half_spectrum * phase.astype(np.complex64), s=grid), np.float32
    )


def grid_px(shape: Shape) -> tuple[Image, Image]:
    """Pixel coordinates from the centre: y `(h, 1)` and x `(1, w)`."""
    h, w = shape
    y = np.arange(h, dtype=np.float32)[:, None] - (h - 1) / 2
    x = np.arange(w, dtype=np.float32)[None] - (w - 1) / 2
    return y, x
