"""Shifts that bring the projections of one sample into line. Shifts (y, x) are to be added.

Only marginals are needed: `rows (n, h)` and `columns (n, w)`, sums of a projection's absorption
along x and along y. A stack is read once, however large.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import shift as spline_shift

from txmcorrect.errors import GeometryError
from txmcorrect.recon.shifts import row_shifts

Array = NDArray[np.float64]
ROUNDS = 5
LEAST_OVERLAP = 0.75
LEAST_GAIN = 0.8  # lines must come this much closer


def common_line(rows: Array, columns: Array, theta: Array) -> Array:
    """Align by what all parallel projections must share.

    Vertically: the absorption in a slice is the same from everywhere, so all `rows` are one common
    line. Horizontally: the centroid of what is seen moves on a sinusoid of theta.

    Parameters
    ----------
    rows : `(n, h)`. columns : `(n, w)`. theta : `(n,)` radians.

    Returns
    -------
    `(n, 2)` pixels (y, x) to move each projection by; their mean is left to the axis.

    Raises
    ------
    GeometryError : the absorption seen changes by over a tenth, so the sample leaves the view.

    Source: Helgason-Ludwig consistency conditions of order 0 and 1 (Natterer 1986, Ch. II.4).
    """
    down = _shifts_to_mean(rows)
    mass = columns.sum(1)
    unsteady = float(np.std(mass) / abs(mass.mean())) if mass.mean() else np.inf
    if unsteady > 0.1:
        raise GeometryError(
            "--align common-line: expected the whole sample in every projection, but their "
            f"absorption varies by {unsteady:.0%}; use --align correlation or none"
        )
    centroid = columns @ np.arange(columns.shape[1]) / mass
    return np.stack([down, _sinusoid(centroid, theta) - centroid], 1)


def correlation(rows: Array, columns: Array, theta: Array) -> Array:
    """Align each projection with its neighbour by cross-correlation, and add up.

    What the rotation itself moves, a sinusoid of theta, is taken out again. Errors add up along
    the scan; where the whole sample is in view, `common_line` is better.

    Parameters and result are those of `common_line`.
    """
    order = np.argsort(theta, kind="stable")
    moved = np.zeros((len(theta), 2))
    for axis, marginal in enumerate((rows, columns)):
        sorted_ = marginal[order][:, None, :]
        # second(x) = first(x + d): what is seen moved by -d from one to the next.
        path = np.concatenate(
            [[0.0], np.cumsum(-row_shifts(sorted_[:-1], sorted_[1:], LEAST_OVERLAP))]
        )
        moved[order, axis] = path
    moved[:, 0] -= moved[:, 0].mean()
    moved[:, 1] -= _sinusoid(moved[:, 1], theta)
    return -moved


METHODS = {"common-line": common_line, "correlation": correlation}


def move(frames: NDArray[np.float32], shifts: Array) -> NDArray[np.float32]:
    """Move `(n, h, w)` frames by `(n, 2)` pixels (y, x); whole pixels are not interpolated."""
    out = np.empty_like(frames)
    for i, (frame, step) in enumerate(zip(frames, shifts, strict=True)):
        whole = bool((step == np.round(step)).all())
        spline_shift(frame, step, output=out[i], order=0 if whole else 3, mode="nearest")
    return out


def _shifts_to_mean(lines: Array) -> Array:
    """Shifts `(n,)` of lines `(n, h)` to their common one, which is refined with them.

    Zero where they do not bring the lines closer: a sample that is the same in every slice has
    no vertical place.
    """
    total, moved = np.zeros(len(lines)), lines
    for _ in range(ROUNDS):
        common = np.broadcast_to(np.median(moved, 0), moved.shape)
        # moved(x) = common(x + d) has to move by d.
        step = row_shifts(common[:, None], moved[:, None], LEAST_OVERLAP)
        total += step
        total -= total.mean()
        moved = np.stack([_move_line(a, s) for a, s in zip(lines, total, strict=True)])
        if np.abs(step - step.mean()).max() < 0.01:
            break
    worth = moved.std(0).mean() < LEAST_GAIN * lines.std(0).mean()
    return total if worth else np.zeros(len(lines))


def _move_line(line: Array, step: float) -> Array:
    return np.asarray(spline_shift(line, step, order=3, mode="nearest"))


def _sinusoid(values: Array, theta: Array) -> Array:
    """Best fit a + b cos(theta) + c sin(theta) to `(n,)` values."""
    basis = np.stack([np.ones_like(theta), np.cos(theta), np.sin(theta)], 1)
    fit, *_ = np.linalg.lstsq(basis, values, rcond=None)
    return np.asarray(basis @ fit)
