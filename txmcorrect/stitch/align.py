"""From tiles to positions: search every pair, place, look again near what was found.

Steps as in ASHLAR: overlap, pairs, rejection by error, span, place; the stage has a say throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.stitch.groups import group_votes
from txmcorrect.stitch.layout import Cells, Points, cells_of, grid_neighbours, near_neighbours
from txmcorrect.stitch.measure import Measured, measure
from txmcorrect.stitch.place import Placement, Stage, grid_stage, listed_stage, place
from txmcorrect.stitch.recent import Recent
from txmcorrect.stitch.register import (
    NARROWEST_PX,
    Evidence,
    Feature,
    Match,
    Vote,
    Window,
    linked_shifts,
    peaks,
    search,
    surprise,
    vote,
)
from txmcorrect.stitch.ridge import ridge

Array = NDArray[Any]
Progress = Callable[[int, int], None]
Known = dict[tuple[int, int, int, int], Measured | None]

JITTER = 0.03  # of a frame's side: the stage error that is expected, one standard deviation
SKEW = 0.1  # of a frame's side: how far a step across may go down as well (camera against stage)
STRAIGHT = 0.01  # of a frame's side: how far a step across is expected to go down as well
ALIKE = 0.02  # of a frame's side: by how much steps across and down may differ
WIDEST = 0.3  # overlap that is looked for, of a frame's side
SAMPLE = 40  # pairs of a direction that vote for the overlap
SURE = 6.0  # beyond chance: such a pair has surely found its place
MARGINS = (
    12.0,
    8.0,
    5.0,
    4.0,
    4.0,
)  # look by look, over the next best shift: the surest come first
BELIEVED = 0.25  # weight below which a match was given up
REACH = 3.5  # standard deviations of the stage that are searched, in each direction
LEAST_SPREAD_PX = 3.0
RIVAL = 9.0  # squared distance, in standard deviations, from which measurements contradict
RIDGES = 5.0  # least margin from which pairs that fit in several places may say where they do not
LEAST_SCORE = 2.0  # evidence beyond what chance gives among the shifts that come into question


@dataclass(frozen=True)
class Alignment:
    """Solved positions and how they came about.

    Attributes
    ----------
    placement : positions, their uncertainty, the stage's errors; residuals and weights of `used`.
    pairs : all pairs looked at. used : matches that went into the solution. weak : pairs that did
    not, because nothing in their overlap stands out; their tiles hang on the stage and on others.
    steps : the nominal step to the next column and to the next row, `(2,)` px each; None for a layout.
    """

    placement: Placement
    pairs: tuple[tuple[int, int], ...]
    used: tuple[Match, ...]
    weak: tuple[tuple[int, int], ...]
    steps: tuple[Array, Array] | None = None

    @property
    def positions(self) -> Points:
        """Tile corners, `(n, 2)` px (y, x)."""
        return self.placement.positions


def believed_pairs(used: Sequence[Match], placement: Placement) -> list[tuple[int, int]]:
    """Pairs of the matches `used` that a solution did not give up."""
    pairs = zip(used, placement.weights, strict=True)
    return [(match.first, match.second) for match, weight in pairs if weight > BELIEVED]


@dataclass(frozen=True)
class Tiles:
    """Features of all tiles, and the shape (h, w) of a frame."""

    features: Recent[Feature]
    shape: tuple[int, int]

    def __getitem__(self, index: int) -> Feature:
        return self.features[index]


def align_grid(
    tiles: Tiles,
    cells: Cells,
    overlap: float | None = None,
    skip: frozenset[int] = frozenset(),
    progress: Progress = lambda done, total: None,
) -> Alignment:
    """Place tiles of a grid of which only the order is known.

    Parameters
    ----------
    cells : `(n, 2)` (row, column). overlap : fraction of the frame, or None to find it.
    skip : tiles that show nothing; they stay where the stage put them.
    """
    pairs = [p for p in grid_neighbours(cells) if not skip & set(p)]
    steps = []
    for axis in (1, 0):
        own = [p for p in pairs if cells[p[0]][axis] != cells[p[1]][axis]]
        steps.append(_vote(tiles, own, axis, overlap))
    across, down = _steps(steps[0], steps[1], tiles.shape, overlap)
    stage = grid_stage(cells, across, down, JITTER * max(tiles.shape))
    return replace(_align(tiles, pairs, stage, progress), steps=(across, down))


def align_listed(
    tiles: Tiles,
    positions: Points,
    skip: frozenset[int] = frozenset(),
    progress: Progress = lambda done, total: None,
) -> Alignment:
    """Place tiles whose stage positions or rough layout `(n, 2)` px are known.

    Where the layout is a grid, the grid is tried as well: hand-made layouts are off by more than
    stages are.
    """
    jitter = JITTER * max(tiles.shape)
    near = near_neighbours(positions, tiles.shape, jitter)
    pairs = [p for p in near if not skip & set(p)]
    listed = _align(tiles, pairs, listed_stage(positions, jitter), progress)
    cells = cells_of(positions, tiles.shape)
    if cells is None:
        return listed
    gridded = align_grid(tiles, cells, None, skip, progress)
    # Of a list and a regular grid, the better stage is the one whose own errors are smaller.
    return min((listed, gridded), key=lambda a: a.placement.jitter_px)


def _vote(
    tiles: Tiles, pairs: Sequence[tuple[int, int]], axis: int, overlap: float | None
) -> Vote | None:
    """What pairs along an axis say of their common step, or None without pairs."""
    if not pairs:
        return None
    window = _step_window(tiles.shape, axis, overlap)
    chosen = np.unique(np.linspace(0, len(pairs) - 1, SAMPLE).round().astype(int))
    evidence = [search(tiles[pairs[k][0]], tiles[pairs[k][1]], window) for k in chosen]
    said = vote(evidence, JITTER * tiles.shape[axis])
    # Cameras stand nearly straight: where little is said, they do.
    y, x = window.axes
    aside = (y if axis == 1 else x) / (STRAIGHT * max(tiles.shape))
    return replace(said, total=said.total - surprise(aside**2))


def _step_window(shape: tuple[int, int], axis: int, overlap: float | None) -> Window:
    """Shifts that a step along an axis may have."""
    side, slack = shape[axis], int(SKEW * max(shape))
    low, high = int(side * (1 - WIDEST)), side - NARROWEST_PX
    if overlap is not None:
        middle, spread = side * (1 - overlap), 2 * JITTER * side
        low, high = int(middle - spread), min(int(middle + spread), high)
    if axis == 0:
        return Window(low, high, -slack, slack)
    return Window(-slack, slack, low, high)


def _steps(
    across: Vote | None, down: Vote | None, shape: tuple[int, int], overlap: float | None
) -> tuple[Array, Array]:
    """Steps of a grid; of a single row or column the one that is never taken is the other turned."""
    if across is None and down is None:
        keep = 1 - (overlap or 0.0)
        return np.array([0.0, shape[1] * keep]), np.array([shape[0] * keep, 0.0])
    if across is None:
        assert down is not None
        step = down.best()
        return np.array([-step[1], step[0]]), step
    if down is None:
        step = across.best()
        return step, np.array([step[1], -step[0]])
    return linked_shifts(across, down, shape, ALIKE * max(shape))


def convincing(tiles: Tiles, cells: Cells, most: int = 12) -> int:
    """Pairs, of at most `most` a direction, that stand out from chance in this order of tiles."""
    found = 0
    for axis in (1, 0):
        own = [p for p in grid_neighbours(cells) if cells[p[0]][axis] != cells[p[1]][axis]]
        if not own:
            continue
        window = _step_window(tiles.shape, axis, None)
        for k in np.unique(np.linspace(0, len(own) - 1, most).round().astype(int)):
            one = search(tiles[own[k][0]], tiles[own[k][1]], window)
            found += float(one.score.max()) > np.log(one.cells) + SURE
    return found


def _align(
    tiles: Tiles, pairs: Sequence[tuple[int, int]], stage: Stage, progress: Progress
) -> Alignment:
    evidence = _search_all(tiles, pairs, stage, progress)
    used: list[Match] = []
    placement = place(stage, used)
    known: Known = {}
    for least_margin in MARGINS:
        agreed = group_votes(evidence, placement, believed_pairs(used, placement))
        used = _pick_all(tiles, evidence, placement, agreed, least_margin, known)
        placement = place(stage, used)
    taken = {(m.first, m.second) for m in used}
    weak = tuple(p for p in pairs if p not in taken)
    return Alignment(placement, tuple(pairs), tuple(used), weak)


def _search_all(
    tiles: Tiles, pairs: Sequence[tuple[int, int]], stage: Stage, progress: Progress
) -> dict[tuple[int, int], Evidence]:
    reach = int(REACH * stage.jitter_px)
    evidence = {}
    for done, (i, j) in enumerate(pairs, 1):
        middle = np.rint(stage.nominal[j] - stage.nominal[i]).astype(int)
        window = _reachable(middle, reach, tiles.shape)
        evidence[i, j] = search(tiles[i], tiles[j], window)
        progress(done, len(pairs))
    return evidence


def _reachable(middle: Array, reach: int, shape: tuple[int, int]) -> Window:
    """Shifts around the middle that leave at least a thin overlap."""

    def span(middle: int, side: int) -> tuple[int, int]:
        last = side - NARROWEST_PX
        low, high = np.clip([middle - reach, middle + reach], -last, last)
        return int(low), int(high)

    return Window(*span(int(middle[0]), shape[0]), *span(int(middle[1]), shape[1]))


def _pick_all(
    tiles: Tiles,
    evidence: dict[tuple[int, int], Evidence],
    placement: Placement,
    agreed: dict[tuple[int, int], Array],
    least_margin: float,
    known: Known,
) -> list[Match]:
    """Measure all pairs that say something, near where they are expected; `known` remembers.

    `agreed` : shifts that groups of pairs voted for.
    """
    matches = []
    for (i, j), one in evidence.items():
        expected = placement.positions[j] - placement.positions[i]
        # Three pixels at least: with a narrower prior the solution would only confirm itself.
        spread = np.eye(2) * LEAST_SPREAD_PX**2
        if (i, j) in agreed:
            expected = agreed[i, j]
        else:
            spread = spread + placement.spread(i, j)
        starts = peaks(one, expected, spread)
        if len(starts) > 1:  # none stands out: perhaps it is where nothing was seen to peak
            starts.append((round(float(expected[0])), round(float(expected[1]))))
        for start in starts:
            if (i, j, *start) not in known:
                known[i, j, *start] = measure(tiles[i], tiles[j], start)
        found = [known[i, j, *start] for start in starts]
        best, margin = _best([f for f in found if f is not None], expected, spread)
        # Among many independent shifts the best of them scores by chance.
        cells = 2 * np.pi * np.linalg.det(spread) ** 0.5 * one.cells / one.score.size
        if best is None or best.score < LEAST_SCORE + np.log1p(2 * cells):
            continue
        if margin >= least_margin + np.log1p(cells):
            matches.append(Match(i, j, *best, margin))
        elif least_margin <= RIDGES:
            known_part = ridge([f for f in found if f is not None], expected, spread)
            if known_part is not None:
                matches.append(Match(i, j, *known_part, margin))
    return matches


def _best(
    found: Sequence[Measured], expected: Array, spread: Array
) -> tuple[Measured | None, float]:
    """The measurement that evidence and prior together favour, and its lead over the next one.

    Measurements that agree within their uncertainty (along a fibre) are no rivals.
    """

    def posterior(one: Measured) -> float:
        off = one.shift - expected
        return float(one.score - surprise(off @ np.linalg.solve(spread + one.covariance, off)))

    if not found:
        return None, 0.0
    best = max(found, key=posterior)

    def rival(one: Measured) -> bool:
        off = one.shift - best.shift
        same = best.covariance + one.covariance + np.eye(2)
        return float(off @ np.linalg.solve(same, off)) > RIVAL

    rivals = [posterior(one) for one in found if rival(one)]
    return best, posterior(best) - max(rivals, default=0.0)
