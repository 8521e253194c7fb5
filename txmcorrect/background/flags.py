"""What each frame should be suspected of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.keyframes import interpolate
from txmcorrect.background.quality import (
    DARK_SHARE,
    LEAK_LIMIT,
    UNCERTAIN_LIMIT,
    Flag,
    leak_slope,
    odd_ones,
    spread_rms,
)
from txmcorrect.background.scale import LEAST
from txmcorrect.background.survey import Survey

LIT_FRACTION = 0.08
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
    usual = np.median(fields, axis=0)
    log_small = np.log(np.maximum(survey.small, LEAST))
    distance = np.array([(f - usual)[lit].std() for f in fields])
    odd = odd_ones(distance)
    leak = np.zeros(len(keys))
    if len(keys) > LEAK_FRAMES:
        for k, key in enumerate(keys):
            leak[k] = leak_slope(fields[k], usual, log_small[key] - fields[k], lit)
    bits = np.zeros(len(keys), np.uint32)
    bits[np.abs(leak) > LEAK_LIMIT] |= np.uint32(Flag.LEAK)
    bits[odd] |= np.uint32(Flag.ODD_BACKGROUND)
    bits[[spread_rms(s, lit) > UNCERTAIN_LIMIT for s in std]] |= np.uint32(Flag.UNCERTAIN)
    nearest = np.abs(np.arange(n)[:, None] - keys[None]).argmin(1)
    flag = survey.flag | bits[nearest]
    for i in np.flatnonzero(survey.usable):
        shadow = log_small[i] - interpolate(fields, keys, jumps, int(i)) < np.log(LIT_FRACTION)
        if shadow[lit].mean() > DARK_SHARE:
            flag[i] |= np.uint32(Flag.PARTLY_DARK)
    flag[jumps] |= np.uint32(Flag.JUMP)
    return flag, leak
