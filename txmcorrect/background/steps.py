"""What a fit of the drift looks at: steps between neighbouring cells, and where no sample stands.

Steps are taken at several scales, between squares of 1, 2, 4 and 8 cells. Of a sample that passes, cells
that it covers in a frame are told from empty ones, which are as bright as each other: there steps count
little, and between empty squares those over some distance count, too, which show what is broad (fit error
of eight simulated mosaics with a bank 0.19 to 0.16 %, with one reference 0.46 to 0.34, with none 0.56 to
0.43; log b follows the neighbours' sample by 0.03 to 0.01, 0.10 to 0.03, 0.15 to 0.04). A sample that turns may
stand in the same cells in every frame, and what is broad in it moves as slowly as a beam drifts. Cells
that no sample ever reaches say how the background changes, by their levels, however far apart they are.
Where there are such cells steps beside a sample hardly count: else the fit took a turning sphere of a
quarter of the frame for background (7 % of its attenuation with references before and after, 0.8 % with
a bank, too, in the mean of eight simulated tomograms; so 0.4 and 0.02 %).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, median_filter, uniform_filter

from txmcorrect.background.evidence import LEAST_WIDTH

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Array = NDArray[Any]

# Steps between squares of 1, 2, 4 and 8 cells (halvings) that lie so many squares apart; the distant ones
# count between cells that are known to be empty. More of them, or fewer, did no better.
SCALES: tuple[tuple[int, int], ...] = (
    (0, 1),
    (1, 1),
    (2, 1),
    (2, 2),
    (2, 4),
    (2, 8),
    (3, 1),
    (3, 2),
    (3, 4),
)
LEVELS = len(SCALES)  # the scale of levels
SQUARES = 2  # halvings of the squares whose levels count, where no sample stands
# Of their belief is left to steps beside a sample that turns, and beside one that passes, which may be a beam
# that has moved further than the fit has followed yet.
BESIDE, COVERED = np.float32(1e-3), np.float32(0.1)
LOW = 0.1  # quantile over frames: what only passes through a cell shows there
TOP, BOTTOM = 0.97, 0.05  # quantiles over cells, between which samples darken
LEAST_SHADE = 0.3  # of that depth: a sample at first sight
LEAST_SHADE_STD = 4.0  # robust deviations of empty cells: a sample, too
# Robust deviations at which a step counts a quarter. With 2 errors are 3 % less, but one fit in forty ran away.
FAR = np.float32(2.5)
NARROW = 0.25  # of a frame's cells: the most alike of these are empty
NORMAL = 0.637  # standard deviations that the shortest quarter of normal numbers spans
DARKER, SMOOTHED = 2.5, 3  # of their deviations; cells that are looked at together
EMPTY_STD, LEAST_COVERED = (
    0.02,
    0.05,
)  # natural log; of the cells: else empty ones are not told for certain
TOUCHED = 0.1  # squares that a sample covers, of the two of a step
FEWEST = 8  # cells
WHOLE = 0.99  # of a square lies inside a mask
ENOUGH = 2000  # residuals of a frame to tell what is usual
MOST_WIDTH = 0.04  # of the depth: cells without a sample differ by no more, once the fit is good


def steps_of(images: Image) -> Image:
    """Differences of squares at all scales: `(..., h, w)` -> `(..., p)`."""
    return np.concatenate([(b - a).reshape(*a.shape[:-2], -1) for a, b in _pairs(images)], -1)


def _pairs(images: Image) -> Iterator[tuple[Image, Image]]:
    """The two squares of all steps, down and across at each scale, `(..., h', w')` both."""
    levels = _pyramid(images)
    for halvings, apart in SCALES:
        level = levels[halvings]
        yield level[..., :-apart, :], level[..., apart:, :]
        yield level[..., :-apart], level[..., apart:]


def _pyramid(images: Image) -> list[Image]:
    levels = [images]
    for _ in range(max(halvings for halvings, _ in SCALES)):
        levels.append(_halved(levels[-1]))
    return levels


def _halved(images: Image) -> Image:
    """Means over 2 x 2 cells; the last row or column stands twice where it is alone."""
    h, w = images.shape[-2:]
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(0, h % 2), (0, w % 2)], mode="edge")
    squares = padded.reshape(*images.shape[:-2], (h + 1) // 2, 2, (w + 1) // 2, 2)
    return squares.mean((-3, -1), dtype=np.float32)


def _inner_steps(mask: Mask) -> tuple[Mask, NDArray[np.intp]]:
    """Steps between two squares inside a mask `(p,)`, and the scale of each `(p,)`."""
    seen, scale = [], []
    for k, (one, two) in enumerate(_pairs(mask.astype(np.float32))):
        both = (one > WHOLE) & (two > WHOLE)
        if SCALES[k // 2] == (0, 1):  # every other one: neighbours share their cells' noise
            both &= np.indices(both.shape).sum(0) % 2 == 0
        seen.append(both.ravel())
        scale.append(np.full(both.size, k // 2))
    return np.concatenate(seen), np.concatenate(scale)


def covered_cells(left: Image, lit: Mask) -> tuple[Mask, Mask]:
    """Cells `(n, h, w)` of frames that a sample covers, and frames `(n,)` in which that is certain; else none.

    `left` `(n, h, w)`: frames over the background so far. Empty cells are those that are most alike; where
    they differ much, or nearly none is darker than they are, all may be covered.
    """
    around = np.maximum(uniform_filter(lit.astype(np.float32), SMOOTHED), 1e-3)
    smooth = uniform_filter(np.where(lit, left, np.float32(0)), (0, SMOOTHED, SMOOTHED)) / around
    ordered = np.sort(smooth[:, lit], 1)
    some = int(NARROW * ordered.shape[1])
    if some < FEWEST:
        return np.zeros(left.shape, bool), np.zeros(len(left), bool)
    spans = ordered[:, some:] - ordered[:, :-some]
    frames, first = np.arange(len(left)), spans.argmin(1)
    middle, std = ordered[frames, first + some // 2], spans[frames, first] / np.float32(NORMAL)
    covered = lit & (smooth < (middle - np.float32(DARKER) * std)[:, None, None])
    certain = (std < EMPTY_STD) & (covered[:, lit].mean(1) > LEAST_COVERED)
    return covered & certain[:, None, None], certain


def empty_cells(usual: Image, lit: Mask) -> tuple[Mask, bool]:
    """Cells `(h, w)` that no sample reaches, and whether they are told from others beyond doubt.

    First what is bright, then of that what is as bright as most, less a rim. `usual` `(h, w)`: median
    over frames of log(frame over background). In 48 fits to simulated tomograms the width of what was
    called empty was below 0.03 of the depth where there was a margin, and above 0.045 where a sample
    covered all.
    """
    smooth = median_filter(usual, 3)
    top, bottom = np.quantile(smooth[lit], (TOP, BOTTOM))
    empty = lit & (smooth >= top - LEAST_SHADE * (top - bottom))
    middle = np.median(smooth[empty])
    width = 1.4826 * np.median(np.abs(smooth[empty] - middle))
    empty &= smooth >= middle - LEAST_SHADE_STD * width
    inner = np.asarray(lit & binary_erosion(empty | ~lit, border_value=1))
    return inner, bool(width < MOST_WIDTH * (top - bottom) and inner.any())


class Steps:
    """Steps of frames and modes that a fit looks at, and how far each is believed.

    Attributes
    ----------
    data : `(n, p)` of the frames. modes : of each group of modes, `(k, p)`. scale : `(p,)`; the last
    is that of levels. beside : `(p,)`, or `(n, p)` where it passes, whether a step has a sample on either
    side; none where no cells without it are known. certain : `(n,)` frames in which passing ones are told.
    """

    def __init__(self, logs: Image, lit: Mask, groups: Sequence[Image]) -> None:
        self.lit = lit
        self.empty = np.zeros_like(lit)
        self.seen, scale = _inner_steps(lit)
        self._scale = scale[self.seen]
        self._near: list[Image] = []
        self._squares: list[Image] = []
        self.add((logs, *groups))

    def add(self, stacks: Sequence[Image]) -> None:
        """Look at more modes, too; for now as if the sample stood nowhere, as it may be everywhere."""
        self._near += [steps_of(images)[:, self.seen].astype(np.float32) for images in stacks]
        self._squares += [_pyramid(images)[SQUARES] for images in stacks]
        self.forget_standing()

    def find_standing(self, left: Image) -> bool:
        """Find where the sample stands, and say whether it is beyond doubt; `left` `(n, h, w)`: frames
        over the background so far.
        """
        empty, sure = empty_cells(np.median(left, 0), self.lit)
        empty &= empty_cells(np.quantile(left, LOW, axis=0), self.lit)[0]
        self.set_standing(empty)
        return sure and bool(empty.any())

    def set_standing(self, empty: Mask) -> None:
        """Let the cells `empty` `(h, w)` be those that no sample reaches."""
        free = _inner_steps(empty)[0][self.seen]
        self._look(~free, _pyramid(empty.astype(np.float32))[SQUARES] > WHOLE)
        self.empty = empty

    def forget_standing(self) -> None:
        """As if the sample may stand everywhere."""
        none = np.zeros_like(_pyramid(self.lit.astype(np.float32))[SQUARES], bool)
        self._look(np.zeros(int(self.seen.sum()), bool), none)

    def find_passing(
        self, left: Image, vacuum: Array | None = None, tolerance: float = np.inf
    ) -> None:
        """Find which cells a sample that passes covers in each frame; `left` as before.

        `vacuum` `(n,)` : where vacuum is expected in `left`; cells that are alike further from it than
        `tolerance` are those of a film, not empty.
        """
        covered, self.certain = covered_cells(left, self.lit)
        if vacuum is not None and self.lit.any():
            open_cells = np.where(self.lit & ~covered, left, np.float32(np.nan))
            middle = np.nanmedian(open_cells[:, self.lit], 1)
            self.certain &= np.abs(middle - vacuum) < tolerance
            covered &= self.certain[:, None, None]
        squares = _pairs(covered.astype(np.float32))
        touched = [(one + two > TOUCHED).reshape(len(left), -1) for one, two in squares]
        self.beside = np.concatenate(touched, 1)[:, self.seen]

    def forget_passing(self) -> None:
        """As if no sample passed."""
        self.beside = np.zeros(self.data.shape[1], bool)
        self.certain = np.zeros(len(self.data), bool)

    def _look(self, beside: Mask, empty: Mask) -> None:
        """Look at all steps, and at levels of `empty` squares over their mean."""
        levels = [squares[:, empty] for squares in self._squares]
        if empty.any():
            levels = [level - level.mean(1, keepdims=True) for level in levels]
        looked = [np.concatenate(pair, 1) for pair in zip(self._near, levels, strict=True)]
        self.data, self.modes = looked[0], looked[1:]
        count = int(empty.sum())
        self.scale = np.concatenate([self._scale, np.full(count, LEVELS)])
        self.beside = np.append(beside if count else beside & False, np.zeros(count, bool))
        self.certain = np.zeros(len(self.data), bool)

    def belief(self, left: Image) -> Image:
        """Weights of the residuals `(n, p)`: inverse squares, with Geman's and McClure's loss scale by scale.

        What is usual is each frame's own: of films one is ten times as dark as the next, and would
        rule them all; and that of steps beside no sample, where these are known.
        """
        weight = np.zeros_like(left)
        beside = np.broadcast_to(self.beside, left.shape)
        everywhere = np.ones(len(left), bool)
        for k in range(LEVELS + 1):
            distant = k < LEVELS and SCALES[k][1] > 1
            own = np.ix_(self.certain if distant else everywhere, self.scale == k)
            mine = left[own]
            if mine.size:
                width = np.float32(1.4826) * _usual(np.abs(mine), beside[own])
                weight[own] = _weights(mine, width + np.float32(LEAST_WIDTH))
        return np.where(beside, (COVERED if self.beside.ndim > 1 else BESIDE) * weight, weight)

    def belief_across(self, left: Image) -> Image:
        """The same for what two frames of one sample differ by, `(p,)`, wherever that stands."""
        weight = np.zeros_like(left)
        for k in range(LEVELS + 1):
            own = self.scale == k
            if own.any():
                width = np.float32(1.4826 * np.median(np.abs(left[own])) + LEAST_WIDTH)
                weight[own] = _weights(left[own], width)
        return weight


def _weights(left: Image, width: Image | np.float32) -> Image:
    """Geman's and McClure's, of residuals of a usual `width`."""
    return np.asarray((width + (left / FAR) ** 2 / width) ** -2)


def _usual(size: Image, beside: Mask) -> Image:
    """Median `(n, 1)` of sizes `(n, p)` that are beside no sample; of all where none is."""
    some = slice(None, None, 1 + size.shape[1] // ENOUGH)
    size, free = size[:, some], ~beside[:, some]
    free |= ~free.any(1, keepdims=True)
    ordered = np.sort(np.where(free, size, np.inf), 1)
    return np.take_along_axis(ordered, free.sum(1, keepdims=True) // 2, 1)
