"""Which projections to use: no bad ones, no angle twice."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

Array = NDArray[np.float64]
NEIGHBOURS = 9
OUTLIER, LEAST = 10.0, 0.2  # robust standard deviations, and share of the usual absorption


def bad_frames(mass: Array, finite: Array) -> NDArray[np.bool_]:
    """Find frames that do not fit their neighbours: beam lost, shutter closed, sample gone.

    Parameters
    ----------
    mass : `(n,)` mean absorption of each frame. finite : `(n,)` share of its pixels that are.

    Returns
    -------
    `(n,)`: half of the frame is not finite, or its absorption is far off what it is around it.
    """
    bad = (finite < 0.5) | ~np.isfinite(mass)
    steady = np.where(bad, np.median(mass[~bad]) if (~bad).any() else 0.0, mass)
    off = np.abs(steady - median_filter(steady, NEIGHBOURS, mode="nearest"))
    usual = 1.4826 * float(np.median(off))
    level = float(np.median(np.abs(steady)))
    return np.asarray(bad | (off > max(OUTLIER * usual, LEAST * level, 1e-3)))


def resolve_duplicates(
    theta: Array, bad: NDArray[np.bool_], tolerance: float | None = None
) -> NDArray[np.intp]:
    """Keep one frame per angle: the latest good one, for a repeat is taken with reason.

    Parameters
    ----------
    theta : `(n,)` radians, in the order the frames were taken. bad : `(n,)`.
    tolerance : radians; a quarter of the usual step unless given.

    Returns
    -------
    Indices of the frames to keep, rising in angle.
    """
    order = np.argsort(theta, kind="stable")
    order = order[~bad[order]]
    if len(order) < 2:
        return order
    gaps = np.diff(theta[order])
    if tolerance is None:
        steps = gaps[gaps > math.radians(1e-4)]
        tolerance = float(np.median(steps)) / 4 if len(steps) else math.radians(1e-4)
    groups = np.split(order, np.flatnonzero(gaps > tolerance) + 1)
    return np.array([group.max() for group in groups], np.intp)
