"""Where the rotation axis lies on the detector, with a stated uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from txmcorrect.errors import GeometryError
from txmcorrect.recon.fbp import angle_weights, filter_sinograms
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.projector import smear_at
from txmcorrect.recon.shifts import row_shifts

Array = NDArray[np.floating[Any]]
Points = tuple[Tensor, Tensor]  # x and y, pixels from the axis
VIEWS, POINTS, COARSE = 256, 20_000, 128  # enough for a clear optimum, few enough to be quick
HALF_TURN = math.radians(170)  # a reconstruction from less is never sharp


@dataclass(frozen=True)
class Centre:
    """Rotation axis in detector pixels.

    Attributes
    ----------
    value, std : the axis and its standard error, from slices and halves of the views by themselves.
    method : "sharpness" or "centroid".
    pairs : what opposite views alone say; None where there are none.
    candidates, contrast : `(k,)` the curve whose maximum is the sharpest reconstruction.
    """

    value: float
    std: float
    method: str
    pairs: float | None
    candidates: Array
    contrast: Array


def find_centre(sinograms: Tensor, theta: Tensor) -> Centre:
    """Find the rotation axis from a few slices.

    It is where the reconstruction has the largest variance: anywhere else edges double and lose
    contrast. A coarse search over the middle half of the detector, and opposite views, say where
    to look closely. Less than half a turn of views is never sharp; there the paths of the slices'
    centroids decide, which needs the whole sample in view.

    Parameters
    ----------
    sinograms : `(z, n_theta, w)` line integrals. theta : `(n_theta,)` radians.

    Raises
    ------
    GeometryError : fewer than four views.

    Source: Donath et al. 2006, J. Opt. Soc. Am. A 23, 1048 (image metrics for the axis);
    Azevedo et al. 1990, IEEE Trans. Nucl. Sci. 37, 1525 (centroids).
    """
    if len(theta) < 4:
        raise GeometryError(
            f"expected 4 views or more to find the axis, got {len(theta)}; use --center"
        )
    pairs = centre_from_pairs(sinograms, theta)
    if float(theta.max() - theta.min()) < HALF_TURN:
        value, std = centre_from_centroids(sinograms, theta)
        around: Array = value + np.arange(-3, 3.5, 0.5)
        height = contrast(sinograms, theta, around).mean(0)
        return Centre(value, std, "centroid", pairs, around, height)
    some = torch.linspace(0, len(theta) - 1, min(len(theta), VIEWS)).round().long()
    sinograms, theta = sinograms[:, some], theta[some]
    width = sinograms.shape[-1]
    step = max(1, width // COARSE)
    wide: Array = np.arange(0.25 * width, 0.75 * width, step)
    guesses = [_highest(wide, contrast(sinograms, theta, wide, step).mean(0))]
    guesses += [] if pairs is None else [pairs]
    where = _where_sample_is(sinograms, theta, guesses[-1], step)
    curves = [_approach(sinograms, theta, guess, step, where) for guess in guesses]
    near, height = max(curves, key=lambda curve: float(curve[1].max()))
    value = _highest(near, height)
    error = _error(sinograms, theta, value, where)
    return Centre(value, error, "sharpness", pairs, near, height)


def contrast(
    sinograms: Tensor, theta: Tensor, candidates: Array, bin: int = 1, where: Points | None = None
) -> Array:
    """Variance of the reconstruction about each candidate axis, `(z, k)`.

    Parameters
    ----------
    sinograms : `(z, n_theta, w)`. candidates : `(k,)` detector pixels.
    bin : detector pixels averaged first. where : points looked at; all around unless given.
    """
    x, y = where or _points(0.75 * sinograms.shape[-1])
    look = _reconstructor(sinograms, theta, x / bin, y / bin, bin)
    return np.stack([look(float(c)).var(1).cpu().double().numpy() for c in candidates], 1)


def _reconstructor(
    sinograms: Tensor, theta: Tensor, x: Tensor, y: Tensor, bin: int
) -> Callable[[float], Tensor]:
    """Filter once; return what gives values `(z, p)` at points `x`, `y` about an axis."""
    binned = avg_pool1d(sinograms, bin) if bin > 1 else sinograms
    # The filter's tails beyond the detector count: without them an axis far off seems sharp.
    margin = binned.shape[-1] // 2
    wide = pad(binned, (margin, margin), mode="replicate")
    filtered = filter_sinograms(wide, "hann") * angle_weights(theta).to(wide)[:, None]
    x, y = x.to(wide), y.to(wide)

    def look(center: float) -> Tensor:
        axis = (center + 0.5) / bin - 0.5 + margin
        return smear_at(ParallelBeam(theta, wide.shape[-1], axis), x, y, filtered)

    return look


def _where_sample_is(sinograms: Tensor, theta: Tensor, center: float, bin: int) -> Points:
    """Points within the circle that holds what there is to see, by a coarse reconstruction."""
    x, y = _points(0.75 * sinograms.shape[-1])
    look = _reconstructor(sinograms, theta, x / bin, y / bin, bin)
    energy = look(center).square().mean(0).cpu().double()
    middle = [float((energy * part).sum() / energy.sum()) for part in (x, y)]
    distance = torch.hypot(x - middle[0], y - middle[1])
    order = distance.argsort()
    held = energy[order].cumsum(0) / energy.sum()
    radius = float(distance[order[int((held < 0.95).sum())]])
    near_x, near_y = _points(1.2 * radius)
    return near_x + middle[0], near_y + middle[1]


def centre_from_pairs(sinograms: Tensor, theta: Tensor) -> float | None:
    """Median axis over opposite views: mirrored, one is the other shifted by 2 c - (w - 1).

    Parameters
    ----------
    sinograms : `(z, n_theta, w)`. theta : `(n_theta,)` radians.

    Returns
    -------
    Detector pixels; None when no two views are half a turn apart within half of a step.
    """
    first, second = opposite_views(theta)
    if len(first) == 0:
        return None
    width = sinograms.shape[-1]
    rows = sinograms.double().cpu().numpy()
    found = row_shifts(rows[:, first].swapaxes(0, 1), rows[:, second, ::-1].swapaxes(0, 1))
    return float(np.median((found + width - 1) / 2))


def opposite_views(theta: Tensor) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Views half a turn apart, within half of the usual step: indices of both."""
    angle = theta.cpu().double().numpy()
    step = float(np.median(np.diff(np.sort(angle))))
    gap = np.abs(angle[None, :] - angle[:, None] - math.pi)
    partner = gap.argmin(1)
    good = np.flatnonzero(gap[np.arange(len(angle)), partner] <= max(step / 2, 1e-6))
    return good, partner[good]


