"""Positions of the tiles; an order that the tiles contradict is refused."""

from __future__ import annotations

import logging

import numpy as np

from txmcorrect.config import MosaicSettings
from txmcorrect.errors import GeometryError
from txmcorrect.mosaicking.plan import Plan
from txmcorrect.mosaicking.source import Source
from txmcorrect.progress import Stages
from txmcorrect.stitch import layout as layouts
from txmcorrect.stitch.align import (
    Alignment,
    Tiles,
    align_grid,
    align_listed,
    believed_pairs,
    convincing,
)
from txmcorrect.stitch.recent import Recent
from txmcorrect.stitch.register import feature

log = logging.getLogger(__name__)

FEWEST = 0.5  # of the pairs of a direction: with fewer that agree, the order is doubted
LIKELY = 0.75  # of the pairs that convince in the best order: with fewer, an order is refused


def align(
    settings: MosaicSettings,
    source: Source,
    plan: Plan,
    skip: frozenset[int],
    keep: int,
    stages: Stages,
    rough: Alignment | None = None,
) -> Alignment:
    """Place the tiles; refuse an order that the tiles contradict.

    `rough` : where they were found to lie before they were corrected; of both, that counts by which
    the stage is off less.

    Raises
    ------
    GeometryError : another order of the grid agrees far better.
    """
    _, h, w = source.frames.shape
    features = Recent(lambda i: feature(source.frames.read(i, i + 1)[0], source.lit), keep)
    tiles = Tiles(features, (h, w))

    def progress(done: int, total: int) -> None:
        stages("registering", done, total)

    if plan.cells is None:
        assert plan.positions is not None
        places = _oriented(tiles, plan.positions) if plan.stage else plan.positions
        return _better(align_listed(tiles, places, skip, progress), rough)
    overlap = None if settings.overlap == "auto" else float(settings.overlap)
    alignment = align_grid(tiles, plan.cells, overlap, skip, progress)
    if _doubtful(alignment, plan.cells):
        _check_order(settings.order, tiles, plan.cells)
    return _better(alignment, rough)


def _better(found: Alignment, rough: Alignment | None) -> Alignment:
    """A wrong solution needs large errors of the stage to explain itself."""
    if rough is None or found.placement.jitter_px <= rough.placement.jitter_px:
        return found
    return rough


def _doubtful(alignment: Alignment, cells: layouts.Cells) -> bool:
    """Tell whether few pairs agree along rows or along columns: rows may still be right alone."""
    agree = set(believed_pairs(alignment.used, alignment.placement))
    for axis in (0, 1):
        own = [p for p in alignment.pairs if cells[p[0]][axis] != cells[p[1]][axis]]
        if sum(p in agree for p in own) < FEWEST * len(own):
            return True
    return False


def _oriented(tiles: Tiles, positions: layouts.Points) -> layouts.Points:
    """Turn a stage's axes the way the tiles agree best; unchanged where they do not say."""
    signs = [np.array([y, x], float) for y in (1, -1) for x in (1, -1)]
    places = [positions * sign for sign in signs]
    cells = [layouts.cells_of(p, tiles.shape) for p in places]
    found = [0 if c is None else convincing(tiles, c) for c in cells]
    best = int(np.argmax(found))
    if found[best] == 0:
        log.warning("the tiles do not say which way the stage's axes point: taken as they are")
    return places[best]


def _check_order(order: str, tiles: Tiles, cells: layouts.Cells) -> None:
    """Compare the order asked for with all others."""
    rows, columns = (int(c) + 1 for c in cells.max(0))
    orders = [f"{way},{corner}" for way in layouts.WAYS for corner in layouts.CORNERS]
    found = {o: convincing(tiles, layouts.grid_cells((rows, columns), o)) for o in orders}
    own = convincing(tiles, cells)
    best = max(orders, key=lambda o: found[o])
    if found[best] >= 2 + own and own < LIKELY * found[best]:
        raise GeometryError(
            f"--order {order}: neighbours agree in {own} of the pairs tried, with --order {best} "
            f"in {found[best]}; give that order, or --layout"
        )
