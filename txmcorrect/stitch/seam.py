"""Two tiles compared where they overlap: what their logarithms differ by, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.stitch.register import overlap_slices

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Seam:
    """Log ratios of two tiles over the blocks of their overlap.

    Attributes
    ----------
    log_ratio : `(k,)` log of the first over the second. weight : `(k,)` pixels, by signal.
    place_first, place_second : `(k, 2)` block centres in each tile's own pixels (y, x).
    """

    first: int
    second: int
    log_ratio: Array
    weight: Array
    place_first: Array
    place_second: Array


def measure_seam(
    pair: tuple[int, int],
    tiles: tuple[Array, Array],
    shift: tuple[int, int],
    lit: Mask,
    block_px: int = 16,
) -> Seam | None:
    """Compare two tiles block by block where they overlap; None where no block shows both.

    Parameters
    ----------
    tiles : two `(h, w)` transmissions. shift : position of the second less that of the first.
    """
    shape = (lit.shape[0], lit.shape[1])
    if abs(shift[0]) >= shape[0] or abs(shift[1]) >= shape[1]:
        return None
    one, two = overlap_slices(shift, shape)
    both = lit[one] & lit[two]
    if both.sum() < block_px:
        return None
    label = _blocks((both.shape[0], both.shape[1]), block_px)
    count = np.bincount(label.ravel(), both.ravel())

    def total(values: Array) -> Array:
        return np.bincount(label.ravel(), np.where(both, values, 0).ravel())

    # The log of means: where counts are few the mean of logs is biased.
    a, b = total(tiles[0][one]), total(tiles[1][two])
    y, x = np.indices(both.shape)
    known = (count >= block_px) & (a > 0.02 * count) & (b > 0.02 * count)
    if not known.any():
        return None
    pixels = np.maximum(count, 1)
    centre = np.stack([total(y) / pixels, total(x) / pixels], 1)[known]
    return Seam(
        first=pair[0],
        second=pair[1],
        log_ratio=np.log(a[known] / b[known]),
        weight=count[known] * np.minimum(np.minimum(a, b)[known] / count[known], 1.0),
        place_first=centre + np.array([one[0].start, one[1].start]),
        place_second=centre + np.array([two[0].start, two[1].start]),
    )


def _blocks(shape: tuple[int, int], size: int) -> Array:
    """Number of the block that each pixel is in; blocks are about `size` wide and fill the overlap."""
    index = [np.arange(side) * max(round(side / size), 1) // max(side, 1) for side in shape]
    return np.asarray(index[0][:, None] * (index[1].max(initial=0) + 1) + index[1][None])


def seam_figure(seams: Sequence[Seam]) -> float:
    """Mean |log ratio| over blocks of all seams after each pair's own gain; NaN without overlap."""
    if not seams:
        return float("nan")
    off = [np.abs(s.log_ratio - np.average(s.log_ratio, weights=s.weight)) for s in seams]
    weight = np.concatenate([s.weight for s in seams])
    return float(np.average(np.concatenate(off), weights=weight))
