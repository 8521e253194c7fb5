"""How far two tiles are apart: band-passed, weighted, normalised cross-correlation.

A shift is `position[second] - position[first]`, (y, x) in pixels. Evidence for a shift is the
log-likelihood ratio of two Gaussian images with that correlation against independent ones, counted
in independent cells rather than in pixels, so that narrow and wide overlaps, fibres and speckle
compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.ndimage import shift as spline_shift

Array = NDArray[Any]
Mask = NDArray[np.bool_]

BAND_PX = (1.0, 5.0)  # keeps edges and texture, drops photon noise and background
COARSE_PX = (2.0, 10.0)  # leads there from some pixels away
CLIP = 2.0  # robust standard deviations: one bright fibre must not outvote all the rest
DARKEST = 0.02  # transmission below which nothing is read
RECUTS, GAUSS_NEWTON, LEASH_PX = 8, 4, 3
NARROWEST_PX = 4
LEAST_PX = 200.0  # an overlap with less weight than this says nothing
FLOOR_PX = 0.2  # no shift is known better: lenses distort, the stage moves during exposures


@dataclass(frozen=True)
class Feature:
    """What of a tile is compared: `(h, w)` logarithm, its band-passed values, and weights."""

    log: Array
    values: Array
    weight: Array


@dataclass(frozen=True)
class Window:
    """Shifts looked at, ends included, in whole pixels."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def axes(self) -> tuple[Array, Array]:
        """Shifts along y as a column, along x as a row."""
        return np.arange(self.y0, self.y1 + 1)[:, None], np.arange(self.x0, self.x1 + 1)[None]


@dataclass(frozen=True)
class Evidence:
    """Log-likelihood ratio of each shift of a window, `(ny, nx)`, and cells it had to choose from."""

    window: Window
    score: Array
    cells: float


class Measured(NamedTuple):
    """`(2,)` shift, `(2, 2)` covariance, correlation and log-likelihood ratio of an overlap."""

    shift: NDArray[np.float64]
    covariance: NDArray[np.float64]
    correlation: float
    score: float


@dataclass(frozen=True)
class Match:
    """A measured shift of one pair.

    Attributes
    ----------
    shift : `(2,)` px; covariance : `(2, 2)` px^2, long along a fibre that runs through the overlap.
    correlation : band-passed, at the peak. score : log-likelihood ratio there.
    margin : by how much the next best peak falls short.
    """

    first: int
    second: int
    shift: NDArray[np.float64]
    covariance: NDArray[np.float64]
    correlation: float
    score: float
    margin: float


def feature(transmission: Array, lit: Mask) -> Feature:
    """Band-pass the logarithm of a tile; unlit pixels and dark parts count less.

    Parameters
    ----------
    transmission : `(h, w)`. lit : `(h, w)` pixels that count.
    """
    mask = lit.astype(np.float32)
    # The logarithm of next to nothing is noise; the weight says how little it counts.
    log = np.log(np.maximum(transmission, DARKEST)).astype(np.float32) * mask
    weight = mask * np.clip(transmission, DARKEST, 1.0)
    return Feature(log, _band_pass(log, mask, BAND_PX), weight.astype(np.float32))


def _band_pass(log: Array, mask: Array, sigmas: tuple[float, float]) -> Array:
    """Difference of two Gaussian averages over a mask, clipped."""
    band = (_smooth(log, mask, sigmas[0]) - _smooth(log, mask, sigmas[1])) * mask
    lit = mask > 0
    scale = 1.4826 * float(np.median(np.abs(band[lit]))) if lit.any() else 0.0
    return np.asarray(np.clip(band, -CLIP * scale, CLIP * scale))


def _smooth(values: Array, mask: Array, sigma: float) -> Array:
    """Gaussian average over the pixels of a mask."""
    total = gaussian_filter(values, sigma, mode="constant")
    return np.asarray(total / (gaussian_filter(mask, sigma, mode="constant") + 1e-6))


def overlap_slices(shift: Sequence[int], shape: tuple[int, int]) -> tuple[Any, Any]:
    """The pixels two frames share, as slices of the first and of the second."""
    first = tuple(slice(max(d, 0), side + min(d, 0)) for d, side in zip(shift, shape, strict=True))
    second = tuple(
        slice(max(-d, 0), side - max(d, 0)) for d, side in zip(shift, shape, strict=True)
    )
    return first, second


