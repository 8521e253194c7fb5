"""Tiles compared where they overlap, before and after; what the refinement leaves of implants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.stitch.overlap import Refinement, refine
from txmcorrect.stitch.preserve import IMPLANT_PX, implants, recovered_slopes
from txmcorrect.stitch.recent import Recent
from txmcorrect.stitch.seam import Seam, measure_seam

Array = NDArray[Any]

Pairs = Sequence[tuple[int, int]]
IMPLANTED = 16  # tiles about whose corners disks are
BLOCK = 1 / 64  # of a frame: pixels over which tiles are compared


def compare_tiles(
    read: Any, pairs: Sequence[tuple[int, int]], positions: Array, lit: NDArray[np.bool_]
) -> list[Seam]:
    """Log ratios over the overlaps of all pairs."""
    block = max(4, round(max(lit.shape) * BLOCK))
    found = []
    for i, j in pairs:
        y, x = np.rint(positions[j] - positions[i]).astype(int)
        seam = measure_seam((i, j), (read[i], read[j]), (int(y), int(x)), lit, block)
        if seam is not None:
            found.append(seam)
    return found


def preservation(
    tiles: Recent[Array],
    compare: Callable[[Any, Pairs], list[Seam]],
    before: Sequence[Seam],
    refinement: Refinement,
    positions: Array,
) -> list[tuple[int, float]]:
    """What the refinement leaves of known disks, size by size: the slope of found on true.

    The disks are about the corners of the innermost tiles; only pairs of tiles that show some of them
    are compared again, so that the cost does not grow with the mosaic.
    """
    shape, n = refinement.shape, len(positions)
    centre = (positions.min(0) + positions.max(0)) / 2
    inner = np.argsort(np.abs((positions - centre) / np.array(shape)).max(1), kind="stable")
    inner = inner[:IMPLANTED]
    rows = []
    for size in (s for s in IMPLANT_PX if s <= min(shape) / 2):
        disks = implants(positions, shape, size, inner.tolist())
        reach = np.array(shape) + size
        shown = [
            i for i in range(n) if (np.abs(positions[inner] - positions[i]) < reach).all(1).any()
        ]
        changed = Recent(partial(_implanted, tiles, disks), tiles.keep)
        own = [(s.first, s.second) for s in before if {s.first, s.second} <= set(shown)]
        others = [s for s in before if not {s.first, s.second} <= set(shown)]
        again = refine([*compare(changed, own), *others], n, shape, refinement.smoothness)
        rows.append((size, recovered_slopes(disks, refinement, again, shown)))
    return rows


def _implanted(tiles: Recent[Array], disks: Callable[[int], Array], index: int) -> Array:
    return np.asarray(tiles[index] * np.exp(disks(index)), np.float32)


def feather_px(positions: Array, pairs: Sequence[tuple[int, int]], shape: tuple[int, int]) -> float:
    """Width over which tiles fade: the usual overlap."""
    if not pairs:
        return 1.0
    shifts = np.abs(np.array([positions[j] - positions[i] for i, j in pairs]))
    overlap = (np.array(shape) - shifts).min(1)
    return float(max(np.median(overlap), 2.0))
