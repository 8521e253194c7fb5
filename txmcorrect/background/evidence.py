"""What frames say of modes: normal equations, and how far these are to be believed.

Sources: Cauchy's loss by reweighting, Holland and Welsch 1977; clustered variances, Liang and Zeger 1986.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Array = NDArray[Any]

CAUCHY = 1.5  # robust standard deviations at which a step counts half
LEAST_WIDTH = 3e-4  # natural log
LEVEL = 0.01  # natural log: how well recorded exposures and currents say how bright a frame is
NEW = 0.5  # of what a step tells is not told by steps of other scales beside it
LEAST_BELIEF = 1e-4
SHRUNK = 0.03  # of the way to its diagonal; 0.01 and 0.1 did as well on scans for choosing settings


def normal_matrix(modes: Image, belief: Image, course: Array) -> Array:
    """Normal matrix of all weights `(kq, kq)`: sums over frames first, as they are many.

    `modes` `(k, p)`, `belief` `(n, p)`, `course` `(n, q)`.
    """
    k, q = len(modes), course.shape[1]
    matrix = np.empty((k, q, k, q))
    for i in range(q):
        for j in range(i, q):
            weight = (course[:, i] * course[:, j]).astype(np.float32) @ belief
            matrix[:, i, :, j] = matrix[:, j, :, i] = (modes * weight) @ modes.T
    return matrix.reshape(k * q, k * q)


def normals(modes: Image, belief: Image) -> Array:
    """Normal matrix of every frame, `(n, k, k)`."""
    return np.stack([(modes * weight) @ modes.T for weight in belief]).astype(np.float64)


def scores(modes: Image, belief: Image, left: Image) -> Array:
    """How each frame would change each mode, `(n, k)`."""
    return ((belief * left) @ modes.T).astype(np.float64)


def usual_size(left: Array) -> float:
    """Robust standard deviation of residuals, never quite nothing."""
    return 1.4826 * float(np.median(np.abs(left))) + LEAST_WIDTH


def believed(left: Array, size: float) -> Array:
    """Weights of an overlap's residuals of a usual `size`, by Cauchy's loss."""
    return np.asarray(NEW / (size**2 + (left / CAUCHY) ** 2))


def contradiction(expected: Array, score: Array) -> Array:
    """How far each mode's normal equations are to be believed, `(k,)`, at most `NEW`.

    `expected` `(k,)`: variance that independent steps would give the sum of the scores `(n, k)`.

    Steps of one object point the same way, and frames in a row may show the same sample: scores of
    whole frames vary more than independent steps would say.
    """
    n = len(score)
    apart = score - score.mean(0)
    variance = (apart**2).sum(0) * n / max(n - 1, 1)
    if n > 3:
        alike = (apart[1:] * apart[:-1]).sum(0) / ((apart**2).sum(0) + 1e-30)
        alike = np.clip(alike + 1 / n, 0, 0.97)
        variance = variance * (1 + alike) / (1 - alike)
    return np.asarray(np.clip(expected / (variance + 1e-30), LEAST_BELIEF, NEW))


def widened(matrix: Array, right: Array, trust: Array) -> tuple[Array, Array]:
    """Normal equations `(k, k)`, `(k,)` whose scores vary by 1 / `trust` `(k,)` more than they say.

    With the covariance V = S M S of the scores, S^2 = 1 / trust, least squares have the precision
    M V^-1 M: symmetric, and with the same solution where nothing else is known. V is drawn a little
    towards its diagonal (Ledoit and Wolf 2004): combinations that frames say nothing of would else pass
    for exact, and a scan in sixty ran away.
    """
    covariance = matrix / np.sqrt(np.outer(trust, trust))
    diagonal = np.diag(np.diag(covariance) + 1e-12)
    left = matrix @ np.linalg.inv((1 - SHRUNK) * covariance + SHRUNK * diagonal)
    return left @ matrix, left @ right


def level_apart(
    one: Array, two: Array, left: Array, weight: Array, levelled: bool
) -> tuple[Array, Array, Array, Array]:
    """Take the level out of an overlap: `(k, p)`, `(k, p)`, `(p,)` and weights `(p,)`.

    Where exposures are recorded it comes back as one cell more, of a weight of its own.
    """
    share = weight / weight.sum()
    levels = [x @ share for x in (one, two, left)]
    one, two, left = (x - m[..., None] for x, m in zip((one, two, left), levels, strict=True))
    if levelled:
        one, two, left = (
            np.concatenate([x, m[..., None]], -1)
            for x, m in zip((one, two, left), levels, strict=True)
        )
        weight = np.append(weight, 1 / (LEVEL**2 + (levels[2] / CAUCHY) ** 2))
    return one, two, left, weight
