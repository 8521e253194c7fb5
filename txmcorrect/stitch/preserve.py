"""Known disks multiplied into tiles: does the refinement from overlaps leave the sample alone?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.stitch.layout import Points
from txmcorrect.stitch.overlap import Refinement

Array = NDArray[Any]
IMPLANT_PX = (4, 16, 64, 256)
DEPTH = 0.1  # log change inside a disk, down and up in turn


def implants(
    positions: Points, shape: tuple[int, int], size_px: int, at: Sequence[int] | None = None
) -> Callable[[int], Array]:
    """Disks of a diameter, one about each corner of each tile, where overlaps are.

    `at` : tiles about whose corners they are; all by default.

    Returns
    -------
    tile -> `(h, w)` log change; the same place of the sample changes alike in every tile.
    """
    chosen = positions if at is None else positions[list(at)]
    corners = np.concatenate([chosen, chosen + np.array(shape)])
    y, x = np.ogrid[: shape[0], : shape[1]]

    def tile(index: int) -> Array:
        change = np.zeros(shape, np.float32)
        for k, centre in enumerate(corners):
            near = centre - positions[index]
            low = np.clip(np.floor(near - size_px / 2), 0, shape).astype(int)
            high = np.clip(np.ceil(near + size_px / 2) + 1, 0, shape).astype(int)
            box = np.s_[low[0] : high[0], low[1] : high[1]]
            rows, columns = y[box[0]], x[:, box[1]]
            inside = (rows - near[0]) ** 2 + (columns - near[1]) ** 2 < (size_px / 2) ** 2
            change[box][inside] = DEPTH if k % 2 else -DEPTH
        return change

    return tile


def recovered_slopes(
    disks: Callable[[int], Array], before: Refinement, after: Refinement, tiles: Iterable[int]
) -> float:
    """Slope of the recovered log change on the true one, over `tiles`.

    `before` and `after` are refinements without and with the disks in the tiles.
    """
    true_square, product = 0.0, 0.0
    for tile in tiles:
        true = disks(tile)
        found = true - (after.log_background(tile) - before.log_background(tile))
        true_square += float((true**2).sum())
        product += float((true * found).sum())
    return product / true_square if true_square > 0 else float("nan")
