"""What overlaps tell about the background: the same sample, seen at two places of the detector.

In the logarithm a tile is sample + background error, and the sample drops out of the difference of two
tiles where they overlap. What is left is linear in the error: a gain per tile, a field that all tiles
share (a poor flat), a smoother field of each tile alone (drift), and near the overlaps themselves what
these leave (a detector whose edge sees otherwise than its middle). Only differences between tiles
enter, so nothing of the sample can be taken for background or be flattened, whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from txmcorrect.stitch.fields import (
    Smoothness,
    between,
    bilinear,
    broad_model,
    in_time,
    nodes_of,
    of_tile,
    rough,
    solve,
    spread,
)
from txmcorrect.stitch.likely import likely
from txmcorrect.stitch.seam import Seam

Array = NDArray[Any]


@dataclass(frozen=True)
class Refinement:
    """Corrections to the log background.

    Attributes
    ----------
    log_gain : `(n,)`, their mean is zero. shared : `(gy, gx)` nodes. own : `(n, hy, hx)` nodes.
    near : `(n, iy, ix)` nodes. shape : frame (h, w). smoothness : as they were found with.
    """

    log_gain: Array
    shared: Array
    own: Array
    near: Array
    shape: tuple[int, int]
    smoothness: Smoothness

    @property
    def most_near(self) -> tuple[int, float] | None:
        """Tile and size of the largest change that only its overlaps asked for; None without any."""
        each = np.abs(self.near).max((1, 2))
        tile = int(each.argmax())
        return (tile, float(each[tile])) if each[tile] > 0 else None

    def log_background(self, tile: int) -> Array:
        """What to subtract from the logarithm of a tile, `(h, w)`."""
        fields = (self.shared, self.own[tile], self.near[tile])
        field = sum(spread(nodes, self.shape) for nodes in fields)
        return np.asarray(field + self.log_gain[tile], np.float32)


def refine(
    seams: Sequence[Seam], n: int, shape: tuple[int, int], smoothness: Smoothness | None = None
) -> Refinement:
    """Find gains and fields that make overlapping tiles agree, as smooth as they can be.

    Robust (Huber) linear least squares in the log domain, twice: gains and fields that reach across the
    frame first; what these leave is undone where it is seen, near the overlaps. All at once, what is
    near would take from what is broad, which alone puts the inside of a tile right.

    Parameters
    ----------
    seams : of all overlapping pairs. n : tiles. shape : frame (h, w). smoothness : None: `likely`.
    """
    prior = smoothness or likely(seams, n, shape)
    broad = broad_model(seams, n, shape, prior)
    penalty = broad.penalty(prior, in_time(np.arange(n), prior.kept))
    found = solve(broad.design, broad.ratio, broad.precision, penalty)
    gain, everywhere, alone = np.split(found, np.cumsum([n, math.prod(broad.shared)]))

    near = nodes_of(shape, prior.near_step)
    single = rough(near, prior.near) + sparse.eye_array(math.prod(near)) / prior.near_size**2
    left = solve(
        between(seams, lambda place, tile: of_tile(bilinear(place, shape, near), tile, n)),
        broad.ratio - broad.design @ found,
        broad.precision,
        sparse.kron(sparse.eye_array(n), single, format="csc"),
    )
    return Refinement(
        gain - gain.mean(),
        everywhere.reshape(broad.shared),
        alone.reshape(n, *broad.own),
        left.reshape(n, *near),
        shape,
        prior,
    )
