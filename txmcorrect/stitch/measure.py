"""A whole shift refined to a fraction of a pixel, with an uncertainty that can be believed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, spline_filter, uniform_filter
from scipy.ndimage import shift as spline_shift

from txmcorrect.stitch.register import (
    LEAST_PX,
    NARROWEST_PX,
    Feature,
    cell_area,
    log_likelihood,
    overlap_slices,
)

Array = NDArray[Any]

BANDS_PX = ((2.0, 12.0), (1.0, 8.0))  # the coarse band leads there, the fine one measures
RECUTS, GAUSS_NEWTON = 6, 5
MARGIN_PX = 6  # around a cut, for what moves in
LEASH_PX = 3.0  # how far a refined shift may go from the whole one, one standard deviation
WIDE_PX = 10.0  # along a fibre nothing is known, and fibres bend
FLOOR_PX = 0.1  # no shift is known better: lenses distort, the stage moves during exposures
HUBER = 2.5  # robust standard deviations: dust sits on the detector and matches nothing
SPOT_PX = 33
ONE_SPOT = 8.0
BLOCK_PX = 16  # parts of an overlap that speak for themselves


class Measured(NamedTuple):
    """`(2,)` shift, `(2, 2)` covariance, correlation and log-likelihood ratio of an overlap."""

    shift: NDArray[np.float64]
    covariance: NDArray[np.float64]
    correlation: float
    score: float


class _Cut:
    """What two tiles share at a whole shift, `(h', w')`, and the band-pass that both go through.

    The band-pass is linear and the same for both, edges included: what it does to the one it does to
    the other, so edges cannot hold a shift where the cut happened to be.
    """

    def __init__(
        self, first: Feature, second: Feature, shift: tuple[int, int], band: tuple[float, float]
    ) -> None:
        # Tiles that are expected to have drawn apart share nothing.
        h, w = first.log.shape
        near = (int(np.clip(shift[0], -h, h)), int(np.clip(shift[1], -w, w)))
        one, two = overlap_slices(near, (h, w))
        self.weight = np.sqrt(first.weight[one] * second.weight[two])
        inner = np.zeros(self.weight.shape, bool)
        inner[1:-1, 1:-1] = True  # next to a frame's edge nothing can be interpolated
        self.weight = self.weight * inner
        self.mask = (self.weight > 0).astype(np.float32)
        self.empty = min(inner.shape, default=0) < NARROWEST_PX or self.weight.sum() < LEAST_PX
        self.band = band
        if not self.empty:
            self.known = [gaussian_filter(self.mask, b, mode="constant") + 1e-6 for b in band]
            self.raw = first.log[one]
            self.first = self.filtered(self.raw)
            self.slope = np.stack([self.filtered(g) for g in np.gradient(self.raw)])
            wide, self.inside = _widened(two, second.log.shape)
            self.coefficients = spline_filter(second.log[wide], 3, np.float32, mode="nearest")

    def filtered(self, image: Array) -> Array:
        """Band-pass over the pixels that both tiles know."""
        image = image * self.mask
        low, high = (
            gaussian_filter(image, width, mode="constant") / known
            for width, known in zip(self.band, self.known, strict=True)
        )
        return np.asarray((low - high) * self.mask)

    def second(self, offset: Array) -> Array:
        """The second tile moved by an offset, `(h', w')`."""
        return self.filtered(self._moved(offset)[self.inside])

    def second_slope(self, offset: Array) -> Array:
        """Gradient of the second tile moved by an offset, `(2, h', w')`."""
        slope = np.gradient(self._moved(offset))
        return np.stack([self.filtered(g[self.inside]) for g in slope])

    def _moved(self, offset: Array) -> Array:
        moved = spline_shift(self.coefficients, offset, order=3, mode="nearest", prefilter=False)
        return np.asarray(moved)


def _widened(slices: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A crop with a margin for interpolation, and the crop inside it."""
    low = [max(s.start - MARGIN_PX, 0) for s in slices]
    high = [min(s.stop + MARGIN_PX, side) for s, side in zip(slices, shape, strict=True)]
    wide = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    inside = tuple(slice(s.start - a, s.stop - a) for s, a in zip(slices, low, strict=True))
    return wide, inside


def measure(first: Feature, second: Feature, shift: tuple[int, int]) -> Measured | None:
    """Refine a whole shift, in a coarse band and then in a fine one.

    Both tiles are cut to what they share; where the refined shift lies off, the cut is made anew. A
    prior of `LEASH_PX` about the whole shift keeps the directions in which nothing is seen, along a
    fibre, where they were.

    Returns
    -------
    None where nothing is shared.
    """
    start, whole = np.array(shift, float), shift
    for band in BANDS_PX:
        for _ in range(RECUTS):
            cut = _Cut(first, second, whole, band)
            if cut.empty:
                return None
            offset = _refine(cut, start - whole)
            if np.abs(offset).max() <= 0.75:
                break
            y, x = np.clip(np.rint(offset), -2, 2).astype(int)
            whole = whole[0] + int(y), whole[1] + int(x)
    moved = cut.second(offset)
    covariance = _covariance(cut, moved, cut.second_slope(offset))
    return Measured(np.add(whole, offset), covariance, *_strength(cut.first, moved, cut.weight))


