"""Tiles that already hold together move as one: the pairs between two groups vote on one offset.

A single pair of a narrow overlap may fit in several places; a whole row of them agrees in one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from txmcorrect.stitch.place import Placement
from txmcorrect.stitch.register import Evidence, dilate

Array = NDArray[Any]
Pair = tuple[int, int]

TOLERANCE_PX = 2.0  # tiles of a group are not quite where they are thought to be
CAP = 8.0  # evidence of one pair: no single one decides
LEAST_LEAD = 5.0  # of the best offset over the next best and over none
NEAR_PX = 8  # offsets this close are one and the same: along fibres votes fall off slowly


def group_votes(
    evidence: Mapping[Pair, Evidence], placement: Placement, held: Sequence[Pair]
) -> dict[Pair, Array]:
    """Shifts `(2,)` px that pairs between groups agree on, where at least two of them do.

    Parameters
    ----------
    evidence : of all pairs. placement : where tiles are thought to be. held : pairs that hold.
    """
    group = groups_of(len(placement.positions), held)
    between: dict[Pair, list[Pair]] = defaultdict(list)
    for i, j in evidence:
        if group[i] != group[j]:
            between[min(group[i], group[j]), max(group[i], group[j])].append((i, j))
    agreed: dict[Pair, Array] = {}
    for (low, _), pairs in between.items():
        if len(pairs) < 2:
            continue
        # The offset of the second group; a pair may run either way.
        signs = [1 if group[i] == low else -1 for i, _ in pairs]
        offset = _vote([evidence[p] for p in pairs], pairs, signs, placement)
        if offset is not None:
            for (i, j), sign in zip(pairs, signs, strict=True):
                agreed[i, j] = placement.positions[j] - placement.positions[i] + sign * offset
    return agreed


def groups_of(n: int, held: Sequence[Pair]) -> list[int]:
    """Number of the group of each of `n` tiles; the pairs `held` link them."""
    ends = np.array(held, np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    return [int(g) for g in connected_components(graph, directed=False)[1]]


def _vote(
    evidence: Sequence[Evidence],
    pairs: Sequence[Pair],
    signs: Sequence[int],
    placement: Placement,
) -> Array | None:
    """The offset `(2,)` px that stands out, or None."""
    spread = placement.spread(*pairs[0]) + np.eye(2)
    reach = int(np.ceil(3 * np.sqrt(np.linalg.eigvalsh(spread)[-1])))
    y, x = np.arange(-reach, reach + 1)[:, None], np.arange(-reach, reach + 1)[None]
    (yy, yx), (_, xx) = np.linalg.inv(spread)
    prior = (yy * y * y + 2 * yx * y * x + xx * x * x) / 2
    total = np.zeros(prior.shape)
    for one, (i, j), sign in zip(evidence, pairs, signs, strict=True):
        expected = np.rint(placement.positions[j] - placement.positions[i]).astype(int)
        seen = np.minimum(_around(one, expected, reach), CAP)[::sign, ::sign]
        total += dilate(dilate(seen, TOLERANCE_PX).T, TOLERANCE_PX).T
    posterior = total - prior
    row, column = np.unravel_index(int(posterior.argmax()), posterior.shape)
    rivals = posterior.copy()
    around = [slice(max(k - NEAR_PX, 0), k + NEAR_PX + 1) for k in (int(row), int(column))]
    rivals[tuple(around)] = -np.inf
    lead = posterior[row, column] - max(float(rivals.max()), 0.0)
    return np.array([row - reach, column - reach], float) if lead >= LEAST_LEAD else None


def _around(one: Evidence, middle: Array, reach: int) -> Array:
    """Evidence of the shifts within `reach` of a middle; 0 where none was looked at."""
    out = np.zeros((2 * reach + 1, 2 * reach + 1))
    corner = np.array([one.window.y0, one.window.x0]) - (middle - reach)
    here, there = [], []
    for start, side, limit in zip(corner, one.score.shape, out.shape, strict=True):
        low, high = max(int(start), 0), min(int(start) + side, limit)
        if high <= low:
            return out
        here.append(slice(low, high))
        there.append(slice(low - int(start), high - int(start)))
    out[tuple(here)] = one.score[tuple(there)]
    return out
