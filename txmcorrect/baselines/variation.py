"""Eigen flats of a fixed number, by robust gradients of the logarithm.

Source: Van Nieuwenhove et al. 2015, Optics Express 23, made convex: the sum of the sizes of the
gradients of log(frame / mean flat) less the modes, by reweighted least squares on cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.baselines.cells import cell_logs, cell_means
from txmcorrect.baselines.contract import Array, Estimate, Method, NotApplicableError, Problem
from txmcorrect.baselines.vacuum import all_flats, log_modes

ROUNDS = 20
FLOOR = 0.1  # of the median size: below it a gradient has full weight


def eigen_flats_of(count: int) -> Method:
    """Mean flat and `count` components; the level of each frame is that of the mean flat."""

    def method(problem: Problem) -> Estimate:
        flats = all_flats(problem)
        if len(flats) < count + 2:
            raise NotApplicableError(f"expected {count + 2} references or more, got {len(flats)}")
        base, modes = log_modes(flats, problem.dark, problem.lit)
        modes, lit = modes[:count], problem.lit
        usable = cell_means(lit.astype(np.float64)) >= 0.5
        design = np.stack([gradients(cell_means(m), usable) for m in modes], 1)
        before = cell_logs(np.where(lit, np.exp(base), 0))
        out = np.empty(problem.shape, np.float32)
        for i, frame in enumerate(problem.frames):
            seen = cell_logs(np.where(lit, frame - problem.dark, 0)) - before
            weights = robust_fit(design, gradients(seen, usable))
            out[i] = base + np.tensordot(weights, modes, 1)
        return Estimate(out, "absolute")

    return method


def gradients(cells: Array, usable: NDArray[np.bool_]) -> Array:
    """Steps between neighbouring cells `(h, w)` that both count, `(p,)`."""
    down, right = usable[1:] & usable[:-1], usable[:, 1:] & usable[:, :-1]
    return np.r_[np.diff(cells, axis=0)[down], np.diff(cells, axis=1)[right]]


def robust_fit(design: Array, seen: Array) -> Array:
    """Weights `(k,)` of least sum of absolute residuals of `seen` `(p,)`."""
    root: Array = np.ones(len(seen))
    weights: Array = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        weights = np.linalg.lstsq(design * root[:, None], seen * root, rcond=None)[0]
        root = robust_root(seen - design @ weights)
    return weights


def robust_root(residual: Array) -> Array:
    """Roots of the weights that make squares into absolute values, bounded for small residuals."""
    size = np.abs(residual)
    return 1 / np.sqrt(np.maximum(size, FLOOR * np.median(size) + 1e-9))
