"""Tiles to one image: sub-pixel placement, feathered weights, strip by strip in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, median_filter
from scipy.ndimage import shift as spline_shift

from txmcorrect.stitch.layout import Points

Array = NDArray[Any]
Mask = NDArray[np.bool_]
ReadTile = Callable[[int], Array]

EDGE_PX = 1  # outermost pixels have no neighbours to interpolate between
RIM_PX = 3  # next to the dark the beam changes too fast to be divided out
SPECK_PX = 7  # dead spots up to half this size are no rim
NO_DATA = np.nan


@dataclass(frozen=True)
class Placed:
    """A tile moved by a fraction of a pixel onto the mosaic's grid.

    Attributes
    ----------
    image : `(h + 1, w + 1)` float32; weight : the same, 0 where nothing is known.
    corner : first row and column in the mosaic.
    """

    image: Array
    weight: Array
    corner: tuple[int, int]


def mosaic_shape(positions: Points, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that tiles of `shape` at `positions` (y, x >= 0) fill."""
    size = np.floor(positions.max(0)).astype(int) + np.array(shape) + 1
    return int(size[0]), int(size[1])


def trimmed(lit: Mask) -> Mask:
    """The lit area `(h, w)` without its rim; dead pixels inside it stay as small as they are."""
    # Frames go on beyond their edges as they are: an edge of the frame is no rim.
    area = median_filter(lit, SPECK_PX, mode="nearest")
    area = binary_erosion(area, iterations=RIM_PX, border_value=1)
    return np.asarray(area & lit)


def feather(lit: Mask, width_px: float) -> Array:
    """Weight of each pixel of a frame: rises from the edge of the lit area over `width_px`.

    The rise is smooth at both ends (raised cosine), so that no seam starts with a kink; far inside the
    weight is 1, so that most of the mosaic is one tile and no more.
    """
    inside = binary_erosion(np.pad(lit, 1), iterations=EDGE_PX)[1:-1, 1:-1]
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    rise = np.clip(depth / (width_px + 1), 0, 1)
    return np.asarray((1 - np.cos(np.pi * rise)) / 2, np.float32)


def place_tile(image: Array, weight: Array, position: NDArray[np.float64]) -> Placed:
    """Move a tile onto the grid by cubic splines, which keep edges and noise as they are.

    Parameters
    ----------
    image : `(h, w)` transmission. weight : `(h, w)`. position : (y, x) px, not negative.
    """
    corner = np.floor(position).astype(int)
    part = position - corner
    # Splines ring next to jumps: what does not count takes the value of the nearest that does.
    nearest = distance_transform_edt(weight <= 0, return_distances=False, return_indices=True)
    padded = np.pad(image[tuple(nearest)], ((0, 1), (0, 1)), mode="edge").astype(np.float32)
    spread = np.pad(weight, ((0, 1), (0, 1))).astype(np.float32)
    if np.abs(part).max() > 1e-3:
        padded = spline_shift(padded, part, order=3, mode="nearest")
        # Where a pixel without weight went in, nothing comes out.
        known = spline_shift((spread > 0).astype(np.float32), part, order=1, mode="constant")
        spread = spline_shift(spread, part, order=1, mode="constant") * (known > 0.999)
    return Placed(padded, spread, (int(corner[0]), int(corner[1])))


def blend_strips(
    read: ReadTile,
    weight: Array,
    positions: Points,
    tiles: Iterator[int] | list[int],
    strip_rows: int = 256,
) -> Iterator[tuple[int, Array]]:
    """Blend tiles into strips of the mosaic, from top to bottom.

    A tile is read once, when the first strip needs it, and dropped after the last that does, so memory
    grows with a row of tiles, not with the mosaic.

    Parameters
    ----------
    read : tile -> `(h, w)` transmission. weight : `(h, w)` feathered weight of the frame.
    positions : `(n, 2)` px. tiles : those that take part. strip_rows : rows of a strip.

    Yields
    ------
    First row and `(rows, width)` float32; NaN where no tile is.
    """
    shape = (weight.shape[0], weight.shape[1])
    height, width = mosaic_shape(positions, shape)
    waiting = sorted(tiles, key=lambda i: (positions[i, 0], i))
    held: list[tuple[int, Placed]] = []
    for top in range(0, height, strip_rows):
        rows = min(strip_rows, height - top)
        while waiting and positions[waiting[0], 0] < top + rows:
            tile = waiting.pop(0)
            image = read(tile)
            # More signal, less noise: photon noise of log T goes as 1 / T.
            signal = weight * np.clip(image, 0.05, 1.0)
            held.append((tile, place_tile(image, signal, positions[tile])))
        held = [(i, p) for i, p in held if p.corner[0] + p.image.shape[0] > top]
        yield top, _blend_strip([p for _, p in held], top, (rows, width))


def _blend_strip(placed: list[Placed], top: int, shape: tuple[int, int]) -> Array:
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for tile in placed:
        first = max(tile.corner[0], top)
        last = min(tile.corner[0] + tile.image.shape[0], top + shape[0])
        if first >= last:
            continue
        own = np.s_[first - tile.corner[0] : last - tile.corner[0]]
        columns = np.s_[tile.corner[1] : min(tile.corner[1] + tile.image.shape[1], shape[1])]
        there = (np.s_[first - top : last - top], columns)
        wide = columns.stop - columns.start
        weight = tile.weight[own, :wide]
        total[there] += tile.image[own, :wide] * weight
        weights[there] += weight
    with np.errstate(invalid="ignore"):
        return np.where(weights > 0, total / np.where(weights > 0, weights, 1), NO_DATA)
