"""How far two tiles are apart: band-passed, weighted, normalised cross-correlation.

A shift is `position[second] - position[first]`, (y, x) in pixels. Evidence for a shift is the
log-likelihood ratio of two Gaussian images with that correlation against independent ones, counted
in independent cells rather than in pixels, so that narrow and wide overlaps, fibres and speckle
compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter

Array = NDArray[Any]
Mask = NDArray[np.bool_]

BAND_PX = (1.0, 5.0)  # keeps edges and texture, drops photon noise and background
CLIP = 2.0  # robust standard deviations: one bright fibre must not outvote all the rest
DARKEST = 0.02  # transmission below which nothing is read
NARROWEST_PX = 4
NEAR_PX = 3  # shifts this close are one and the same
PEAK_PX = 7  # a shift that is best of so many along each axis is a peak
FREEDOM = 7.0  # of the prior: tails wide enough for a stage that slips
HOPELESS = 15.0  # evidence by which a peak falls short that is not looked at again
LEAST_PX = 200.0  # an overlap with less weight than this says nothing


@dataclass(frozen=True)
class Feature:
    """What of a tile is compared, `(h, w)` each: logarithm, its band-passed values, and weights.

    The logarithm goes on beyond the lit area as its nearest lit pixel.
    """

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


@dataclass(frozen=True)
class Match:
    """A measured shift of one pair.

    Attributes
    ----------
    shift : `(2,)` px; covariance : `(2, 2)` px^2, long along a fibre that runs through the overlap.
    correlation : band-passed, at the peak. score : log-likelihood ratio there.
    margin : by how much, in the same measure, the next best peak falls short.
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
    log = np.log(np.maximum(transmission, DARKEST)).astype(np.float32)
    weight = mask * np.clip(transmission, DARKEST, 1.0)
    values = band_pass(log * mask, mask, BAND_PX)
    if not lit.all():
        # No jumps at dead pixels and unlit corners: interpolation would carry them inside.
        nearest = distance_transform_edt(~lit, return_distances=False, return_indices=True)
        log = log[tuple(nearest)]
    return Feature(log, values, weight.astype(np.float32))


def band_pass(log: Array, mask: Array, sigmas: tuple[float, float]) -> Array:
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
    area = cell_area(correlate(fa, fa), correlate(fb, fb))
    score = log_likelihood(rho, pixels, area)
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


def cell_area(auto_a: Array, auto_b: Array) -> float:
    """Pixels per independent cell: sum of the product of both autocorrelations (Bartlett 1935)."""
    zero = float(auto_a[0, 0] * auto_b[0, 0])
    return max(float((auto_a * auto_b).sum()) / zero, 1.0) if zero > 0 else 1.0


def log_likelihood(rho: Array, pixels: Array, area: float) -> Array:
    """Log-likelihood ratio of correlation rho against none, over independent cells."""
    return np.asarray(-0.5 * pixels / area * np.log1p(-(np.clip(rho, 0, 0.999) ** 2)))


@dataclass(frozen=True)
class Vote:
    """How well pairs of one direction agree on each shift of their window, `(ny, nx)`, at most 0."""

    window: Window
    total: Array

    def shift(self, place: tuple[int, int] | Array) -> Array:
        """The shift at a place of the window, `(2,)` px."""
        return np.array([self.window.y0 + place[0], self.window.x0 + place[1]], float)

    def best(self) -> Array:
        """The shift that most pairs can agree on, `(2,)` px."""
        return self.shift(np.array(np.unravel_index(int(self.total.argmax()), self.total.shape)))

    def peaks(self, most: int = 8) -> list[Array]:
        """The best shifts that are best among their neighbours, `(2,)` px each."""
        tops = np.argwhere(self.total == maximum_filter(self.total, PEAK_PX))
        order = np.argsort([-self.total[tuple(top)] for top in tops], kind="stable")
        return [self.shift(tops[k]) for k in order[:most]]

    def near(self, expected: Array, sigma_px: float) -> tuple[float, Array]:
        """The best shift, with its vote, where about `expected` is likely."""
        y, x = self.window.axes
        off = (y - expected[0]) ** 2 + (x - expected[1]) ** 2
        total = self.total - surprise(off / sigma_px**2)
        place = np.unravel_index(int(total.argmax()), total.shape)
        return float(total[place]), self.shift(np.array(place))

    def at(self, shift: Array) -> float:
        """The vote for a shift of the window."""
        y, x = np.rint(shift).astype(int)
        return float(self.total[y - self.window.y0, x - self.window.x0])


