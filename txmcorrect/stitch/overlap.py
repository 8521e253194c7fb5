"""What overlaps tell about the background: the same sample, seen at two places of the detector.

In the logarithm a tile is sample + background error, and the sample drops out of the difference of two
tiles where they overlap. What is left is linear in the error: a gain per tile, a field that all tiles
share (a poor flat), a smoother field of each tile alone (drift), and near the overlaps themselves what
these leave (a detector whose edge sees otherwise than its middle). Only differences between tiles
enter, so nothing of the sample can be taken for background or be flattened, whatever the weights are.
"""

from __future__ import annotations

import math
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
    shared_step, own_step, near_step : distance of the nodes of the shared field, of each tile's, and
    of what a tile has near its overlaps alone, as parts of the frame. shared, own, near : log change
    from node to node, one standard deviation; shared_size, own_size : log value of a field, near_size
    of a single node, the same: `near` ends a node or two away from where overlaps ask for it.
    gain : log gain of a tile, one standard deviation. A shared slope and gains that rise from tile to
    tile look alike in overlaps: what is known of the gains has to part them.
    kept : correlation of the fields of two tiles taken one after the other: beams drift slowly.
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
class Refinement:
    """Corrections to the log background.

    Attributes
    ----------
    log_gain : `(n,)`, their mean is zero. shared : `(gy, gx)` nodes. own : `(n, hy, hx)` nodes.
    near : `(n, iy, ix)` nodes. shape : frame (h, w).
    """

    log_gain: Array
    shared: Array
    own: Array
    near: Array
    shape: tuple[int, int]

    @property
    def most_near(self) -> tuple[int, float] | None:
        """Tile and size of the largest change that only its overlaps asked for; None without any."""
        each = np.abs(self.near).max((1, 2))
        tile = int(each.argmax())
        return (tile, float(each[tile])) if each[tile] > 0 else None

    def log_background(self, tile: int) -> Array:
        """What to subtract from the logarithm of a tile, `(h, w)`."""
        fields = (self.shared, self.own[tile], self.near[tile])
        field = sum(_spread(nodes, self.shape) for nodes in fields)
        return np.asarray(field + self.log_gain[tile], np.float32)


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


def refine(
    seams: Sequence[Seam], n: int, shape: tuple[int, int], smoothness: Smoothness | None = None
) -> Refinement:
    """Find gains and fields that make overlapping tiles agree, as smooth as they can be.

    Robust (Huber) linear least squares in the log domain, twice: gains and fields that reach across the
    frame first; what these leave is undone where it is seen, near the overlaps. All at once, what is
    near would take from what is broad, which alone puts the inside of a tile right.

    Parameters
    ----------
    seams : of all overlapping pairs. n : tiles. shape : frame (h, w).
    """
    prior = smoothness or Smoothness()
    steps = (prior.shared_step, prior.own_step, prior.near_step)
    shared, own, near = (_nodes(shape, step) for step in steps)
    ratio = np.concatenate([np.zeros(0), *(s.log_ratio for s in seams)])
    weight = np.concatenate([np.zeros(0), *(s.weight for s in seams)])
    precision = 1 / (prior.noise**2 / np.maximum(weight, 1e-6) + prior.misfit**2)

    def one(place: Array, tile: Array) -> Any:
        every = _of_tile(sparse.csr_array(np.ones((len(tile), 1))), tile, n)
        everywhere = _bilinear(place, shape, shared)
        alone = _of_tile(_bilinear(place, shape, own), tile, n)
        return sparse.hstack([every, everywhere, alone], format="csr")

    expected = sparse.block_diag(
        [
            sparse.eye_array(n) / prior.gain**2,
            _rough(shared, prior.shared) + _large(shared, prior.shared_size),
            sparse.kron(
                _in_time(n, prior.kept), _rough(own, prior.own) + _large(own, prior.own_size)
            ),
        ],
        format="csc",
    )
    design = _between(seams, one)
    broad = _robust(design, ratio, precision, expected)
    gain, everywhere, alone = np.split(broad, np.cumsum([n, math.prod(shared)]))

    single = _rough(near, prior.near) + sparse.eye_array(math.prod(near)) / prior.near_size**2
    left = _robust(
        _between(seams, lambda place, tile: _of_tile(_bilinear(place, shape, near), tile, n)),
        ratio - design @ broad,
        precision,
        sparse.kron(sparse.eye_array(n), single, format="csc"),
    )
    return Refinement(
        gain - gain.mean(),
        everywhere.reshape(shared),
        alone.reshape(n, *own),
        left.reshape(n, *near),
        shape,
    )


def _robust(design: Any, ratio: Array, precision: Array, penalty: Any) -> Array:
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
        residual = np.abs(ratio - design @ solution)
        usual = max(1.4826 * float(np.median(residual)) if len(residual) else 0.0, 1e-4)
        robust = np.minimum(1.0, HUBER * usual / np.maximum(residual, 1e-12))
    return np.asarray(solution)


def _nodes(shape: tuple[int, int], step: float) -> tuple[int, int]:
    """Nodes of a field along y and x, the frame's edges included, no closer than 4 px."""
    rows, columns = (max(min(round(1 / step), side // 4), 1) + 1 for side in shape)
    return rows, columns


def _between(seams: Sequence[Seam], one: Callable[[Array, Array], Any]) -> Any:
    """Log ratio = unknowns of the first tile - unknowns of the second, a row per block.

    `one` : what each unknown adds to the log of tiles `(k,)` at places `(k, 2)`.
    """
    none, blocks = np.zeros((0, 2)), [len(s.weight) for s in seams]
    first = np.concatenate([none, *(s.place_first for s in seams)])
    second = np.concatenate([none, *(s.place_second for s in seams)])
    tiles = np.array([(s.first, s.second) for s in seams], np.intp).reshape(-1, 2)
    ones, others = np.repeat(tiles, blocks, 0).T
    return (one(first, ones) - one(second, others)).tocsr()


def _of_tile(weights: Any, tile: Array, n: int) -> Any:
    """Weights `(k, m)` of the unknowns of a tile among those of all tiles, `(k, n m)`."""
    entries, size = weights.tocoo(), weights.shape[1]
    column = tile[entries.row] * size + entries.col
    shape = (weights.shape[0], n * size)
    return sparse.csr_array((entries.data, (entries.row, column)), shape=shape)


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


def _rough(grid: tuple[int, int], step: float) -> Any:
    """Squared differences of neighbouring nodes over `step`."""
    steps = [sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(g - 1, g)) for g in grid]
    along = sparse.kron(steps[0], sparse.eye_array(grid[1]))
    across = sparse.kron(sparse.eye_array(grid[0]), steps[1])
    return (along.T @ along + across.T @ across) / step**2


def _large(grid: tuple[int, int], size: float) -> Any:
    """Squared nodes over `size`: all together are one guess at it, not as many as there are nodes."""
    nodes = math.prod(grid)
    return sparse.eye_array(nodes) / (size**2 * WHOLE * nodes)


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
