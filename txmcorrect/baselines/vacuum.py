"""Components of the flats, fitted to what the sample never covers.

Source: Jailin et al. 2017, J. Synchrotron Rad. 24, 220: flats' modes and the borders of sinograms;
our own implementation, in the logarithm, with a constant for the level of each frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.baselines.cells import cell_logs, cell_means
from txmcorrect.baselines.contract import (
    Array,
    Estimate,
    Flats,
    Image,
    Method,
    NotApplicableError,
    Problem,
    log_light,
)

MOST_COMPONENTS = 8  # beams have few modes; more of them fit the noise of the columns
SMOOTH_PX = 1.5  # modes are those of noisy flats
LEAST_CELLS = 10  # a cell fits nothing, ten times the unknowns do


def all_flats(problem: Problem) -> Image:
    """Every reference that there is, `(m, h, w)` counts with dark.

    Raises
    ------
    NotApplicableError : there is none.
    """
    groups: list[Flats | None] = [problem.before, problem.stale, problem.after, problem.bank]
    found = [group.counts for group in groups if group is not None]
    if not found:
        raise NotApplicableError("expected at least one reference, got none")
    return np.concatenate(found)


def fit_to_vacuum(vacuum: NDArray[np.bool_]) -> Method:
    """Least squares of the flats' components and a constant on pixels `vacuum` `(h, w)`.

    `vacuum` must be empty in every frame, as the columns beside a rotating sample are. Where it is
    taken from the truth, this peer gets every benefit. As many components as predict cells of the
    vacuum best from the others.
    """

    def method(problem: Problem) -> Estimate:
        base, modes = log_modes(all_flats(problem), problem.dark, problem.lit)
        inside = vacuum & problem.lit
        usable = cell_means(inside.astype(np.float64)) >= 0.5
        needed = LEAST_CELLS * (len(modes) + 1)
        if usable.sum() < needed:
            raise NotApplicableError(
                f"expected vacuum in at least {needed} cells, got {usable.sum()}"
            )
        design = np.stack([np.ones(usable.sum()), *(_means(m, inside)[usable] for m in modes)], 1)
        light = np.where(inside, problem.frames - problem.dark, 0)
        seen = cell_logs(light) - cell_logs(np.where(inside, np.exp(base), 0))
        count = _best_count(design, seen[:, usable])
        weights = _fit(design[:, : count + 1], seen[:, usable])
        logs = base + weights[:1].T[..., None] + np.tensordot(weights[1:].T, modes[:count], 1)
        return Estimate(logs.astype(np.float32), "absolute")

    return method


def _fit(design: Array, seen: Array) -> Array:
    """Weights `(k, n)` of the columns of a design `(p, k)` for frames seen in cells `(n, p)`."""
    return np.linalg.lstsq(design, seen.T, rcond=None)[0]


def _best_count(design: Array, seen: Array) -> int:
    """How many components beside the constant predict every second cell from the others best."""
    first, second = slice(0, None, 2), slice(1, None, 2)

    def missed(count: int) -> float:
        some = design[:, : count + 1]
        guess = some[second] @ _fit(some[first], seen[:, first])
        return float(((guess - seen[:, second].T) ** 2).sum())

    return int(np.argmin([missed(count) for count in range(design.shape[1])]))


def log_modes(flats: Image, dark: Image, lit: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Log of the mean flat `(h, w)` and its modes `(k, h, w)`; flats are freed of their levels."""
    base = log_light(flats.mean(0, dtype=np.float64), dark)
    change = np.where(lit, log_light(flats, dark) - base, 0).astype(np.float64)
    change -= np.where(lit, change[:, lit].mean(1)[:, None, None], 0)
    change -= change.mean(0)
    count = min(MOST_COMPONENTS, len(flats) - 1)
    cells = cell_means(change).reshape(len(flats), -1)
    values, vectors = np.linalg.eigh(cells @ cells.T)
    chosen = vectors[:, np.argsort(values)[::-1][:count]].T
    modes = [gaussian_filter(np.tensordot(v, change, 1), SMOOTH_PX) for v in chosen]
    return base, np.reshape(modes, (count, *lit.shape))


def _means(image: Array, inside: NDArray[np.bool_]) -> Array:
    """Cell means of an image over the pixels that are inside."""
    share = cell_means(inside.astype(np.float64))
    return cell_means(np.where(inside, image, 0)) / np.where(share > 0, share, 1)
