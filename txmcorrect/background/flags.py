"""What each frame should be suspected of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.keyframes import interpolate, nearest_keys
from txmcorrect.background.quality import (
    DARK_SHARE,
    LEAK_LIMIT,
    PROMISED,
    UNCERTAIN_LIMIT,
    UNCERTAIN_NOISE,
    Expected,
    Flag,
    leak_slope,
    odd_ones,
    spread_rms,
)
from txmcorrect.background.scale import LEAST
from txmcorrect.background.survey import Survey

LIT_FRACTION = 0.08
BLOCKS = 8  # of a side, over which what is left of a frame is summed up
ODD_SPREAD = 2.0  # times the scan's usual expected error
COVERED = (
    0.5  # natural log; a frame darker than its background by more shows a sample, not the beam
)
LEAK_FRAMES = 2  # with fewer key frames a common background cannot be told from the sample


def lit_cells(fields: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Cells `(h', w')` of the working grid where the median key background has light."""
    middle = np.median(fields, axis=0)
    return middle > np.log(LIT_FRACTION) + np.median(middle)


def flag_frames(
    survey: Survey,
    keys: NDArray[np.intp],
    fields: NDArray[np.float32],
    std: NDArray[np.float32],
    lit: NDArray[np.bool_],
    jumps: NDArray[np.intp],
    expected: Expected | None = None,
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Bits per frame; frames between key frames inherit what their nearest key frame shows.

    `keys` `(k,)`, `fields` and `std` `(k, h', w')`, `lit` `(h', w')`. Returns `(n,)` bits of
    `quality.Flag` and the leak `(k,)`, see `quality.leak_slope`.
    """
    n = len(survey.small)
    usual = _usual(fields, keys, jumps)
    distance = np.array([(f - u)[lit].std() for f, u in zip(fields, usual, strict=True)])
    odd = odd_ones(distance)
    leak = np.zeros(len(keys))
    if len(keys) > LEAK_FRAMES:
        for k, key in enumerate(keys):
            leak[k] = leak_slope(fields[k], usual[k], left_of(survey, key, fields[k]), lit)
    bits = np.zeros(len(keys), np.uint32)
    bits[np.abs(leak) > LEAK_LIMIT] |= np.uint32(Flag.LEAK)
    bits[odd] |= np.uint32(Flag.ODD_BACKGROUND)
    if expected is None:
        limit = max(UNCERTAIN_LIMIT, UNCERTAIN_NOISE * photon_noise(survey, fields, lit))
        bits[[spread_rms(s, lit) > limit for s in std]] |= np.uint32(Flag.UNCERTAIN)
    flag = survey.flag | bits[nearest_keys(keys, n)]
    if expected is not None:  # single frames that stand out; what holds for all is the verdict's
        worse = expected.shape > np.maximum(
            PROMISED["shape"], ODD_SPREAD * np.median(expected.shape)
        )
        flag[survey.usable & worse] |= np.uint32(Flag.UNCERTAIN)
    medians, shadow = np.empty((n, len(parts := blocks(lit)))), np.empty(n)
    for i in range(n):
        left = left_of(survey, i, interpolate(fields, keys, jumps, i))
        medians[i] = [np.median(left[part]) for part in parts]
        shadow[i] = (left[lit] < np.log(LIT_FRACTION)).mean() if lit.any() else 0.0
    flag[odd_frames(medians, survey.usable)] |= np.uint32(Flag.ODD_BACKGROUND)
    flag[survey.usable & (shadow > DARK_SHARE)] |= np.uint32(Flag.PARTLY_DARK)
    flag[jumps] |= np.uint32(Flag.JUMP)
    return flag, leak


def _usual(
    fields: NDArray[np.float32], keys: NDArray[np.intp], jumps: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Median background `(k, h', w')` of the key frames between the same jumps as each."""
    part = np.searchsorted(jumps, keys, side="right")
    medians = {p: np.median(fields[part == p], axis=0) for p in np.unique(part)}
    return np.stack([medians[p] for p in part])


def photon_noise(survey: Survey, fields: NDArray[np.float32], lit: NDArray[np.bool_]) -> float:
    """Relative photon noise of a pixel where the light is as usual; 0 where nothing is lit."""
    if not lit.any():
        return 0.0
    photons = survey.photons * float(np.exp(np.median(fields[:, lit])))
    return 1 / max(photons, 1.0) ** 0.5


def left_of(
    survey: Survey, frame: int | np.intp, field: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Log of a frame over its background `field`, `(h', w')`."""
    return np.asarray(np.log(np.maximum(survey.small[frame], LEAST)) - field, np.float32)


def blocks(lit: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], ...]]:
    """Lit cells of each of up to 8 x 8 blocks that has some."""
    rows, columns = (np.arange(size) * min(BLOCKS, size) // size for size in lit.shape)
    number = rows[:, None] * BLOCKS + columns
    return [np.nonzero(lit & (number == i)) for i in np.unique(number[lit])]


def odd_frames(medians: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Frames `(n,)` whose background fits them much worse than the others' do.

    `medians` `(n, blocks)` of log of frame over background: blind to small objects; what is large and
    in most frames is usual; a frame that is dark all over is covered, and its background comes from its
    neighbours.
    """
    odd = np.zeros(len(medians), bool)
    if usable.sum() < LEAK_FRAMES + 1 or medians.shape[1] == 0:
        return odd
    level = np.median(medians, 1)
    misfit = np.sqrt(((medians - level[:, None]) ** 2).mean(1))
    odd[usable] = odd_ones(misfit[usable])
    return odd & (np.abs(level - np.median(level[usable])) < COVERED)
