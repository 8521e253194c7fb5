"""Frames and references of one scan -> its background without any network, and how sure that is.

Every reference setting is the same fit (`drift`) with other modes: components of a bank, the change
from before to after, the reference moved, broad cosines. Without references the reference is the
median of the frames themselves and, in what is fine, of their steps; steady cosines put right what is
broad where samples were in the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.background.drift import (
    ABRUPT,
    BENT,
    DRIFTING,
    MOVING,
    SLOW,
    STEADY,
    STRAIGHT,
    Fit,
    Group,
    fit_drift,
)
from txmcorrect.background.gradients import fine, from_steps
from txmcorrect.background.keyframes import interpolate
from txmcorrect.background.known import Known, kind_of
from txmcorrect.background.overlaps import find_overlaps
from txmcorrect.background.scale import LEAST

Image = NDArray[np.float32]

MOST_FRAMES = 96  # fitted; others lie between
LEAST_LIGHT = 0.1  # of the bright end; darker cells are not fitted
FLOOR = np.float32(0.02)  # of the bright end; what is darker counts as this much
BROAD = 0.03  # natural log: the drift that a single reference is expected to have seen
SHIFT = 0.01  # of the long side
# What moves is the illumination; the detector's pattern, much of what is fine, does not.
BROAD_CELLS, FINE_CELLS, BENT_CELLS = 1.5, 0.6, 1.0
COMMON_CELLS = 12.0
AGREED = 0.3  # correlation: four fresh references up to 0.16, ten of eleven stale ones from 0.37 on
COMPONENTS = 12  # of a bank
FRESH = 1.5  # benefit of the doubt for a single reference: error of six films 0.46 -> 0.19 % where fresh
ORDERS, FINE_ORDERS, FEW_ORDERS = 10, 12, 5  # half periods of cosines over the frame


@dataclass(frozen=True)
class Base:
    """Log background of every frame, natural log counts on the working grid, made when asked for.

    Attributes
    ----------
    reference, lit : `(h, w)`. fit : of the frames `chosen` `(m,)`; others lie between. level : `(n,)`
    brightness of each frame over that. jumps : first frames after a jump. mistakable : the sample turns
    and may cover all cells: what is broad in it looks like drift.
    """

    reference: Image
    fit: Fit
    chosen: NDArray[np.intp]
    level: NDArray[np.float64]
    lit: NDArray[np.bool_]
    jumps: tuple[int, ...]
    mistakable: bool = False

    def fields(self, frames: NDArray[np.intp]) -> Image:
        """Log background `(b, h, w)` of frames `(b,)`."""
        found = self._at(self.fit.change, frames) + self.reference
        return (found + self.level[frames][:, None, None]).astype(np.float32)

    def std(self, frames: NDArray[np.intp]) -> Image:
        """Deviation `(b, h, w)` of the shape of the background of frames `(b,)`."""
        return self._at(self.fit.std, frames)

    def sudden(self, frames: NDArray[np.intp]) -> Image:
        """The part of `std` that jumps bring along."""
        return self._at(self.fit.sudden, frames)

    def _at(self, values: Image, frames: NDArray[np.intp]) -> Image:
        """Linear between the frames that were fitted, never across a jump."""
        jumps = np.array(self.jumps, np.intp)
        found = [interpolate(values, self.chosen, jumps, int(i)) for i in frames]
        return np.stack(found).astype(np.float32)


def find_base(known: Known) -> Base:
    """Fit the drift of a scan from whatever is known; levels follow recorded exposures."""
    chosen = np.flatnonzero(known.usable)
    if len(chosen) > MOST_FRAMES:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MOST_FRAMES).round().astype(int)]
    lit = _lit(known, chosen)
    fitted = known.frames[chosen]
    exposure = known.log_exposure
    gain = np.zeros(len(known.frames)) if exposure is None else exposure

    def logs(frames: NDArray[np.intp]) -> Image:
        found = log_counts(known.frames[frames], lit, fitted)
        return found - gain[frames].astype(np.float32)[:, None, None]

    own = logs(chosen)
    reference, groups = _reference(known, own, lit)
    groups.append(Group(np.float32(BROAD) * cosines(lit.shape, FEW_ORDERS), ABRUPT, most=20.0))
    at = np.interp(np.arange(len(gain)), chosen, np.arange(len(chosen)))
    overlaps = find_overlaps(known.overlaps, reference, gain, lit, at, exposure is not None)
    time = None
    if known.after is not None and known.place is not None:
        time = known.place[chosen]
    kind = kind_of(known)
    # A single reference is so far off that where the sample ends is guesswork.
    told_apart = known.turning and kind in ("bank", "before-after")
    fit = fit_drift(own - reference, lit, groups, overlaps, time, told_apart)
    jumps = tuple(int(chosen[j]) for j in fit.jumps)
    mistakable = known.turning and kind != "none" and not fit.told
    base = Base(reference, fit, chosen, np.zeros(len(gain)), lit, jumps, mistakable)
    level = gain
    if not known.absolute:
        level = gain + _levels(base, logs, exposure is not None)
    return replace(base, level=level)


def _lit(known: Known, chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
    mean = known.frames[chosen].mean(0)
    return np.asarray(mean > LEAST_LIGHT * np.quantile(mean, 0.95))


def log_counts(counts: Image, lit: NDArray[np.bool_], like: Image | None = None) -> Image:
    """Natural log, floored well below what is lit of `like`, by default these; `(..., h, w)`."""
    bright = (counts if like is None else like)[..., lit]
    floor = FLOOR * np.median(bright) if bright.size else 0.0
    return np.log(np.maximum(counts, max(floor, LEAST))).astype(np.float32)


def _reference(known: Known, logs: Image, lit: NDArray[np.bool_]) -> tuple[Image, list[Group]]:
    """What the background is compared with, and the ways in which it may depart from that."""
    first, last = (None if x is None else log_counts(x, lit) for x in (known.before, known.after))
    if first is not None and last is not None:
        middle, half = (first + last) / np.float32(2), (last - first) / np.float32(2)
        # As it is: the line from one to the other.
        ends = Group(half[None], STRAIGHT, 1.0, 1.0, 1.0)
        if known.bank is not None:
            components = principal(log_counts(known.bank, lit), lit)[1]
            return middle, [ends, Group(np.concatenate([half[None], components]), BENT, 0.5)]
        size = half[lit].std() if lit.any() else np.float32(0)
        bends = np.concatenate([half[None], size * cosines(lit.shape, ORDERS)])
        bent = Group(bends, BENT, 0.3, most=1.0)
        return middle, [ends, bent, Group(moved(middle, lit), BENT, 0.3, most=1.0)]
    if known.bank is not None:
        mean, components = principal(log_counts(known.bank, lit), lit)
        groups = [Group(components, SLOW, 1.5, 0.3)]
        if first is not None:  # the detector may have changed since the bank was taken
            groups.append(Group((first - mean)[None], SLOW, most=1.5))
        return mean, groups
    broad = np.float32(BROAD)
    if first is not None:
        slow = Group(broad * cosines(lit.shape, ORDERS), DRIFTING, doubt=FRESH)
        groups = [slow, Group(moved(first, lit), DRIFTING, doubt=FRESH)]
        # No sample stands still in a mosaic: what all frames have is the beam since then.
        since = logs - first
        if known.overlaps and halves_agree(since, lit):
            common = in_common(since, lit)
            groups.append(Group(common[None], STRAIGHT, most=2.0))
            groups.append(Group(moved(common, lit), DRIFTING, 0.5))
        return first, groups
    level = np.median(logs[:, lit], 1)[:, None, None] if lit.any() else np.zeros((1, 1, 1))
    median = (np.median(logs - level, 0) + np.median(level)).astype(np.float32)
    common = in_common(logs, lit)
    middle = median - fine(median, lit, COMMON_CELLS) + common
    groups = [
        Group(broad * cosines(lit.shape, FINE_ORDERS), STEADY, 3.0, most=20.0),
        Group(broad * cosines(lit.shape, FEW_ORDERS), MOVING),
        Group(moved(middle, lit)[:2], MOVING),  # what is fine there may be the sample
    ]
    if known.overlaps:
        groups.append(Group(moved(common, lit), MOVING, 0.5))
    return middle, groups


def in_common(logs: Image, lit: NDArray[np.bool_]) -> Image:
    """What is fine and alike in `logs` `(n, h, w)`: `(h, w)`. What is broad cosines follow."""
    return fine(from_steps(logs, lit), lit, COMMON_CELLS)


def halves_agree(logs: Image, lit: NDArray[np.bool_]) -> bool:
    """Whether every other frame shows what the rest has in common, too: else it is noise and sample."""
    if len(logs) < 4 or np.count_nonzero(lit) < 2:
        return False
    one, other = (in_common(half, lit)[lit] for half in (logs[::2], logs[1::2]))
    if one.std() == 0 or other.std() == 0:
        return False
    return float(np.corrcoef(one, other)[0, 1]) > AGREED


def _levels(
    base: Base, logs: Callable[[NDArray[np.intp]], Image], exposed: bool
) -> NDArray[np.float64]:
    """Level of each frame `(n,)`: of its lit median, or one for all where exposures are known."""
    n = len(base.level)
    if not base.lit.any():
        return np.zeros(n)
    singles = (np.array([i]) for i in range(n))
    level = np.array([np.median((logs(i) - base.fields(i))[:, base.lit]) for i in singles])
    return np.full(n, np.median(level)) if exposed else level


def principal(bank: Image, lit: NDArray[np.bool_]) -> tuple[Image, Image]:
    """Mean `(h, w)` and components `(k, h, w)` of log references `(m, h, w)`, as large as their spread."""
    mean = bank.mean(0)
    change = bank - mean
    flat = (change * lit).reshape(len(bank), -1).astype(np.float64)
    vectors = np.linalg.eigh(flat @ flat.T)[1][:, ::-1]
    count = min(COMPONENTS, len(bank) - 1)
    images = np.tensordot(vectors[:, :count].T, change, 1) / math.sqrt(max(len(bank) - 1, 1))
    return mean, images.astype(np.float32)


def cosines(shape: tuple[int, ...], most: int) -> Image:
    """Cosines of up to `most` half periods along the long side `(k, h, w)`, the slower the larger."""
    h, w = shape
    y, x = ((np.arange(n) + 0.5) * np.pi / n for n in (h, w))
    waves = []
    for i in range(h):
        for j in range(w):
            order = math.hypot(i * max(shape) / h, j * max(shape) / w)
            if 0 < order <= most:
                waves.append(np.outer(np.cos(i * y), np.cos(j * x)) / (1 + (order / 2.5) ** 2))
    return np.array(waves, np.float32).reshape(-1, h, w)


def moved(log_image: Image, lit: NDArray[np.bool_]) -> Image:
    """Change of a log image that moves along y and x by `SHIFT` of its long side: `(7, h, w)`.

    Slopes of what is broad, slopes of what is fine (of that much may be the detector's own pattern,
    which stays), and curvatures, for moves that are not small beside the structure.
    """
    filled = np.where(lit, log_image, np.median(log_image[lit]) if lit.any() else 0)
    broad = gaussian_filter(filled, BROAD_CELLS)
    fine = gaussian_filter(filled, FINE_CELLS) - broad
    shift = SHIFT * max(lit.shape)
    bent = _slopes(gaussian_filter(filled, BENT_CELLS))
    curved = np.stack([*_slopes(bent[0]), _slopes(bent[1])[1]])
    images = [*shift * _slopes(broad), *shift * _slopes(fine), *shift**2 * curved]
    return np.stack(images).astype(np.float32)


def _slopes(image: Image) -> Image:
    """Along y and x `(2, h, w)`; nothing along an axis of one cell."""
    axes = enumerate(image.shape)
    return np.stack([np.gradient(image, axis=a) if n > 1 else 0 * image for a, n in axes])
