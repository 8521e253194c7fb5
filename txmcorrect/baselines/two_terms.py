"""Illumination that moves and a detector that does not: each frame gets a shift and a level.

Source: Titarenko et al. 2010, "Improved tomographic reconstructions using adaptive time-dependent
intensity normalization", J. Synchrotron Rad. 17, 689; our own implementation in two dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter, uniform_filter

from txmcorrect.baselines.cells import CELL_PX, cell_logs, cell_means
from txmcorrect.baselines.contract import Array, Estimate, Image, Method, Problem, log_light
from txmcorrect.baselines.vacuum import all_flats
from txmcorrect.baselines.variation import gradients, robust_root

SPLITS_PX = (2.0, 5.0, 12.0)  # illumination is what a Gaussian so wide leaves; the best fit is kept
ROUNDS = 12  # of steps, reweighted where robust
MOST_STEP_PX = 2.0  # a linear step holds about so far
SMALL_STEP_PX = 0.01  # moves no illumination by more than photon noise


@dataclass(frozen=True)
class Terms:
    """Log illumination and log detector term `(h, w)`; `light`, `cells` : spline coefficients.

    `cells` is the illumination averaged over a cell around each pixel.
    """

    light: Array
    cells: Array
    detector: Array

    def moved(self, shift: Array) -> Array:
        """Log background `(h, w)` with the illumination moved by (y, x) pixels."""
        return self.detector + _sample(self.light, np.indices(self.light.shape), shift)

    def change(self, shift: Array) -> Array:
        """By how much each cell's log background changes when the illumination moves so."""
        h, w = self.cells.shape
        # Averaging over an even number of pixels centres half a pixel before the pixel itself.
        at = np.mgrid[0:h:CELL_PX, 0:w:CELL_PX] + CELL_PX // 2
        return _sample(self.cells, at, shift) - _sample(self.cells, at, np.zeros(2))


def _sample(spline: Array, at: Array, shift: Array) -> Array:
    """Values of a spline at places `(2, ...)` of an image that moved by `shift`."""
    places = at - np.reshape(shift, (2, *(1 for _ in at.shape[1:])))
    return map_coordinates(spline, places, order=3, mode="nearest", prefilter=False)


def split_terms(log_flat: Image, lit: NDArray[np.bool_], sigma_px: float) -> Terms:
    """Take what is smooth for illumination and the rest for the detector; unlit pixels are left out."""
    share = gaussian_filter(lit.astype(np.float64), sigma_px)
    smooth = gaussian_filter(np.where(lit, log_flat, 0).astype(np.float64), sigma_px)
    light = np.where(share > 1e-3, smooth / np.maximum(share, 1e-3), log_flat[lit].mean())
    light_spline, cell_spline = (
        spline_filter(v, 3, mode="nearest") for v in (light, uniform_filter(light, CELL_PX))
    )
    return Terms(light_spline, cell_spline, np.where(lit, log_flat - light, 0))


def two_terms(vacuum: NDArray[np.bool_] | None = None) -> Method:
    """The peer; with `vacuum` `(h, w)`, empty in every frame, it fits there by least squares.

    Without, it makes the gradients of the log transmission small in a robust sense; the level is then
    that of the mean flat, since gradients do not see it.
    """

    def method(problem: Problem) -> Estimate:
        flat = log_light(all_flats(problem).mean(0, dtype=np.float64), problem.dark)
        tries = [_fit_all(problem, flat, sigma, vacuum) for sigma in SPLITS_PX]
        logs, _ = min(tries, key=lambda found: found[1])
        return Estimate(logs, "absolute")

    return method


def _fit_all(
    problem: Problem, flat: Image, sigma_px: float, vacuum: NDArray[np.bool_] | None
) -> tuple[Image, float]:
    """Log backgrounds `(n, h, w)` of one split and the median residual of its fits."""
    terms = split_terms(flat, problem.lit, sigma_px)
    seen = problem.lit if vacuum is None else problem.lit & vacuum
    usable = cell_means(seen.astype(np.float64)) >= 0.5
    before = cell_logs(np.where(seen, np.exp(flat), 0))
    out, left = np.empty(problem.shape, np.float32), []
    for i, frame in enumerate(problem.frames):
        target = cell_logs(np.where(seen, frame - problem.dark, 0)) - before
        shift, level, residual = _fit(target, terms, usable, robust=vacuum is None)
        out[i] = terms.moved(shift) + level
        left.append(residual)
    return out, float(np.median(left))


def _fit(
    target: Array, terms: Terms, usable: NDArray[np.bool_], robust: bool
) -> tuple[Array, float, float]:
    """Shift (y, x), level and median residual of one frame, by Gauss-Newton from no shift."""
    shift, level = np.zeros(2), 0.0

    def residual(at: Array) -> Array:
        return _seen(target - terms.change(at), usable, robust)

    for _ in range(ROUNDS):
        here = residual(shift)
        design = np.stack([here - residual(shift + one) for one in np.eye(2)], 1)
        root = robust_root(here) if robust else np.ones(len(here))
        if not robust:
            design = np.c_[design, np.ones(len(here))]
        found = np.linalg.lstsq(design * root[:, None], here * root, rcond=None)[0]
        step = np.clip(found[:2], -MOST_STEP_PX, MOST_STEP_PX)
        shift = shift + step
        if np.abs(step).max() < SMALL_STEP_PX:
            break
    left = residual(shift)
    if not robust:
        level = float(left.mean())
    return shift, level, float(np.median(np.abs(left - level)))


def _seen(cells: Array, usable: NDArray[np.bool_], robust: bool) -> Array:
    """The cells that count, or the steps between neighbours of which both count."""
    return gradients(cells, usable) if robust else np.asarray(cells[usable])
