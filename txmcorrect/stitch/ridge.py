"""A pair that fits in several places in a row: what the row leaves open, and what it does not.

A fibre that crosses a narrow overlap fits wherever it is moved along itself. None of these places is
sure, but all of them agree how far the tiles are apart across the fibre. The places, weighted by how
likely they are, become one measurement with their mean and covariance.

Source: moment matching of a mixture, expectation propagation (Minka 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.stitch.measure import WIDE_PX, Measured
from txmcorrect.stitch.register import surprise

Array = NDArray[Any]

SAME = 9.0  # squared distance, in standard deviations, up to which two places are one
NARROWER = 0.5  # of the prior's standard deviation: a direction that is less sure says nothing


def ridge(places: Sequence[Measured], expected: Array, spread: Array) -> Measured | None:
    """One measurement out of several that compete; None where together they say nothing.

    Parameters
    ----------
    places : measured, each with its own uncertainty. expected : `(2,)` px, spread : `(2, 2)` px^2, the
    prior, which is taken out of the result again.
    """
    kept = _distinct(places)
    if not kept:
        return None
    prior = np.linalg.inv(spread)
    means, covariances, heights = [], [], []
    for one in kept:
        off = one.shift - expected
        own = np.linalg.inv(one.covariance)
        posterior = np.linalg.inv(own + prior)
        covariances.append(posterior)
        means.append(posterior @ (own @ one.shift + prior @ expected))
        heights.append(one.score - surprise(off @ np.linalg.solve(spread + one.covariance, off)))
    weight = np.exp(np.array(heights) - max(heights))
    weight = weight / weight.sum()
    mean = weight @ np.array(means)
    away = np.array(means) - mean
    within = np.einsum("k,kij->ij", weight, np.array(covariances))
    both = within + np.einsum("k,ki,kj->ij", weight, away, away)
    return _without_prior(kept[int(weight.argmax())], mean, both, expected, prior)


def _distinct(places: Sequence[Measured]) -> list[Measured]:
    """One of those that are the same place within their uncertainty: the one of most evidence."""
    kept: list[Measured] = []
    for one in sorted(places, key=lambda p: -p.score):
        off = [one.shift - other.shift for other in kept]
        same = [one.covariance + other.covariance + np.eye(2) for other in kept]
        if all(o @ np.linalg.solve(s, o) > SAME for o, s in zip(off, same, strict=True)):
            kept.append(one)
    return kept


def _without_prior(
    best: Measured, mean: Array, posterior: Array, expected: Array, prior: Array
) -> Measured | None:
    """The Gaussian that, times the prior, gives the posterior."""
    information = np.linalg.inv(posterior)
    values, vectors = np.linalg.eigh(information - prior)
    if values[-1] < np.linalg.eigvalsh(prior)[-1] / NARROWER**2:
        return None
    # A direction in which nothing was learnt stays where the prior has it, and wide.
    open_ = values < 1 / WIDE_PX**2
    variance = np.where(open_, WIDE_PX**2, 1 / np.where(open_, 1.0, values))
    found = (vectors * variance) @ vectors.T @ (information @ mean - prior @ expected)
    along = vectors.T @ np.stack([found, mean], 1)
    shift = vectors @ np.where(open_, along[:, 1], along[:, 0])
    covariance = np.asarray((vectors * variance) @ vectors.T)
    return Measured(np.asarray(shift), covariance, best.correlation, best.score)
