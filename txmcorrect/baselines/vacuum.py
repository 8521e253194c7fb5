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
from txmcorrect.baselines.eigenflats import significant_components

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
    taken from the truth, this peer gets every benefit.
    """

    def method(problem: Problem) -> Estimate:
        flats = all_flats(problem)
        base, modes = log_modes(flats, problem.dark, problem.lit)
        inside = vacuum & problem.lit
        usable = cell_means(inside.astype(np.float64)) >= 0.5
        if usable.sum() < LEAST_CELLS * (len(modes) + 1):
            raise NotApplicableError(
                f"expected vacuum in at least {LEAST_CELLS * (len(modes) + 1)} cells, "
                f"got {usable.sum()}"
            )
        design = np.stack([*(_inside_means(m, inside)[usable] for m in modes), usable[usable]], 1)
        out = np.empty(problem.shape, np.float32)
        for i, frame in enumerate(problem.frames):
            light = np.where(inside, frame - problem.dark, 0)
            target = (cell_logs(light) - cell_logs(np.where(inside, np.exp(base), 0)))[usable]
            weights = np.linalg.lstsq(design.astype(np.float64), target, rcond=None)[0]
            out[i] = base + np.tensordot(weights[:-1], modes, 1) + weights[-1]
        return Estimate(out, "absolute")

    return method


def log_modes(flats: Image, dark: Image, lit: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Log of the mean flat `(h, w)` and its modes `(k, h, w)`; flats are freed of their levels.

    As many modes as stand out of the flats' noise in cells, by parallel analysis.
    """
    base = log_light(flats.mean(0, dtype=np.float64), dark)
    change = np.where(lit, log_light(flats, dark) - base, 0).astype(np.float64)
    change -= np.where(lit, change[:, lit].mean(1)[:, None, None], 0)
    if len(flats) < 3:  # two flats have one difference, and nothing tells it from noise
        return base, np.zeros((0, *lit.shape))
    cells = cell_means(change)[:, cell_means(lit.astype(np.float64)) >= 0.5]
    count = min(significant_components(cells - cells.mean(0)), MOST_COMPONENTS)
    values, vectors = np.linalg.eigh(cells @ cells.T)
    chosen = vectors[:, np.argsort(values)[::-1][:count]].T
    modes = [gaussian_filter(np.tensordot(v, change, 1), SMOOTH_PX) for v in chosen]
    return base, np.reshape(modes, (count, *lit.shape))


def _inside_means(image: Array, inside: NDArray[np.bool_]) -> Array:
    """Cell means of an image over the pixels that are inside."""
    share = cell_means(inside.astype(np.float64))
    return cell_means(np.where(inside, image, 0)) / np.where(share > 0, share, 1)
