"""Whether anything moves in a scan: if all frames show one view, nothing tells the sample from the beam."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.detail import choose_frames
from txmcorrect.background.scale import LEAST
from txmcorrect.background.survey import Survey

STATIC = (
    "nothing moves: all frames show the same view, and without a flat field the sample cannot be told from the "
    "beam; give flats by --refs"
)
NOISE = 2.0  # times the variance of photons that frames that are all the same may differ by
APART = 2  # cells, beyond which noise of neighbours has nothing in common
CERTAIN = 4.0  # deviations


def is_static(survey: Survey, lit: NDArray[np.bool_]) -> bool:
    """Whether usable frames differ by photon noise and level alone, on the working grid.

    What they differ by, their levels and mean removed, must not be much more than the noise of their photons,
    and have nothing in common with what lies two cells further, as anything that has moved would: over some
    sixty frames of 64 x 64 cells that shows motion of a hundredth of the noise's variance.

    Parameters
    ----------
    survey : of the scan. lit : `(h', w')` cells with light.
    """
    frames = survey.small[choose_frames(survey.usable)]
    if len(frames) < 2 or not lit.any():
        return False
    mean = np.maximum(frames.mean(0), LEAST)
    level = np.array([np.median((f / mean)[lit]) for f in frames])
    if not (level > 0).all():
        return False
    photons = survey.photons * survey.factor**2 * mean
    left = (frames / level[:, None, None] / mean - 1) * np.sqrt(photons)
    left *= np.sqrt(level * len(frames) / (len(frames) - 1))[:, None, None]
    if float((left[:, lit] ** 2).mean()) > NOISE:
        return False
    return all(not _alike(left, lit, axis) for axis in (1, 2))


def _alike(left: NDArray[np.floating], lit: NDArray[np.bool_], axis: int) -> bool:
    """Whether residuals `(m, h, w)` have anything in common with those two cells further along an axis."""
    size = left.shape[axis]
    if size <= APART:
        return False
    here, there = (np.arange(size - APART), np.arange(APART, size))
    one, other = left.take(here, axis), left.take(there, axis)
    both = lit.take(here, axis - 1) & lit.take(there, axis - 1)
    products = (one * other)[:, both].astype(np.float64)
    if products.size == 0:
        return False
    error = float(np.sqrt((products**2).sum()))
    return bool(products.sum() > CERTAIN * error)