def _refine(cut: _Cut, anchor: Array) -> Array:
    """Displacement of the second against the first by Gauss-Newton on their difference.

    With the gradient of the mean of both, noise of the one or the other does not pull. `anchor` is
    where the prior wants the displacement to be.

    Source: Lucas and Kanade 1981.
    """
    offset = np.zeros(2)
    for turn in range(GAUSS_NEWTON):
        if turn in (0, GAUSS_NEWTON // 2):  # it costs more than all the rest and hardly changes
            gradient = (cut.slope + cut.second_slope(offset)) / 2
        difference = cut.second(offset) - cut.first
        weight = cut.weight * _huber(difference, cut.weight)
        information = np.einsum("yx,iyx,jyx->ij", weight, gradient, gradient)
        right = np.einsum("yx,iyx,yx->i", weight, gradient, difference)
        residual = float((weight * difference**2).sum() / weight.sum())
        # Independent residuals, not pixels, decide how much the overlap may say against the prior.
        area = cell_area(*[_autocorrelation(difference * weight)] * 2)
        leash = max(residual * area, 1e-30) / LEASH_PX**2 * np.eye(2)
        step = np.linalg.solve(information + leash, right + leash @ (anchor - offset))
        offset = np.clip(offset + step, -3, 3)
        if np.abs(step).max() < 0.01 or np.abs(offset).max() > 2:
            break
    return np.asarray(offset)


def _huber(difference: Array, weight: Array) -> Array:
    lit = np.abs(difference[weight > 0])
    usual = max(1.4826 * float(np.median(lit)), 1e-12)
    return np.minimum(1.0, HUBER * usual / np.maximum(np.abs(difference), 1e-12))


def _covariance(cut: _Cut, moved: Array, slope: Array) -> Array:
    """Covariance `(2, 2)` of the displacement found.

    What its parts, each left to itself, would want to change tells how much the whole may be off: the
    sandwich of Huber 1967, over blocks. The curvature is the product of the gradients of both tiles;
    noise, which they do not share, is not taken for detail.
    """
    difference = moved - cut.first
    weight = cut.weight * _huber(difference, cut.weight)
    cross = np.einsum("yx,iyx,jyx->ij", weight, cut.slope, slope)
    values, vectors = np.linalg.eigh((cross + cross.T) / 2)
    pull = weight * difference * (cut.slope + slope) / 2
    rows, columns = (max(side // BLOCK_PX, 1) for side in weight.shape)
    label = (np.arange(weight.shape[0]) * rows // weight.shape[0])[:, None] * columns
    label = label + (np.arange(weight.shape[1]) * columns // weight.shape[1])[None]
    parts = np.stack([np.bincount(label.ravel(), p.ravel()) for p in pull])
    count = parts.shape[1]
    spread = np.square(vectors.T @ parts).sum(1) * count / max(count - 1, 1)
    # With few parts the spread is a guess: Student's variance is wider than the sample's.
    spread = spread * max(count - 1, 1) / max(count - 3, 0.5)
    known = values > 1e-9 * max(float(np.abs(values).max()), 1e-30)
    variance = np.where(known, spread / np.where(known, values, 1) ** 2, WIDE_PX**2)
    variance = np.minimum(variance + FLOOR_PX**2, WIDE_PX**2)
    return np.asarray((vectors * variance) @ vectors.T)


def _autocorrelation(image: Array) -> Array:
    return np.asarray(scipy.fft.irfft2(np.abs(scipy.fft.rfft2(image)) ** 2, image.shape))


def _strength(a: Array, b: Array, weight: Array) -> tuple[float, float]:
    """Correlation of two aligned overlaps, and the evidence in it.

    A single spot that fits, whatever its contrast, is one coincidence: particles look alike. What the
    strongest neighbourhood of `SPOT_PX` adds to the evidence is capped at `ONE_SPOT`.
    """
    a, b = (weight * (i - np.average(i, weights=weight)) for i in (a, b))
    power = float((a * a).sum() * (b * b).sum())
    rho = float((a * b).sum()) / power**0.5 if power > 0 else 0.0
    area = cell_area(_autocorrelation(a), _autocorrelation(b))
    score = float(log_likelihood(np.asarray(rho), weight.sum(), area))
    if rho <= 0:
        return rho, 0.0
    spot = float(uniform_filter(a * b, SPOT_PX, mode="constant").max()) * SPOT_PX**2
    share = score * min(spot / float((a * b).sum()), 1.0)
    return rho, score - share + min(share, ONE_SPOT)