def vote(evidence: Sequence[Evidence], sigma_px: float, cap: float = 6.0) -> Vote:
    """Let pairs vote for a shift that they have in common, each off by its own jitter.

    The sum over pairs of the best evidence within a Gaussian jitter of `sigma_px`; a pair cannot lose
    more than `cap`, so no single one decides.

    Parameters
    ----------
    evidence : pairs, all searched in one and the same window.
    """
    total = np.zeros(evidence[0].score.shape)
    for one in evidence:
        reach = dilate(dilate(one.score.astype(np.float64), sigma_px).T, sigma_px).T
        total += np.maximum(reach - reach.max(), -cap)
    return Vote(evidence[0].window, total)


def linked_shifts(
    across: Vote, down: Vote, shape: tuple[int, int], sigma_px: float
) -> tuple[Array, Array]:
    """Steps of a grid to the next column and to the next row, `(2,)` px each.

    A stage steps alike in both directions: the same part of the frame, turned by 90 degrees, give or take
    `sigma_px`. Where one direction has little to say the other speaks for it.
    """
    h, w = shape
    ratio = h / w
    found = []
    for step in across.peaks():
        score, other = down.near(np.array([step[1] * ratio, -step[0]]), sigma_px)
        found.append((score + across.at(step), step, other))
    for step in down.peaks():
        score, other = across.near(np.array([-step[1], step[0] / ratio]), sigma_px)
        found.append((score + down.at(step), other, step))
    _, one, two = max(found, key=lambda f: f[0])
    return one, two


def dilate(score: Array, sigma: float) -> Array:
    """Max over d of score[i + d] - d^2 / (2 sigma^2), along the first axis of `(a, b)`."""
    n = len(score)
    out = score.copy()
    for d in range(1, min(n, int(4 * sigma) + 1)):
        cost = (d / sigma) ** 2 / 2
        np.maximum(out[:-d], score[d:] - cost, out=out[:-d])
        np.maximum(out[d:], score[:-d] - cost, out=out[d:])
    return out


def surprise(distance: Any) -> Any:
    """What a shift costs, in log-likelihood, that lies off by a squared distance in sigmas.

    Student's t: stages are mostly as good as they seem, but not always.
    """
    return (FREEDOM + 1) / 2 * np.log1p(distance / FREEDOM)


def peaks(
    evidence: Evidence, expected: Array, spread: Array, most: int = 5
) -> list[tuple[int, int]]:
    """The best whole shifts by evidence and prior together, the best first.

    Parameters
    ----------
    expected : `(2,)` px; spread : `(2, 2)` covariance of the prior, px^2. most : how many at most.
    """
    y, x = (axis - e for axis, e in zip(evidence.window.axes, expected, strict=True))
    (yy, yx), (_, xx) = np.linalg.inv(spread)
    posterior = evidence.score - surprise(yy * y * y + 2 * yx * y * x + xx * x * x)
    top = posterior == maximum_filter(posterior, 2 * NEAR_PX + 1)
    top &= posterior > posterior.max() - HOPELESS
    places = sorted(np.argwhere(top).tolist(), key=lambda p: -float(posterior[tuple(p)]))
    corner = evidence.window.y0, evidence.window.x0
    return [(corner[0] + row, corner[1] + column) for row, column in places[:most]]
