"""What the background of a scan is compared with, and the ways in which it may depart from that.

By whatever is known: components of a bank, the change from before to after, broad cosines, moves of the
reference. Without references the reference is the median of the frames themselves and, in what is fine, of
their steps; steady cosines put right what is broad where samples were in the way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.gradients import fine
from txmcorrect.background.groups import BENT, DRIFTING, MOVING, SLOW, STEADY, STRAIGHT, Group
from txmcorrect.background.known import Known
from txmcorrect.background.light import log_counts
from txmcorrect.background.modes import (
    COMMON_CELLS,
    cosines,
    halves_agree,
    in_common,
    levelled,
    moved,
    principal,
)

Image = NDArray[np.float32]

BROAD = np.float32(0.03)  # natural log: the drift that a single reference is expected to have seen
FRESH = 1.5  # benefit of the doubt for a single reference: error of six films 0.46 -> 0.19 % where fresh
ORDERS, FINE_ORDERS, FEW_ORDERS = 10, 12, 5  # half periods of cosines over the frame


def departures(
    known: Known, logs: Image, lit: NDArray[np.bool_]
) -> tuple[Image, list[Group], list[Group]]:
    """What the background is compared with, the ways in which it may depart from that, and others that
    a bank does not know: a few references, or those of another night, don't span all that a beam does.

    `logs` `(n, h, w)`: of frames, natural log, less recorded exposures; what comes back is alike, `(h, w)`.
    """
    first, last = (None if x is None else log_counts(x, lit) for x in (known.before, known.after))
    if first is not None and last is not None:
        middle, half = (first + last) / np.float32(2), (last - first) / np.float32(2)
        # As it is: the line from one to the other.
        ends = Group(half[None], STRAIGHT, 1.0, 1.0, 1.0)
        size = half[lit].std() if lit.any() else np.float32(0)
        bends = np.concatenate([half[None], broad(middle, lit, ORDERS, size)])
        bent = [
            Group(bends, BENT, 0.3, most=1.0),
            Group(moved_before(middle, middle, lit), BENT, 0.3, most=1.0),
        ]
        if known.bank is None:
            return middle, [ends, *bent], []
        components = principal(log_counts(known.bank, lit), lit)[1]
        spanned = Group(np.concatenate([half[None], components]), BENT, 0.5)
        return middle, [ends, spanned], bent
    if known.bank is not None:
        mean, components = principal(log_counts(known.bank, lit), lit)
        groups = [Group(components, SLOW, 1.5, 0.3)]
        beyond = [
            Group(broad(mean, lit, ORDERS), DRIFTING),
            Group(moved_before(mean, mean, lit), DRIFTING),
        ]
        if first is not None:  # the detector may have changed since the bank was taken
            groups.append(Group((first - mean)[None], SLOW, most=1.5))
        return mean, groups, beyond
    if first is not None:
        groups = [
            Group(broad(first, lit, ORDERS), DRIFTING, doubt=FRESH),
            Group(moved_before(first, first, lit), DRIFTING, doubt=FRESH),
        ]
        # No sample stands still in a mosaic, nor where what stood was found: what all frames have is the beam
        # since then.
        since = logs - first
        still = bool(known.overlaps) or known.standing is not None
        if still and halves_agree(since, lit):
            common = in_common(since, lit)
            groups.append(Group(common[None], STRAIGHT, most=2.0))
            groups.append(Group(moved_before(common, first, lit), DRIFTING, 0.5))
        return first, groups, []
    level = np.median(logs[:, lit], 1)[:, None, None] if lit.any() else np.zeros((1, 1, 1))
    median = (np.median(logs - level, 0) + np.median(level)).astype(np.float32)
    common = in_common(logs, lit)
    middle = median - fine(median, lit, COMMON_CELLS) + common
    groups = [
        Group(broad(middle, lit, FINE_ORDERS), STEADY, 3.0, most=20.0),
        Group(broad(middle, lit, FEW_ORDERS), MOVING),
        Group(
            moved_before(middle, middle, lit)[:2], MOVING
        ),  # what is fine there may be the sample
    ]
    if known.overlaps:
        groups.append(Group(moved_before(common, middle, lit), MOVING, 0.5))
    return middle, groups, []


def broad(reference: Image, lit: NDArray[np.bool_], most: int, size: np.float32 = BROAD) -> Image:
    """Cosines `(k, h, w)` of a size, by default that of the drift that is expected."""
    return levelled(size * cosines(lit.shape, most), reference, lit)


def moved_before(image: Image, reference: Image, lit: NDArray[np.bool_]) -> Image:
    """Change `(7, h, w)` of an image that moves before a beam as bright as the reference."""
    return levelled(moved(image), reference, lit)
