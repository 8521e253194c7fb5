"""What overlaps tell about the background: the same sample, seen at two places of the detector.

In the logarithm a tile is sample + background error, and the sample drops out of the difference of two
tiles where they overlap. What is left is linear in the error: a gain per tile, a field that all tiles
share (a poor flat), a smoother field of each tile alone (drift). Only differences between tiles enter,
so nothing of the sample can be taken for background or be flattened, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from txmcorrect.stitch.register import overlap_slices

Array = NDArray[Any]
Mask = NDArray[np.bool_]
ReadTile = Callable[[int], Array]

HUBER = 1.5  # robust standard deviations: the edge of a misplaced particle is no background
ROUNDS = 4
WHOLE = 1 / 4  # of a field's nodes that move as one


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


@dataclass(frozen=True)
class Smoothness:
    """How rough the fields may be: the prior of the refinement.

    Attributes
    ----------
    shared_step, own_step : distance of the nodes of the shared and of each tile's field, as parts of
    the frame. shared, own : log change from node to node, one standard deviation; shared_size,
    own_size : log value of a node, the same.
    gain : log gain of a tile, one standard deviation. A shared slope and gains that rise from tile to
    tile look alike in overlaps: what is known of the gains has to part them.
    kept : correlation of the fields of two tiles taken one after the other: beams drift slowly.
    noise : of a pixel's log ratio. misfit : of a block's beyond noise (tiles a little out of place).
    """

    shared_step: float = 1 / 32
    own_step: float = 1 / 8
    shared: float = 0.02
    own: float = 0.03
    shared_size: float = 0.02
    own_size: float = 0.03
    gain: float = 0.005
    kept: float = 0.9
    noise: float = 0.03
    misfit: float = 0.02


@dataclass(frozen=True)
class Refinement:
    """Corrections to the log background.

    Attributes
    ----------
    log_gain : `(n,)`, their mean is zero. shared : `(gy, gx)` nodes. own : `(n, hy, hx)` nodes.
    shape : frame (h, w).
    """

    log_gain: Array
    shared: Array
    own: Array
    shape: tuple[int, int]

    def log_background(self, tile: int) -> Array:
        """What to subtract from the logarithm of a tile, `(h, w)`."""
        field = _spread(self.shared, self.shape) + _spread(self.own[tile], self.shape)
        return np.asarray(field + self.log_gain[tile], np.float32)


def measure_seam(
    pair: tuple[int, int],
    tiles: tuple[Array, Array],
    shift: tuple[int, int],
    lit: Mask,
    block_px: int = 16,
) -> Seam | None:
    """Compare two tiles block by block where they overlap; None where they do not.

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


def refine(
    seams: Sequence[Seam], n: int, shape: tuple[int, int], smoothness: Smoothness | None = None
) -> Refinement:
    """Find gains and fields that make overlapping tiles agree, as smooth as they can be.

    Robust (Huber) linear least squares in the log domain.

    Parameters
    ----------
    seams : of all overlapping pairs. n : tiles. shape : frame (h, w).
    """
    prior = smoothness or Smoothness()
    grids = [_nodes(shape, prior.shared_step), _nodes(shape, prior.own_step)]
    sizes = [n, int(np.prod(grids[0])), n * int(np.prod(grids[1]))]
    design, ratio, weight = _equations(seams, n, shape, grids)
    penalty = sparse.block_diag(
        [
            sparse.eye_array(n) / prior.gain**2,
            _penalty(grids[0], prior.shared, prior.shared_size),
            sparse.kron(_in_time(n, prior.kept), _penalty(grids[1], prior.own, prior.own_size)),
        ],
        format="csc",
    )
    precision = 1 / (prior.noise**2 / np.maximum(weight, 1e-6) + prior.misfit**2)
    robust = np.ones(len(ratio))
    solution = np.zeros(sum(sizes))
    for _ in range(ROUNDS):
        scaled = design.multiply((precision * robust)[:, None]).tocsr()
        normal = (design.T @ scaled + penalty).tocsr()
        # Fields of all tiles meet in the shared one: direct solvers fill up, gradients do not.
        solution, _ = scipy.sparse.linalg.cg(
            normal,
            scaled.T @ ratio,
            x0=solution,
            rtol=1e-4,
            maxiter=2000,
            M=sparse.diags_array(1 / normal.diagonal()),
        )
        residual = np.abs(ratio - design @ solution)
        usual = max(1.4826 * float(np.median(residual)) if len(residual) else 0.0, 1e-4)
        robust = np.minimum(1.0, HUBER * usual / np.maximum(residual, 1e-12))
    gain, shared, own = np.split(solution, np.cumsum(sizes)[:-1])
    return Refinement(
        gain - gain.mean(), shared.reshape(grids[0]), own.reshape(n, *grids[1]), shape
    )