def search(first: Feature, second: Feature, window: Window) -> Evidence:
    """Evidence for every whole shift of a window.

    Source: masked normalised cross-correlation, Padfield 2012, Eqs. 9-12, with weights for masks.
    """
    a, b, wa, wb, (y0, x0) = _crop(first, second, window)
    size = [scipy.fft.next_fast_len(p + q, True) for p, q in zip(a.shape, b.shape, strict=True)]
    y, x = window.axes

    def forward(image: Array) -> Array:
        return np.asarray(scipy.fft.rfft2(image, size))

    def correlate(left: Array, right: Array) -> Array:
        return np.asarray(scipy.fft.irfft2(left * right.conj(), size))

    def at_shifts(image: Array) -> Array:
        return np.asarray(image[(y - y0) % size[0], (x - x0) % size[1]], np.float64)

    fa, fb, fwa, fwb = (forward(i) for i in (a * wa, b * wb, wa, wb))
    pixels = np.maximum(at_shifts(correlate(fwa, fwb)), 1e-3)
    sum_a, sum_b = at_shifts(correlate(fa, fwb)), at_shifts(correlate(fwa, fb))
    var_a = at_shifts(correlate(forward(a * a * wa), fwb)) - sum_a**2 / pixels
    var_b = at_shifts(correlate(fwa, forward(b * b * wb))) - sum_b**2 / pixels
    power = np.sqrt(np.maximum(var_a, 0) * np.maximum(var_b, 0))
    sure = (power > 1e-6 * max(float(power.max()), 1e-30)) & (pixels > LEAST_PX)
    top = at_shifts(correlate(fa, fb)) - sum_a * sum_b / pixels
    rho = np.where(sure, top / np.where(sure, power, 1), 0.0)
    area = _cell_area(correlate(fa, fa), correlate(fb, fb))
    score = _log_likelihood(rho, pixels, area)
    return Evidence(window, score.astype(np.float32), max(score.size / area, 1.0))


def _crop(
    first: Feature, second: Feature, window: Window
) -> tuple[Array, Array, Array, Array, tuple[int, int]]:
    """Cut both tiles to what can overlap; the last item is the shift between the cut corners."""
    h, w = first.values.shape
    top, left = max(window.y0, 0), max(window.x0, 0)
    a = np.s_[top : min(h, window.y1 + h), left : min(w, window.x1 + w)]
    up, before = max(-window.y1, 0), max(-window.x1, 0)
    b = np.s_[up : min(h, h - window.y0), before : min(w, w - window.x0)]
    # Pixel (0, 0) of the cut first is `top` there; of the cut second, `up`.
    origin = (top - up, left - before)
    return first.values[a], second.values[b], first.weight[a], second.weight[b], origin


def _cell_area(auto_a: Array, auto_b: Array) -> float:
    """Pixels per independent cell: sum of the product of both autocorrelations (Bartlett 1935)."""
    zero = float(auto_a[0, 0] * auto_b[0, 0])
    return max(float((auto_a * auto_b).sum()) / zero, 1.0) if zero > 0 else 1.0


def _log_likelihood(rho: Array, pixels: Array, area: float) -> Array:
    """Log-likelihood ratio of correlation rho against none, over independent cells."""
    return np.asarray(-0.5 * pixels / area * np.log1p(-(np.clip(rho, 0, 0.999) ** 2)))


def common_shift(evidence: Sequence[Evidence], sigma_px: float, cap: float = 6.0) -> Array:
    """The shift that most pairs can agree on, each off by its own jitter.

    Maximises the sum over pairs of the best evidence within a Gaussian jitter of `sigma_px`; a pair
    cannot lose more than `cap`, so no single one decides.

    Parameters
    ----------
    evidence : pairs, all searched in one and the same window.

    Returns
    -------
    `(2,)` px.
    """
    total = np.zeros(evidence[0].score.shape)
    for one in evidence:
        reach = _dilate(_dilate(one.score.astype(np.float64), sigma_px).T, sigma_px).T
        total += np.maximum(reach - reach.max(), -cap)
    best = np.unravel_index(int(total.argmax()), total.shape)
    return np.array([evidence[0].window.y0 + best[0], evidence[0].window.x0 + best[1]], float)


def _dilate(score: Array, sigma: float) -> Array:
    """Max over d of score[i + d] - d^2 / (2 sigma^2), along the first axis."""
    n = len(score)
    out = score.copy()
    for d in range(1, min(n, int(4 * sigma) + 1)):
        cost = (d / sigma) ** 2 / 2
        np.maximum(out[:-d], score[d:] - cost, out=out[:-d])
        np.maximum(out[d:], score[:-d] - cost, out=out[d:])
    return out


def pick(
    evidence: Evidence, expected: Array, sigma_px: float
) -> tuple[tuple[int, int], float, float]:
    """The best shift near the one expected, by evidence and prior together.

    Returns
    -------
    Whole shift (y, x), its score, and the margin of evidence and prior together over the best one
    more than 3 px away.
    """
    y, x = evidence.window.axes
    distance = (y - expected[0]) ** 2 + (x - expected[1]) ** 2
    posterior = evidence.score - distance / (2 * sigma_px**2)
    row, column = np.unravel_index(int(posterior.argmax()), posterior.shape)
    best = int(evidence.window.y0 + row), int(evidence.window.x0 + column)
    rival = posterior[(np.abs(y - best[0]) > 3) | (np.abs(x - best[1]) > 3)]
    margin = float(posterior[row, column] - rival.max()) if rival.size else float("inf")
    return best, float(evidence.score[row, column]), margin


