"""What each frame should be suspected of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.keyframes import interpolate
from txmcorrect.background.quality import (
    DARK_SHARE,
    LEAK_LIMIT,
    UNCERTAIN_LIMIT,
    UNCERTAIN_NOISE,
    Flag,
    leak_slope,
    odd_ones,
    spread_rms,
)
from txmcorrect.background.scale import LEAST
from txmcorrect.background.survey import Survey

LIT_FRACTION = 0.08
BLOCKS = 8  # of a side, over which what is left of a frame is summed up
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
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Bits per frame; frames between key frames inherit what their nearest key frame shows.

    `keys` `(k,)`, `fields` and `std` `(k, h', w')`, `lit` `(h', w')`. Returns `(n,)` bits of
    `quality.Flag` and the leak `(k,)`, see `quality.leak_slope`.
    """
    n = len(survey.small)
    usual = _usual(fields, keys, jumps)
    log_small = np.log(np.maximum(survey.small, LEAST))
    distance = np.array([(f - u)[lit].std() for f, u in zip(fields, usual, strict=True)])
    odd = odd_ones(distance)
    leak = np.zeros(len(keys))
    if len(keys) > LEAK_FRAMES:
        for k, key in enumerate(keys):
            leak[k] = leak_slope(fields[k], usual[k], log_small[key] - fields[k], lit)
    bits = np.zeros(len(keys), np.uint32)
    bits[np.abs(leak) > LEAK_LIMIT] |= np.uint32(Flag.LEAK)
    bits[odd] |= np.uint32(Flag.ODD_BACKGROUND)
    limit = max(UNCERTAIN_LIMIT, UNCERTAIN_NOISE * photon_noise(survey, fields, lit))
    bits[[spread_rms(s, lit) > limit for s in std]] |= np.uint32(Flag.UNCERTAIN)
    nearest = np.abs(np.arange(n)[:, None] - keys[None]).argmin(1)
    flag = survey.flag | bits[nearest]
    left = np.stack([log_small[i] - interpolate(fields, keys, jumps, i) for i in range(n)])
    flag[odd_frames(left, lit, survey.usable)] |= np.uint32(Flag.ODD_BACKGROUND)
    for i in np.flatnonzero(survey.usable):
        shadow = left[i] < np.log(LIT_FRACTION)
        if shadow[lit].mean() > DARK_SHARE:
            flag[i] |= np.uint32(Flag.PARTLY_DARK)
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


def odd_frames(
    left: NDArray[np.float32], lit: NDArray[np.bool_], usable: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Frames `(n,)` whose background fits them much worse than the others' do.

    `left` `(n, h, w)`: log of frame over background. Medians over blocks are blind to small objects;
    what is large and in most frames is usual; a frame that is dark all over is covered, and its
    background comes from its neighbours.
    """
    if usable.sum() < LEAK_FRAMES + 1 or not lit.any():
        return np.zeros(len(left), bool)
    values = np.where(lit, left, np.nan)
    sides = [np.array_split(np.arange(size), min(BLOCKS, size)) for size in lit.shape]
    blocks = [
        values[:, y[0] : y[-1] + 1, x[0] : x[-1] + 1].reshape(len(left), -1)
        for y in sides[0]
        for x in sides[1]
        if lit[np.ix_(y, x)].any()
    ]
    medians = np.stack([np.nanmedian(block, 1) for block in blocks], 1)
    level = np.median(medians, 1)
    misfit = np.sqrt(((medians - level[:, None]) ** 2).mean(1))
    odd = np.zeros(len(left), bool)
    odd[usable] = odd_ones(misfit[usable].astype(np.float64))
    return odd & (np.abs(level - np.median(level[usable])) < COVERED)
