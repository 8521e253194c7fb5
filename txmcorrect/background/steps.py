"""What a fit of the drift looks at: steps between neighbouring cells, and where no sample stands.

Steps are taken at several scales, between squares of 1, 2, 4 and 8 cells. A sample that turns may
stand in the same cells in every frame, and what is broad in it moves as slowly as a beam drifts. Cells
that no sample ever reaches say how the background changes, by their levels, however far apart they are.
Where there are such cells steps beside a sample hardly count: else the fit took a turning sphere of a
quarter of the frame for background (7 % of its attenuation with references before and after, 0.8 % with
a bank, too, in the mean of eight simulated tomograms; so 0.4 and 0.02 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, median_filter

from txmcorrect.background.evidence import LEAST_WIDTH

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Array = NDArray[Any]

OCTAVES = 4  # steps between cells, and between squares of 2, 4 and 8 cells
SQUARES = 2  # the octave whose squares have levels that count, where no sample stands
BESIDE = np.float32(1e-3)  # of their belief is left to steps beside a sample that turns
LOW = 0.1  # quantile over frames: what only passes through a cell shows there
TOP, BOTTOM = 0.97, 0.05  # quantiles over cells, between which samples darken
LEAST_SHADE = 0.3  # of that depth: a sample at first sight
LEAST_SHADE_STD = 4.0  # robust deviations of empty cells: a sample, too
# Robust deviations at which a step counts a quarter. With 2 errors are 3 % less, but one fit in forty ran away.
FAR = np.float32(2.5)
ENOUGH = 2000  # residuals of a frame to tell what is usual
MOST_WIDTH = 0.04  # of the depth: cells without a sample differ by no more, once the fit is good


def steps_of(images: Image) -> Image:
    """Differences of neighbours at all scales: `(..., h, w)` -> `(..., p)`."""
    found = []
    for level in _pyramid(images):
        for axis in (-2, -1):
            found.append(np.diff(level, axis=axis).reshape(*images.shape[:-2], -1))
    return np.concatenate(found, -1)


def _pyramid(images: Image) -> list[Image]:
    levels = [images]
    for _ in range(OCTAVES - 1):
        levels.append(_halved(levels[-1]))
    return levels


def _halved(images: Image) -> Image:
    """Means over 2 x 2 cells; the last row or column stands twice where it is alone."""
    h, w = images.shape[-2:]
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(0, h % 2), (0, w % 2)], mode="edge")
    squares = padded.reshape(*images.shape[:-2], (h + 1) // 2, 2, (w + 1) // 2, 2)
    return squares.mean((-3, -1), dtype=np.float32)


def _whole(mask: Mask) -> list[Mask]:
    """Squares that lie inside a mask `(h, w)`, at all scales."""
    return [level > 0.99 for level in _pyramid(mask.astype(np.float32))]


def _inner_steps(mask: Mask) -> tuple[Mask, NDArray[np.intp]]:
    """Steps between two squares inside a mask `(p,)`, and the octave of each `(p,)`."""
    seen, octave = [], []
    for k, whole in enumerate(_whole(mask)):
        for both in (whole[1:] & whole[:-1], whole[:, 1:] & whole[:, :-1]):
            if k == 0:  # every other one: neighbours share their cells' noise
                both &= np.indices(both.shape).sum(0) % 2 == 0
            seen.append(both.ravel())
            octave.append(np.full(both.size, k))
    return np.concatenate(seen), np.concatenate(octave)


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
    data : `(n, p)` of the frames. modes : of each group of modes, `(k, p)`. octave : `(p,)`; the last
    is that of levels. beside : `(p,)` whether a step has a sample on either side; none where no cells
    without it are known.
    """

    def __init__(self, logs: Image, lit: Mask, groups: Sequence[Image]) -> None:
        self.lit = lit
        self.seen, octave = _inner_steps(lit)
        self._octave = octave[self.seen]
        self._near: list[Image] = []
        self._squares: list[Image] = []
        self.add((logs, *groups))

    def add(self, stacks: Sequence[Image]) -> None:
        """Look at more modes, too; for now as if the sample stood nowhere, as it may be everywhere."""
        self._near += [steps_of(images)[:, self.seen].astype(np.float32) for images in stacks]
        self._squares += [_pyramid(images)[SQUARES] for images in stacks]
        self._look(np.zeros(int(self.seen.sum()), bool), np.zeros_like(_whole(self.lit)[SQUARES]))

    def find_standing(self, left: Image) -> bool:
        """Find where the sample stands, and say whether it is beyond doubt; `left` `(n, h, w)`: frames
        over the background so far.
        """
        empty, sure = empty_cells(np.median(left, 0), self.lit)
        empty &= empty_cells(np.quantile(left, LOW, axis=0), self.lit)[0]
        free = _inner_steps(empty)[0][self.seen]
        self._look(~free, _whole(empty)[SQUARES])
        return sure and bool(empty.any())

    def _look(self, beside: Mask, empty: Mask) -> None:
        """Look at all steps, and at levels of `empty` squares over their mean."""
        levels = [squares[:, empty] for squares in self._squares]
        if empty.any():
            levels = [level - level.mean(1, keepdims=True) for level in levels]
        looked = [np.concatenate(pair, 1) for pair in zip(self._near, levels, strict=True)]
        self.data, self.modes = looked[0], looked[1:]
        count = int(empty.sum())
        self.octave = np.concatenate([self._octave, np.full(count, OCTAVES)])
        self.beside = np.append(beside if count else beside & False, np.zeros(count, bool))

    def belief(self, left: Image) -> Image:
        """Weights of the residuals `(n, p)`: inverse squares, with Geman's and McClure's loss octave by octave.

        What is usual is each frame's own: of films one is ten times as dark as the next, and would
        rule them all; and that of steps beside no sample, where these are known.
        """
        weight = np.empty_like(left)
        for k in range(OCTAVES + 1):
            own = self.octave == k
            if own.any():
                free = own & ~self.beside
                some = np.abs(left[:, free if free.any() else own])
                some = some[:, :: 1 + some.shape[1] // ENOUGH]
                usual = np.median(some, 1, keepdims=True)
                width = np.float32(1.4826) * usual + np.float32(LEAST_WIDTH)
                weight[:, own] = (width + (left[:, own] / FAR) ** 2 / width) ** -2
        weight[:, self.beside] *= BESIDE
        return weight