def measure(first: Feature, second: Feature, shift: tuple[int, int]) -> Measured | None:
    """Refine a whole shift to a fraction of a pixel.

    Both tiles are cut to what they share and band-passed there, so that the frames' edges act on both
    alike and cannot pull (over the whole tile they do, by pixels where overlaps are narrow), first in
    a coarse band, then in the fine one. Where the refined shift lies off, the cut is made anew.

    Returns
    -------
    None where nothing is shared. A shift that wanders off by more than `LEASH_PX` stays the whole one
    with that uncertainty.
    """
    near = _settle(first, second, shift, COARSE_PX)
    found = None if near is None else _settle(first, second, near[0], BAND_PX)
    if found is None or np.abs(np.subtract(found[0], shift)).max() > LEASH_PX:
        return _unsettled(first, second, shift)
    whole, (offset, covariance, moved), (a, _, weight) = found
    return Measured(np.add(whole, offset), covariance, *_strength(a, moved, weight))


def _unsettled(first: Feature, second: Feature, shift: tuple[int, int]) -> Measured | None:
    """A whole shift that could not be refined: known to `LEASH_PX` and no better."""
    cut = _shared(first, second, shift, BAND_PX)
    if cut is None:
        return None
    return Measured(np.array(shift, float), np.eye(2) * LEASH_PX**2, *_strength(*cut))


def _settle(
    first: Feature, second: Feature, shift: tuple[int, int], sigmas: tuple[float, float]
) -> tuple[tuple[int, int], tuple[Array, Array, Array], tuple[Array, Array, Array]] | None:
    """Cut, refine, and cut anew until the cut fits; None where it never does."""
    whole = shift
    for _ in range(RECUTS):
        cut = _shared(first, second, whole, sigmas)
        if cut is None:
            return None
        refined = _refine(*cut)
        if np.abs(refined[0]).max() <= 0.75:
            return whole, refined, cut
        y, x = np.clip(np.rint(refined[0]), -2, 2).astype(int)
        whole = whole[0] + int(y), whole[1] + int(x)
    return None


def _shared(
    first: Feature, second: Feature, shift: tuple[int, int], sigmas: tuple[float, float]
) -> tuple[Array, Array, Array] | None:
    """Band-passed overlap of both tiles, and its weights."""
    one, two = overlap_slices(shift, (first.log.shape[0], first.log.shape[1]))
    weight = np.sqrt(first.weight[one] * second.weight[two])
    if min(weight.shape, default=0) < NARROWEST_PX or weight.sum() < LEAST_PX:
        return None
    mask = (weight > 0).astype(np.float32)
    a, b = (_band_pass(log * mask, mask, sigmas) for log in (first.log[one], second.log[two]))
    return a, b, weight


def _refine(a: Array, b: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Displacement of b against a by Gauss-Newton on their difference (Lucas and Kanade 1981).

    With the gradient of the mean of both, noise of the one or the other does not pull. Returns the
    displacement, its covariance, and b moved back by it.
    """
    offset, moved = np.zeros(2), b
    for _ in range(GAUSS_NEWTON):
        gradient = np.asarray(np.gradient((a + moved) / 2))
        information = np.einsum("yx,iyx,jyx->ij", weight, gradient, gradient)
        right = np.einsum("yx,iyx,yx->i", weight, gradient, moved - a)
        step = np.linalg.lstsq(information, right, rcond=1e-3)[0]
        offset = np.clip(offset + step, -3, 3)
        moved = spline_shift(b, offset, order=3, mode="nearest")
    residual = float((weight * (moved - a) ** 2).sum() / weight.sum())
    # Independent residuals, not pixels, decide how well a shift is known.
    cell = _cell_area(*[_autocorrelation((moved - a) * weight)] * 2)
    values, vectors = np.linalg.eigh(information / max(residual * cell, 1e-30))
    variance = np.minimum(1 / np.maximum(values, 1e-9), 1e4) + FLOOR_PX**2
    return offset, np.asarray((vectors * variance) @ vectors.T), moved


def _autocorrelation(image: Array) -> Array:
    return np.asarray(scipy.fft.irfft2(np.abs(scipy.fft.rfft2(image)) ** 2, image.shape))


def _strength(a: Array, b: Array, weight: Array) -> tuple[float, float]:
    """Correlation of two aligned overlaps, and the evidence in it."""
    a, b = (weight * (i - np.average(i, weights=weight)) for i in (a, b))
    power = float((a * a).sum() * (b * b).sum())
    rho = float((a * b).sum()) / power**0.5 if power > 0 else 0.0
    area = _cell_area(_autocorrelation(a), _autocorrelation(b))
    return rho, float(_log_likelihood(np.asarray(rho), weight.sum(), area))
