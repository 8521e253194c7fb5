"""Where frames of a mosaic overlap: the same sample before two places of the background.

In the logarithm the sample drops out of the difference of the two frames; what is left is background
at one place less background at the other. Nothing of the sample can be taken for drift there, however
dense it is. Overlaps are often thinner than a cell of the working grid, so they are read from the
frames themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import shift as moved

from txmcorrect.background.survey import Survey, read_counts
from txmcorrect.scan import Frames

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Array = NDArray[Any]

LEAST_BLOCKS = 24  # of an overlap
MOST_BLOCKS = 256  # every so many of larger ones
MOST_PAIRS = 300  # evenly among all
LEAST_PX = 4  # of an overlap's sides; thinner ones are as good as none
LIT_SHARE = 0.5  # of a block's pixels
LEAST_COUNTS = 1.0
# Of the bright end; what is a little misplaced on a steep rim is much brighter or darker there.
LEAST_LIGHT = np.float32(0.1)
THIRDS = np.array([-1, 0, 1]) / 3


@dataclass(frozen=True)
class Shared:
    """What two frames show of the same places of the sample.

    Attributes
    ----------
    frames : their numbers. data : `(p,)` natural log of the first over the second, without the fixed
    pattern, of means over blocks. one, two : `(p, 2)` middles of the blocks in each frame (y, x), in
    cells of the working grid; size `(2,)` of a block, likewise.
    """

    frames: tuple[int, int]
    data: Array
    one: Array
    two: Array
    size: Array


def read_overlaps(
    frames: Frames, survey: Survey, detail: Image, corner_px: Array
) -> tuple[Shared, ...]:
    """Overlaps of usable frames, block by block.

    Parameters
    ----------
    frames : raw. detail : `(h, w)` fixed log pattern. corner_px : `(n, 2)` corners (y, x) in pixels.
    """
    h, w = frames.shape[1:]
    pairs = list(_pairs(corner_px, survey.usable, (h, w), survey.factor))
    step = max(1, -(-len(pairs) // MOST_PAIRS))
    flat = np.where(survey.broken, np.nan, np.exp(-detail)).astype(np.float32)

    def light(frame: int) -> Image:
        return np.asarray(read_counts(frames, frame, frame + 1, survey.dark)[0] * flat)

    last: tuple[int, Image] | None = None
    found = []
    for i, j in pairs[::step]:
        if last is None or last[0] != i:
            last = (i, light(i))
        shared = _compare((i, j), last[1], light(j), corner_px[j] - corner_px[i], survey.factor)
        if len(shared.data) >= LEAST_BLOCKS:
            found.append(shared)
    return tuple(found)


def _pairs(
    corner_px: Array, usable: Mask, shape: tuple[int, int], factor: int
) -> Iterator[tuple[int, int]]:
    """Pairs of usable frames that share as many blocks as it takes."""
    index = np.flatnonzero(usable)
    for k, i in enumerate(index):
        rest = index[k + 1 :]
        sides = np.array(shape) - np.abs(corner_px[rest] - corner_px[i])
        blocks = np.prod(np.maximum(sides // np.minimum(factor, np.maximum(sides, 1)), 0), 1)
        chosen = (sides >= min(LEAST_PX, factor)).all(1) & (blocks >= LEAST_BLOCKS)
        yield from ((int(i), int(j)) for j in rest[chosen])


def _compare(
    frames: tuple[int, int], first: Image, second: Image, shift: Array, factor: int
) -> Shared:
    """Means over blocks of both frames; `shift` (y, x): corner of the second in the first."""
    whole = np.floor(shift).astype(int)
    here, there = [], []
    for side, d in zip(first.shape, whole.tolist(), strict=True):
        low, high = max(d + 1, 0), min(side + d, side)  # a pixel more, to interpolate between
        here.append(slice(low, high))
        there.append(slice(low - d - 1, high - d))
    part = (np.asarray(shift) - whole).tolist()
    one = first[tuple(here)]
    two = moved(second[tuple(there)], part, order=1, mode="nearest")[1:, 1:]
    size = [min(factor, side) for side in one.shape]
    sums = [_blocks(image, size) for image in (one, two)]
    seen = (sums[0] > LEAST_COUNTS) & (sums[1] > LEAST_COUNTS)  # nothing that is not a number
    y, x = np.nonzero(seen)
    step = -(-len(y) // MOST_BLOCKS) if len(y) else 1
    y, x = y[::step], x[::step]
    data = np.log(sums[0][y, x]) - np.log(sums[1][y, x])
    middle = np.stack([y * size[0] + size[0] / 2, x * size[1] + size[1] / 2], 1)
    middle = middle + [s.start for s in here]
    one_at, two_at = (at / factor - 0.5 for at in (middle, middle - shift))
    return Shared(frames, data, one_at, two_at, np.array(size) / factor)


def _blocks(image: Image, size: Sequence[int]) -> Array:
    """Means over blocks of what is finite, NaN where too little is, `(h // size, w // size)`."""
    (a, b), (h, w) = size, image.shape
    cut = image[: h // a * a, : w // b * b].reshape(h // a, a, w // b, b)
    count = np.isfinite(cut).sum((1, 3))
    total = np.nansum(cut, (1, 3), dtype=np.float64)
    return np.where(count >= LIT_SHARE * a * b, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Overlap:
    """Two frames where they overlap, over a reference.

    Attributes
    ----------
    at : `(2,)` places of the frames among those that are fitted. data : `(p,)` natural log of the
    first over the second. corners, share : `(2, q, p)` cells of the first and of the second frame
    that the same places of the sample lie in, and their part in it. levelled : exposures are recorded, so
    that the mean of `data` says something, too.
    """

    at: Array
    data: Array
    corners: Array
    share: Array
    levelled: bool

    def modes(self, images: Image) -> tuple[Array, Array]:
        """Images `(k, h, w)` as the first and the second frame see them, `(k, p)` each."""
        flat = images.reshape(len(images), -1)
        one, two = ((flat[:, c] * s).sum(1) for c, s in zip(self.corners, self.share, strict=True))
        return one, two


def find_overlaps(
    shared: Sequence[Shared],
    reference: Image,
    gain: Array,
    lit: Mask,
    at: Array,
    levelled: bool = False,
) -> list[Overlap]:
    """Overlaps as a fit sees them: over the reference, where both frames are well lit.

    Parameters
    ----------
    reference : `(h, w)` natural log on the working grid. gain : `(n,)` log exposure of each frame.
    lit : `(h, w)`. at : `(n,)` places among the frames that are fitted. levelled : exposures are recorded.
    """
    if lit.any():
        lit = lit & (reference >= np.quantile(reference[lit], 0.95) + np.log(LEAST_LIGHT))
    found = []
    for pair in shared:
        i, j = pair.frames
        corners, share = (
            np.stack(both)
            for both in zip(
                *(_inside(p, pair.size, lit.shape) for p in (pair.one, pair.two)), strict=True
            )
        )
        both = lit.ravel()[corners].all((0, 1))
        if both.sum() < LEAST_BLOCKS:
            continue
        over = Overlap(at[[i, j]], pair.data[both], corners[..., both], share[..., both], levelled)
        (one,), (two,) = over.modes(reference[None])
        data = over.data - (one - two) - (gain[i] - gain[j])
        found.append(replace(over, data=data))
    return found


def _inside(middle: Array, size: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Cells that blocks lie in, and their parts, `(q, p)` each: as images are interpolated, averaged."""
    offsets = np.stack(np.meshgrid(THIRDS, THIRDS), -1).reshape(-1, 2) * size
    found = [_between(middle + offset, shape) for offset in offsets]
    corners, share = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return corners, share / len(offsets)


def _between(place: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Cells around places `(p, 2)` and their parts, `(4, p)` each; beyond the frame as at its edge."""
    h, w = shape
    last = np.maximum(np.array(shape) - 2, 0)
    low = np.clip(np.floor(place).astype(int), 0, last)
    v, u = np.clip(place - low, 0, 1).T
    y, x = low.T
    below, right = np.minimum(y + 1, h - 1), np.minimum(x + 1, w - 1)
    corners = np.stack([y * w + x, y * w + right, below * w + x, below * w + right])
    return corners, np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
