"""Shift between images along one or two axes, by normalised cross-correlation over the overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[np.float64]


def row_shifts(first: NDArray[Any], second: NDArray[Any], least_overlap: float = 0.3) -> Array:
    """Find d such that second(x) = first(x + d), images sharing one shift along their rows.

    Parameters
    ----------
    first, second : `(n, z, w)`. least_overlap : share of the width that must overlap.

    Returns
    -------
    `(n,)` pixels, to a fraction of one.

    Source: Padfield 2012, "Masked object registration in the Fourier domain" (correlation
    normalised over the overlap of every shift).
    """
    width = first.shape[-1]
    score = _correlate(first, second)
    lags = np.arange(-(width - 1), width)
    score[:, np.abs(lags) > (1 - least_overlap) * width] = -np.inf
    best = score.argmax(1)
    return np.array([lags[i] + _peak(row, int(i)) for row, i in zip(score, best, strict=True)])


def _correlate(first: NDArray[Any], second: NDArray[Any]) -> Array:
    """Correlation coefficient `(n, 2 w - 1)` for shifts -(w - 1) .. w - 1."""
    width, rows = first.shape[-1], first.shape[-2]
    length = fft.next_fast_len(2 * width, real=True)
    middle = 0.5 * (first.mean((-2, -1), keepdims=True) + second.mean((-2, -1), keepdims=True))
    a, b = first - middle, second - middle
    ones = np.ones((1, 1, width))

    def overlap(f: NDArray[Any], g: NDArray[Any]) -> Array:
        spectrum = fft.rfft(f, length) * np.conj(fft.rfft(g, length))
        full = fft.irfft(spectrum.sum(-2), length)
        return np.concatenate([full[:, -(width - 1) :], full[:, :width]], 1)

    count = rows * np.maximum(overlap(ones, ones), 0.5)
    sum_a, sum_b = (
        overlap(a, np.broadcast_to(ones, a.shape)),
        overlap(np.broadcast_to(ones, b.shape), b),
    )
    var_a = overlap(a * a, np.broadcast_to(ones, a.shape)) - sum_a**2 / count
    var_b = overlap(np.broadcast_to(ones, b.shape), b * b) - sum_b**2 / count
    covariance = overlap(a, b) - sum_a * sum_b / count
    floor = 1e-9 * max(float(var_a.max()), float(var_b.max()), 1e-300)
    return np.asarray(covariance / np.sqrt(np.maximum(var_a, floor) * np.maximum(var_b, floor)))


def _peak(score: Array, i: int) -> float:
    """Offset of the parabola's top through a maximum and its neighbours."""
    if i in (0, len(score) - 1) or not np.isfinite(score[i - 1 : i + 2]).all():
        return 0.0
    left, middle, right = score[i - 1 : i + 2]
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if bend < 0 else 0.0
