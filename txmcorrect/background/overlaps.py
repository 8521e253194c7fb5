"""Where frames of a mosaic overlap: the same sample before two places of the background.

In the logarithm the sample drops out of the difference of the two frames; what is left is background
at one place less background at the other. Nothing of the sample can be taken for drift there, however
dense it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Array = NDArray[Any]

LEAST_CELLS = 24  # of an overlap
MOST_CELLS = 256  # every so many cells of larger ones
MOST_PAIRS = 300  # evenly among all


@dataclass(frozen=True)
class Overlap:
    """Two frames where they overlap.

    Attributes
    ----------
    at : `(2,)` places of the frames among those that are fitted. data : `(p,)` natural log of the
    first over the second. inside : `(p,)` cells of the first frame. corners, share : `(4, p)` cells of
    the second around the same place of the sample, and their part in it. levelled : exposures are
    recorded, so that the mean of `data` says something, too.
    """

    at: Array
    data: Array
    inside: Array
    corners: Array
    share: Array
    levelled: bool

    def modes(self, images: Image) -> tuple[Array, Array]:
        """Images `(k, h, w)` as the first and the second frame see them, `(k, p)` each."""
        flat = images.reshape(len(images), -1)
        return flat[:, self.inside], (flat[:, self.corners] * self.share).sum(1)


def find_overlaps(
    logs: Image,
    lit: NDArray[np.bool_],
    position: Array,
    usable: NDArray[np.bool_],
    at: Array,
    levelled: bool = False,
) -> list[Overlap]:
    """Overlaps of usable frames.

    Parameters
    ----------
    logs : `(n, h, w)` natural log of frames over the reference. lit : `(h, w)`.
    position : `(n, 2)` corners (y, x) in cells. at : `(n,)` places among the frames that are fitted.
    levelled : exposures are recorded.
    """
    pairs = list(_pairs(position, usable, lit.shape))
    step = max(1, -(-len(pairs) // MOST_PAIRS))
    found = (
        _overlap(logs, lit, position[j] - position[i], (i, j), at, levelled)
        for i, j in pairs[::step]
    )
    return [overlap for overlap in found if overlap is not None]


def _pairs(
    position: Array, usable: NDArray[np.bool_], shape: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    index = np.flatnonzero(usable)
    for k, i in enumerate(index):
        rest = index[k + 1 :]
        shared = np.prod(np.maximum(np.array(shape) - np.abs(position[rest] - position[i]), 0), 1)
        yield from ((int(i), int(j)) for j in rest[shared >= LEAST_CELLS])


def _overlap(
    logs: Image,
    lit: NDArray[np.bool_],
    shift: Array,
    pair: tuple[int, int],
    at: Array,
    levelled: bool,
) -> Overlap | None:
    h, w = lit.shape
    y, x = np.indices(lit.shape).reshape(2, -1)
    there = np.stack([y, x], 1) - shift
    low = np.floor(there).astype(int)
    part = there - low
    inside = lit.ravel() & (low >= 0).all(1) & (low[:, 0] < h - 1) & (low[:, 1] < w - 1)
    cells = np.flatnonzero(inside)
    ahead = (0, 1, w, w + 1)
    corners = np.stack([(low[:, 0] * w + low[:, 1])[cells] + a for a in ahead])
    cells, corners = (c[..., lit.ravel()[corners].all(0)] for c in (cells, corners))
    if len(cells) < LEAST_CELLS:
        return None
    step = -(-len(cells) // MOST_CELLS)
    cells, corners = cells[::step], corners[:, ::step]
    v, u = part[cells].T
    share = np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
    i, j = pair
    data = logs[i].ravel()[cells] - (logs[j].ravel()[corners] * share).sum(0)
    return Overlap(at[[i, j]], data, cells, corners, share, levelled)
