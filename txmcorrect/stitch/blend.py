"""Tiles to one image: sub-pixel placement, feathered weights, strip by strip in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, median_filter
from scipy.ndimage import shift as spline_shift

from txmcorrect.stitch.layout import Points

Array = NDArray[Any]
Mask = NDArray[np.bool_]
ReadTile = Callable[[int], Array]

EDGE_PX = 1  # outermost pixels have no neighbours to interpolate between
RIM_PX = 3  # next to the dark the beam changes too fast to be divided out
SPECK_PX = 7  # dead spots up to half this size are no rim
NO_DATA = np.nan
# Multi-band: detail finer than the first width comes from the tile of most weight nearly alone, what is
# coarser than the last fades as slowly as it can; (width in px, power of the weight) from fine to coarse.
BANDS = ((2.0, 8), (8.0, 3))


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
    multiband: bool = False,
) -> Iterator[tuple[int, Array]]:
    """Blend tiles into strips of the mosaic, from top to bottom.

    A tile is read once, when the first strip needs it, and dropped after the last that does, so memory
    grows with a row of tiles, not with the mosaic.

    Parameters
    ----------
    read : tile -> `(h, w)` transmission. weight : `(h, w)` feathered weight of the frame.
    positions : `(n, 2)` px. tiles : those that take part. strip_rows : rows of a strip.
    multiband : fade coarse structure over the whole overlap, detail over a small part of it, so that
    tiles a little out of place do not show everything twice (Burt and Adelson 1983).

    Yields
    ------
    First row and `(rows, width)` float32; NaN where no tile is.
    """
    shape = (weight.shape[0], weight.shape[1])
    height, width = mosaic_shape(positions, shape)
    waiting = sorted(tiles, key=lambda i: (positions[i, 0], i))
    held: list[tuple[int, list[Placed]]] = []
    for top in range(0, height, strip_rows):
        rows = min(strip_rows, height - top)
        while waiting and positions[waiting[0], 0] < top + rows:
            tile = waiting.pop(0)
            image = read(tile)
            # More signal, less noise: photon noise of log T goes as 1 / T.
            signal = weight * np.clip(image, 0.05, 1.0)
            placed = place_tile(image, signal, positions[tile])
            held.append((tile, _bands(placed) if multiband else [placed]))
        held = [(i, p) for i, p in held if p[0].corner[0] + p[0].image.shape[0] > top]
        bands = zip(*(p for _, p in held), strict=True) if held else [()]
        strips = [_blend_strip(band, top, (rows, width)) for band in bands]
        yield top, np.asarray(np.sum(strips, axis=0), np.float32)


def _bands(placed: Placed) -> list[Placed]:
    """The tile split into bands that add up to it, each with the weight that its seams want."""
    known = (placed.weight > 0).astype(np.float32)
    bands, rest = [], placed.image
    for width, power in BANDS:
        # Only what is known goes into the average: no light from beyond the lit area.
        share = gaussian_filter(known, width, mode="constant")
        coarse = gaussian_filter(rest * known, width, mode="constant")
        coarse = np.where(known > 0, coarse / np.maximum(share, 1e-6), rest)
        # Small weights to a power vanish in float32, and with them the tile at its very edge.
        weight = np.maximum(placed.weight**power, 1e-12) * known
        bands.append(Placed(rest - coarse, weight, placed.corner))
        rest = coarse
    return [*bands, Placed(rest, placed.weight, placed.corner)]


def _blend_strip(placed: Sequence[Placed], top: int, shape: tuple[int, int]) -> Array:
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
        return np.asarray(np.where(weights > 0, total / np.where(weights > 0, weights, 1), NO_DATA))