def centre_from_centroids(sinograms: Tensor, theta: Tensor) -> tuple[float, float]:
    """Axis and its standard error: centroids follow c + a cos(theta) + b sin(theta).

    Parameters
    ----------
    sinograms : `(z, n_theta, w)`. theta : `(n_theta,)` radians.
    """
    rows = sinograms.double().cpu().numpy()
    angle = theta.cpu().double().numpy()
    mass = rows.sum(-1)
    heavy = np.abs(mass).mean(1) > 0.1 * np.abs(mass).mean(1).max()
    path = (rows[heavy] @ np.arange(rows.shape[-1])) / mass[heavy]
    basis = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)], 1)
    fit, *_ = np.linalg.lstsq(basis, path.T, rcond=None)
    left = path.T - basis @ fit
    scatter = (left**2).sum() / (left.shape[1] * max(len(angle) - 3, 1))
    error = math.sqrt(scatter * np.linalg.inv(basis.T @ basis)[0, 0] / left.shape[1])
    return float(fit[0].mean()), error


def _approach(
    sinograms: Tensor, theta: Tensor, guess: float, step: int, where: Points
) -> tuple[Array, Array]:
    """Contrast of candidates around a guess, at finer and finer steps down to half a pixel."""
    while step > 1:
        finer = max(1, step // 4)
        near = guess + np.arange(-step, step + 1, finer)
        guess = _highest(near, contrast(sinograms, theta, near, finer, where).mean(0))
        step = finer
    near = guess + np.arange(-3, 3.5, 0.5)
    return near, contrast(sinograms, theta, near, where=where).mean(0)


def _error(sinograms: Tensor, theta: Tensor, value: float, where: Points) -> float:
    """Standard error from what single slices say about either half of the views."""
    near: Array = value + np.arange(-2, 2.5, 0.5)
    halves = [contrast(sinograms[:, k::2], theta[k::2], near, where=where) for k in (0, 1)]
    found = [_highest(near, row) for half in halves for row in half]
    return float(np.std(found, ddof=1) / math.sqrt(len(found)))


def _highest(candidates: Array, height: Array) -> float:
    """Maximum of a curve, refined by the parabola through its highest point and neighbours."""
    i = int(np.argmax(height))
    if i in (0, len(height) - 1):
        return float(candidates[i])
    left, middle, right = height[i - 1 : i + 2]
    bend = left - 2 * middle + right
    offset = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float(candidates[i] + offset * (candidates[1] - candidates[0]))


def _points(radius: float) -> Points:
    """Points spread evenly over a circle, as a sunflower's seeds are."""
    n = max(min(POINTS, int(math.pi * radius**2)), 1)
    k = torch.arange(n, dtype=torch.float64) + 0.5
    r, turn = torch.sqrt(k / n) * radius, k * math.pi * (3 - math.sqrt(5))
    return r * turn.cos(), r * turn.sin()
