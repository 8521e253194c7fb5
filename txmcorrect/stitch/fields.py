"""Gains and smooth fields of tiles as a linear model of what overlapping tiles differ by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from txmcorrect.stitch.seam import Seam

Array = NDArray[Any]

HUBER = 1.5  # robust standard deviations: the edge of a misplaced particle is no background
ROUNDS = 4
WHOLE = 1 / 4  # of a field's nodes that move as one


@dataclass(frozen=True)
class Smoothness:
    """How rough the fields may be: the prior of the refinement.

    Attributes
    ----------
    shared_step, own_step, near_step : distance of the nodes of the shared field, of each tile's, and
    of what a tile has near its overlaps alone, as parts of the frame. shared, own, near : log change
    from node to node, one standard deviation; shared_size, own_size : log value of a field, near_size
    of a single node, the same: `near` ends a node or two away from where overlaps ask for it.
    gain : log gain of a tile, one standard deviation. A shared slope and gains that rise from tile to
    tile look alike in overlaps: what is known of the gains has to part them.
    kept : correlation of the fields of two tiles taken one after the other, where beams drift slowly.
    noise : of a pixel's log ratio. misfit : of a block's beyond noise (tiles a little out of place).
    """

    shared_step: float = 1 / 32
    own_step: float = 1 / 8
    near_step: float = 1 / 32
    shared: float = 0.02
    own: float = 0.03
    near: float = 0.1
    shared_size: float = 0.02
    own_size: float = 0.03
    near_size: float = 0.1
    gain: float = 0.005
    kept: float = 0.9
    noise: float = 0.03
    misfit: float = 0.02


@dataclass(frozen=True)
class Broad:
    """Gains, the shared field and the fields of all tiles, in this order, as a linear model.

    Attributes
    ----------
    shared, own : nodes of fields. design : `(k, n + shared + n own)`. ratio, precision : `(k,)`.
    """

    n: int
    shared: tuple[int, int]
    own: tuple[int, int]
    design: Any
    ratio: Array
    precision: Array

    def penalty(self, prior: Smoothness, tiles: Any) -> Any:
        """Prior precision of all unknowns; `tiles` `(n, n)`: that of one node's value in all tiles."""
        return sparse.block_diag(
            [
                sparse.eye_array(self.n) / prior.gain**2,
                rough(self.shared, prior.shared) + large(self.shared, prior.shared_size),
                sparse.kron(tiles, rough(self.own, prior.own) + large(self.own, prior.own_size)),
            ],
            format="csc",
        )


def broad_model(seams: Sequence[Seam], n: int, shape: tuple[int, int], prior: Smoothness) -> Broad:
    """What `seams` between `n` tiles of `shape` say of what is broad."""
    shared, own = (nodes_of(shape, step) for step in (prior.shared_step, prior.own_step))
    none = np.zeros(0)
    ratio = np.concatenate([none, *(s.log_ratio for s in seams)])
    weight = np.concatenate([none, *(s.weight for s in seams)])
    precision = 1 / (prior.noise**2 / np.maximum(weight, 1e-6) + prior.misfit**2)

    def one(place: Array, tile: Array) -> Any:
        every = of_tile(sparse.csr_array(np.ones((len(tile), 1))), tile, n)
        everywhere = bilinear(place, shape, shared)
        alone = of_tile(bilinear(place, shape, own), tile, n)
        return sparse.hstack([every, everywhere, alone], format="csr")

    return Broad(n, shared, own, between(seams, one), ratio, precision)


def solve(design: Any, ratio: Array, precision: Array, penalty: Any) -> Array:
    """Solution `(k,)` of the normal equations under Huber's loss."""
    robust = np.ones(len(ratio))
    solution = np.zeros(penalty.shape[0])
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
        robust = huber(ratio - design @ solution)
    return np.asarray(solution)


def huber(residual: Array) -> Array:
    """Weights of residuals `(k,)` by Huber's loss."""
    size = np.abs(residual)
    usual = max(1.4826 * float(np.median(size)) if len(size) else 0.0, 1e-4)
    return np.minimum(1.0, HUBER * usual / np.maximum(size, 1e-12))


def nodes_of(shape: tuple[int, int], step: float) -> tuple[int, int]:
    """Nodes of a field along y and x, the frame's edges included, no closer than 4 px."""
    rows, columns = (max(min(round(1 / step), side // 4), 1) + 1 for side in shape)
    return rows, columns


def between(seams: Sequence[Seam], one: Callable[[Array, Array], Any]) -> Any:
    """Log ratio = unknowns of the first tile - unknowns of the second, a row per block.

    `one` : what each unknown adds to the log of tiles `(k,)` at places `(k, 2)`.
    """
    none, blocks = np.zeros((0, 2)), [len(s.weight) for s in seams]
    first = np.concatenate([none, *(s.place_first for s in seams)])
    second = np.concatenate([none, *(s.place_second for s in seams)])
    tiles = np.array([(s.first, s.second) for s in seams], np.intp).reshape(-1, 2)
    ones, others = np.repeat(tiles, blocks, 0).T
    return (one(first, ones) - one(second, others)).tocsr()


def of_tile(weights: Any, tile: Array, n: int) -> Any:
    """Weights `(k, m)` of the unknowns of a tile among those of all tiles, `(k, n m)`."""
    entries, size = weights.tocoo(), weights.shape[1]
    column = tile[entries.row] * size + entries.col
    shape = (weights.shape[0], n * size)
    return sparse.csr_array((entries.data, (entries.row, column)), shape=shape)


def bilinear(place: Array, shape: tuple[int, int], grid: tuple[int, int]) -> Any:
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


def rough(grid: tuple[int, int], step: float) -> Any:
    """Squared differences of neighbouring nodes over `step`."""
    steps = [sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(g - 1, g)) for g in grid]
    along = sparse.kron(steps[0], sparse.eye_array(grid[1]))
    across = sparse.kron(sparse.eye_array(grid[0]), steps[1])
    return (along.T @ along + across.T @ across) / step**2


def large(grid: tuple[int, int], size: float) -> Any:
    """Squared nodes over `size`: all together are one guess at it, not as many as there are nodes."""
    nodes = math.prod(grid)
    return sparse.eye_array(nodes) / (size**2 * WHOLE * nodes)


def in_time(places: Array, kept: float) -> Any:
    """Precision `(n, n)` of a first-order autoregression of unit variance at `places` `(n,)`, in order."""
    alike = kept ** np.diff(places).astype(float)  # from each place to the next
    lost = 1 - alike**2
    told = alike**2 / lost  # what each of two neighbours adds to the other's precision
    own = 1 + np.append(told, 0) + np.append(0, told)
    beside = -alike / lost
    return sparse.diags_array([beside, own, beside], offsets=[-1, 0, 1], format="csr")


def spread(nodes: Array, shape: tuple[int, int]) -> Array:
    """Bilinear interpolation of nodes over a frame."""
    rows, columns = (
        _bilinear_1d(side, count) for side, count in zip(shape, nodes.shape, strict=True)
    )
    return np.asarray(rows @ nodes @ columns.T)


def _bilinear_1d(side: int, count: int) -> Array:
    """`(side, count)` weights."""
    at = np.linspace(0, count - 1, side)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(count)[None]))