def _nodes(shape: tuple[int, int], step: float) -> tuple[int, int]:
    """Nodes of a field along y and x, the frame's edges included, no closer than 4 px."""
    rows, columns = (max(min(round(1 / step), side // 4), 1) + 1 for side in shape)
    return rows, columns


def _equations(
    seams: Sequence[Seam], n: int, shape: tuple[int, int], grids: Sequence[tuple[int, int]]
) -> tuple[Any, Array, Array]:
    """Log ratio = unknowns of the first tile - unknowns of the second, a row per block."""
    if not seams:
        width = n + int(np.prod(grids[0])) + n * int(np.prod(grids[1]))
        return sparse.csr_array((0, width)), np.zeros(0), np.zeros(0)
    first = np.concatenate([np.full(len(s.weight), s.first) for s in seams])
    second = np.concatenate([np.full(len(s.weight), s.second) for s in seams])
    sides = [
        _tile_rows(first, np.concatenate([s.place_first for s in seams]), n, shape, grids),
        _tile_rows(second, np.concatenate([s.place_second for s in seams]), n, shape, grids),
    ]
    ratio = np.concatenate([s.log_ratio for s in seams])
    weight = np.concatenate([s.weight for s in seams])
    return (sides[0] - sides[1]).tocsr(), ratio, weight


def _tile_rows(
    tile: Array, place: Array, n: int, shape: tuple[int, int], grids: Sequence[tuple[int, int]]
) -> Any:
    """What each unknown adds to the log of a tile at a place, a row per block."""
    k = len(tile)
    gain = sparse.csr_array((np.ones(k), (np.arange(k), tile)), shape=(k, n))
    shared = _bilinear(place, shape, grids[0])
    own = _bilinear(place, shape, grids[1]).tocoo()
    size = int(np.prod(grids[1]))
    column = tile[own.row] * size + own.col
    spread = sparse.csr_array((own.data, (own.row, column)), shape=(k, n * size))
    return sparse.hstack([gain, shared, spread], format="csr")


def _bilinear(place: Array, shape: tuple[int, int], grid: tuple[int, int]) -> Any:
    """Weights of the four nodes around each place, `(k, nodes)`."""
    at = [
        np.clip(place[:, axis] / max(shape[axis] - 1, 1), 0, 1) * (grid[axis] - 1)
        for axis in (0, 1)
    ]
    low = [np.minimum(a.astype(int), g - 2) for a, g in zip(at, grid, strict=True)]
    part = [a - i for a, i in zip(at, low, strict=True)]
    rows, columns, values = [], [], []
    for dy in (0, 1):
        for dx in (0, 1):
            rows.append(np.arange(len(place)))
            columns.append((low[0] + dy) * grid[1] + low[1] + dx)
            values.append(np.abs(1 - dy - part[0]) * np.abs(1 - dx - part[1]))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array(entries, shape=(len(place), grid[0] * grid[1]))


def _penalty(grid: tuple[int, int], step: float, size: float) -> Any:
    """Squared differences of neighbouring nodes over `step`, and squared nodes over `size`."""
    steps = [sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(g - 1, g)) for g in grid]
    along = sparse.kron(steps[0], sparse.eye_array(grid[1]))
    across = sparse.kron(sparse.eye_array(grid[0]), steps[1])
    rough = along.T @ along + across.T @ across
    nodes = grid[0] * grid[1]
    # All nodes of a field together are one guess at its size, not as many as there are nodes.
    return rough / step**2 + sparse.eye_array(nodes) / (size**2 * WHOLE * nodes)


def _in_time(n: int, kept: float) -> Any:
    """Precision `(n, n)` of a first-order autoregression of unit variance over tiles as taken."""
    inner = np.full(n, 1 + kept**2)
    inner[[0, -1]] = 1.0
    beside = sparse.eye_array(n, k=1) + sparse.eye_array(n, k=-1)
    own = sparse.diags_array(inner, shape=(n, n))
    return (own - kept * beside) / (1 - kept**2)


def _spread(nodes: Array, shape: tuple[int, int]) -> Array:
    """Bilinear interpolation of nodes over a frame."""
    rows, columns = (
        _bilinear_1d(side, count) for side, count in zip(shape, nodes.shape, strict=True)
    )
    return np.asarray(rows @ nodes @ columns.T)


def _bilinear_1d(side: int, count: int) -> Array:
    """`(side, count)` weights."""
    at = np.linspace(0, count - 1, side)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(count)[None]))


def seam_figure(seams: Sequence[Seam]) -> float:
    """Mean |log ratio| over blocks of all seams after each pair's own gain; NaN without overlap."""
    if not seams:
        return float("nan")
    off = [np.abs(s.log_ratio - np.average(s.log_ratio, weights=s.weight)) for s in seams]
    weight = np.concatenate([s.weight for s in seams])
    return float(np.average(np.concatenate(off), weights=weight))
