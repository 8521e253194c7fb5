"""Where every tile lies: measured shifts and the stage together, robustly.

The stage is a linear model of the nominal positions with errors of two kinds: those it repeats (a
whole row or a whole column of a grid is off alike) and those of each tile alone. Both variances are
estimated from the data, so a good stage is trusted more than a poor one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from txmcorrect.stitch.layout import Cells, Points
from txmcorrect.stitch.register import Match

Array = NDArray[Any]

ROUNDS = 16  # of reweighting and of estimating the stage's errors
BELIEF = (1.0, 40.0)  # log-likelihood that a match may cost before it is given up
MOST_MISFIT_PX = 3.0
LEAST_JITTER_PX = 0.5  # no stage is believed to be better than this


@dataclass(frozen=True)
class Stage:
    """What is known of the positions before any pair is looked at.

    Attributes
    ----------
    nominal : `(n, 2)` px (y, x). free : `(n, f)` columns along which positions may move at no cost
    (a translation; for grids the steps as well). shared : `(n, s)` 0/1 columns of errors that several
    tiles share. jitter_px : largest standard deviation of either kind of error.
    """

    nominal: Points
    free: Array
    shared: Array
    jitter_px: float


def grid_stage(cells: Cells, across: Array, down: Array, jitter_px: float) -> Stage:
    """Stage of a grid with steps `across` (to the next column) and `down` (to the next row)."""
    nominal = cells[:, :1] * np.asarray(down) + cells[:, 1:] * np.asarray(across)
    free = np.column_stack([np.ones(len(cells)), cells])
    rows = (cells[:, :1] == np.unique(cells[:, 0])).astype(float)
    columns = (cells[:, 1:] == np.unique(cells[:, 1])).astype(float)
    return Stage(np.asarray(nominal, float), free, np.column_stack([rows, columns]), jitter_px)


def listed_stage(positions: Points, jitter_px: float) -> Stage:
    """Stage of tiles with positions of their own (a stage's readings, a layout made by hand)."""
    n = len(positions)
    return Stage(np.asarray(positions, float), np.ones((n, 1)), np.zeros((n, 0)), jitter_px)


@dataclass(frozen=True)
class Placement:
    """Solved positions.

    Attributes
    ----------
    positions : `(n, 2)` px (y, x), the topmost at y = 0, the leftmost at x = 0.
    sigma_px : `(n, 2)` standard deviation of each position against the mosaic's middle.
    residuals : `(m, 2)` measured minus solved shift of each match; weights : `(m,)` 0 to 1, how much
    of each match was believed. jitter_px, shared_px : the stage's errors as found.
    covariance : `(2u, 2u)` of the unknowns, y and x interleaved; basis : `(n, u)`, positions out of
    unknowns.
    """

    positions: Points
    sigma_px: Points
    residuals: Array
    weights: Array
    jitter_px: float
    shared_px: float
    covariance: Array
    basis: Array

    def spread(self, first: int, second: int) -> Array:
        """Covariance `(2, 2)` of the shift between two tiles, px^2."""
        both = np.kron(self.basis[second] - self.basis[first], np.eye(2))
        return np.asarray(both @ self.covariance @ both.T)


def place(stage: Stage, matches: Sequence[Match]) -> Placement:
    """Solve for all positions at once.

    Robust least squares over all matches with their covariances and the stage as a Gaussian prior
    whose variances are found on the way, as is that by which matches contradict each other. The loss
    of a match saturates (Geman-McClure, tightened round by round) at the evidence for it: what little
    speaks for is given up at little cost.
    """
    n, shared = len(stage.nominal), stage.shared.shape[1]
    design = _design(matches, stage)
    ends = np.array([(m.first, m.second) for m in matches], np.intp).reshape(-1, 2)
    expected = stage.nominal[ends[:, 1]] - stage.nominal[ends[:, 0]]
    measured = np.array([m.shift for m in matches]).reshape(-1, 2) - expected
    claimed = np.array([m.covariance for m in matches]).reshape(-1, 2, 2)
    misfit = 0.0
    # A stage rather repeats an error than makes a new one: begin so, and let the matches decide.
    jitter, spread = stage.jitter_px**2 / 9, stage.jitter_px**2
    free = 1 / (4 * stage.jitter_px) ** 2  # steps are not known better than this
    believed = 2 * np.clip([m.score for m in matches], *BELIEF)
    weights = np.ones(len(matches))
    for step in range(ROUNDS):
        precision = np.linalg.inv(claimed + misfit * np.eye(2))
        prior = np.repeat([1 / jitter, 1 / spread, free], [n, shared, stage.free.shape[1]])
        covariance = _posterior(design, precision * weights[:, None, None], prior)
        solution = _solve(design, precision * weights[:, None, None], measured, covariance)
        residuals = measured - design @ solution
        distance = np.einsum("mi,mij,mj->m", residuals, precision, residuals)
        width = believed * 2.0 ** max(ROUNDS - 3 - step, 0)
        weights = (width / (width + distance)) ** 2
        misfit = _misfit(design, precision, claimed, residuals, weights, covariance)
        variance = np.diag(covariance).reshape(-1, 2)
        jitter = _typical(solution[:n], variance[:n], jitter, stage)
        spread = _typical(solution[n : n + shared], variance[n : n + shared], spread, stage)
    positions = stage.nominal + _basis(stage) @ solution
    return Placement(
        positions=positions - positions.min(0),
        sigma_px=_position_sigma(stage, covariance),
        residuals=residuals,
        weights=weights,
        jitter_px=jitter**0.5,
        shared_px=spread**0.5,
        covariance=covariance,
        basis=_basis(stage),
    )


def _basis(stage: Stage) -> Array:
    """Tile positions out of the unknowns: own errors, shared errors, free movements."""
    return np.column_stack([np.eye(len(stage.nominal)), stage.shared, stage.free])


def _design(matches: Sequence[Match], stage: Stage) -> Array:
    """Shifts out of the unknowns, `(m, unknowns)`."""
    basis = _basis(stage)
    rows = [basis[m.second] - basis[m.first] for m in matches]
    return np.array(rows).reshape(-1, basis.shape[1])


def _posterior(design: Array, precision: Array, prior: Array) -> Array:
    """Covariance of the unknowns, y and x interleaved."""
    m = len(design)
    both = sparse.kron(sparse.csr_array(design), sparse.eye_array(2), format="csr")
    weight = sparse.block_diag(list(precision), format="csr") if m else sparse.csr_array((0, 0))
    normal = np.diag(np.repeat(prior, 2))
    if m:
        normal = normal + (both.T @ weight @ both).toarray()
    return np.asarray(np.linalg.inv(normal))


def _solve(design: Array, precision: Array, measured: Array, covariance: Array) -> Array:
    """Unknowns, `(unknowns, 2)`."""
    right = np.einsum("mu,mij,mj->ui", design, precision, measured, optimize=True)
    return np.asarray((covariance @ right.ravel()).reshape(-1, 2))


def _typical(values: Array, variance: Array, prior: float, stage: Stage) -> float:
    """Variance of a group of errors, counting only what the matches determine.

    Source: MacKay 1992, Eq. 2.27: the number of well-determined parameters.
    """
    determined = values.size - float(variance.sum()) / prior
    if determined < 1:
        return prior
    found = float((values**2).sum()) / determined
    return float(np.clip(found, LEAST_JITTER_PX**2, stage.jitter_px**2))


def _misfit(
    design: Array,
    precision: Array,
    claimed: Array,
    residuals: Array,
    weights: Array,
    covariance: Array,
) -> float:
    """Variance (px^2) by which matches contradict each other beyond what they claim.

    Frames are distorted and samples move: around a loop of tiles shifts do not add up to nothing.
    Without loops nothing is known of it.
    """
    m = len(design)
    own = np.kron(design[:, None], np.eye(2)).reshape(m, 2, 2 * design.shape[1])
    told = own @ covariance @ own.transpose(0, 2, 1)
    free = float((2 - np.einsum("mij,mji->m", precision * weights[:, None, None], told)).sum())
    if m == 0 or free < 2:
        return 0.0
    # Medians: matches that are given up must not widen what the others claim.
    usual = (1.4826 * float(np.median(np.abs(residuals)))) ** 2 * 2 * m / free
    excess = usual - float(np.median(np.einsum("mii->m", claimed) / 2))
    return min(max(excess, 0.0), MOST_MISFIT_PX**2)


def _position_sigma(stage: Stage, covariance: Array) -> Array:
    """Standard deviations `(n, 2)` of positions against their mean."""
    basis = _basis(stage)
    centred = basis - basis.mean(0)
    sigma = [
        np.einsum("tu,uv,tv->t", centred, covariance[axis::2, axis::2], centred, optimize=True)
        for axis in (0, 1)
    ]
    return np.asarray(np.sqrt(np.maximum(np.stack(sigma, 1), 0)))
