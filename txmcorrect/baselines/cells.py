"""Means over cells of four pixels: where peers that fit frames look, as photon noise drowns pixels."""

from __future__ import annotations

import numpy as np

from txmcorrect.baselines.contract import LEAST_COUNTS, Array

CELL_PX = 4


def cell_means(image: Array, size: int = CELL_PX) -> Array:
    """Means over squares `(..., h, w)` -> `(..., ceil(h / size), ceil(w / size))`; the last may be cut."""
    starts = [np.arange(0, side, size) for side in image.shape[-2:]]
    sums = np.add.reduceat(np.add.reduceat(image, starts[0], axis=-2), starts[1], axis=-1)
    sides = [np.diff([*s, side]) for s, side in zip(starts, image.shape[-2:], strict=True)]
    return sums / (sides[0][:, None] * sides[1])


def cell_logs(light: Array) -> Array:
    """Log of the mean light of each cell, floored at half a count."""
    return np.log(np.maximum(cell_means(light), LEAST_COUNTS))
