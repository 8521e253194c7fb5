"""Frames and references of one scan -> its background without any network, and how sure that is.

Every reference setting is the same fit (`drift`) with other modes: components of a bank, the change
from before to after, broad cosines, moves of the reference and of what a first fit finds. Without
references the reference is the median of the frames themselves and, in what is fine, of their steps;
steady cosines put right what is broad where samples were in the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.agreed import agreed
from txmcorrect.background.drift import More, fit_drift
from txmcorrect.background.gradients import fine
from txmcorrect.background.groups import (
    ABRUPT,
    BENT,
    DRIFTING,
    MOVING,
    SLOW,
    STEADY,
    STRAIGHT,
    Fit,
    Group,
)
from txmcorrect.background.keyframes import interpolate
from txmcorrect.background.known import Known, kind_of
from txmcorrect.background.modes import (
    COMMON_CELLS,
    cosines,
    halves_agree,
    in_common,
    levelled,
    moved,
    principal,
)
from txmcorrect.background.overlaps import find_overlaps
from txmcorrect.background.scale import LEAST
from txmcorrect.background.steps import empty_cells

Image = NDArray[np.float32]

MOST_FRAMES = 96  # fitted; others lie between
RECORDED = 0.003  # natural log: how far simulated beams drift from recorded exposures
LEAST_LIGHT = 0.03  # of the bright end; darker cells are not fitted
FLOOR = np.float32(0.02)  # of the bright end; what is darker counts as this much
BROAD = np.float32(0.03)  # natural log: the drift that a single reference is expected to have seen
FRESH = 1.5  # benefit of the doubt for a single reference: error of six films 0.46 -> 0.19 % where fresh
PASSED, CERTAIN = 0.9, 3.0  # quantile of frames; robust deviations of cells
UNCHANGED = 0.004  # natural log, rms: a reference that is off by less holds
SIMPLER = 0.67  # of a change, by which a fit is believed that needs so much less of it
ORDERS, FINE_ORDERS, FEW_ORDERS = 10, 12, 5  # half periods of cosines over the frame


@dataclass(frozen=True)
class Base:
    """Log background of every frame, natural log counts on the working grid, made when asked for.

    Attributes
    ----------
    reference, lit : `(h, w)`. fit : of the frames `chosen` `(m,)`; others lie between. level : `(n,)`
    brightness of each frame over that. jumps : first frames after a jump. mistakable : the sample turns
    and may cover all cells: what is broad in it looks like drift. doubt : how much further off fits like
    this one are than they can tell (`training.calibrate`). open : `(k, h, w)` what all frames may be off by
    beside, independent images of deviation 1.
    """

    reference: Image
    fit: Fit
    chosen: NDArray[np.intp]
    level: NDArray[np.float64]
    lit: NDArray[np.bool_]
    jumps: tuple[int, ...]
    mistakable: bool = False
    doubt: float = 1.0
    open: Image | None = None

    def fields(self, frames: NDArray[np.intp]) -> Image:
        """Log background `(b, h, w)` of frames `(b,)`."""
        found = self._at(self.fit.change, frames) + self.reference
        return (found + self.level[frames][:, None, None]).astype(np.float32)

    def std(self, frames: NDArray[np.intp]) -> Image:
        """Deviation `(b, h, w)` of the shape of the background of frames `(b,)`."""
        std, sudden = self._at(self.fit.std, frames), self._at(self.fit.sudden, frames)
        # What a jump leaves open is known as it is: drifts are what fits know too little of.
        usual = np.maximum(std**2 - sudden**2, 0)
        if self.open is not None:
            usual = usual + (self.open**2).sum(0)
        return np.asarray(np.sqrt(np.float32(self.doubt) ** 2 * usual + sudden**2))

    def deviation(self, frames: NDArray[np.intp], rng: np.random.Generator) -> Image:
        """A draw of what `std` is the deviation of, `(b, h, w)`; of all frames alike, whichever are asked."""
        drawn = self._at(self.fit.deviation(rng, self.doubt), frames)
        if self.open is None:
            return drawn
        beside = self.doubt * np.tensordot(rng.standard_normal(len(self.open)), self.open, 1)
        return (drawn + beside).astype(np.float32)

    def _at(self, values: Image, frames: NDArray[np.intp]) -> Image:
        """Linear between the frames that were fitted, never across a jump."""
        jumps = np.array(self.jumps, np.intp)
        found = [interpolate(values, self.chosen, jumps, int(i)) for i in frames]
        return np.stack(found).astype(np.float32)


def find_base(known: Known) -> Base:
    """Fit the drift of a scan from whatever is known; levels follow recorded exposures."""
    chosen, lit = usual_light(known)
    fitted = known.frames[chosen]
    exposure = known.log_exposure
    gain = np.zeros(len(known.frames)) if exposure is None else exposure

    def logs(frames: NDArray[np.intp]) -> Image:
        found = log_counts(known.frames[frames], lit, fitted)
        return found - gain[frames].astype(np.float32)[:, None, None]

    own = logs(chosen)
    reference, groups, beyond = _reference(known, own, lit)
    groups.append(Group(_broad(reference, lit, FEW_ORDERS), ABRUPT, most=20.0))
    if known.overlaps and exposure is not None:
        # They show levels, but a slope of all tiles looks like levels that rise: size as given.
        level = np.full((1, *lit.shape), RECORDED, np.float32)
        groups.append(Group(level, MOVING, 1.0, 1.0, 1.0))
    at = np.interp(np.arange(len(gain)), chosen, np.arange(len(chosen)))
    overlaps = find_overlaps(known.overlaps, reference, gain, lit, at, exposure is not None)
    time = None
    if known.after is not None and known.place is not None:
        time = known.place[chosen]
    kind = kind_of(known)
    told_apart = known.turning and kind in ("bank", "before-after")

    def moves(change: Image) -> Group:
        """Moves of the beam as it is, where it has moved too far from the reference for that one's slopes."""
        return Group(
            _moved(reference + change, reference, lit), MOVING if kind == "none" else STRAIGHT
        )

    def fit_with(groups: list[Group], more: More | None, tell_apart: bool) -> Fit:
        fresh = [replace(group) for group in groups]  # sizes are found anew
        given = kind != "none"
        return fit_drift(
            own - reference, lit, fresh, overlaps, time, tell_apart, more, given, known.turning
        )

    def fit_one() -> Fit:
        """A single reference may be so far off that where the sample ends is guesswork: believed only where
        the beam has changed by much less then, and the sample would be what has changed else.
        """
        fit = fit_with(groups, moves, True)
        if not fit.told or _size(fit) < UNCHANGED:
            return fit
        guessed = fit_with(groups, moves, False)
        return fit if _size(fit) < SIMPLER * _size(guessed) else guessed

    if kind == "one" and known.turning and known.standing is None:
        fit = fit_one()
    else:
        fit = fit_with(groups + beyond, None if kind == "before-after" else moves, told_apart)
    if beyond and known.turning and not fit.told:  # broad parts of its sample would go into them
        fit = fit_with(groups, None, told_apart)
    if known.overlaps and kind != "bank":
        left = own - reference - fit.change
        noise = 1 / np.sqrt(known.photons * np.maximum(fitted.mean(0), LEAST))
        fit = replace(fit, change=fit.change + agreed(left, fit.change, noise, lit))
    jumps = tuple(int(chosen[j]) for j in fit.jumps)
    alone = kind == "none" or known.standing is not None  # of which the verdict says enough
    mistakable = known.turning and not alone and not fit.told
    base = Base(reference, fit, chosen, np.zeros(len(gain)), lit, jumps, mistakable)
    if known.turning and alone:
        bright = _passed(own - reference - fit.change, lit)
        base = replace(base, reference=reference + bright)
    level = gain
    if not known.absolute:
        level = gain + _levels(base, logs, exposure is not None)
    return replace(base, level=level)


def _size(fit: Fit) -> float:
    """Rms by which frames change in shape, between the jumps between which it is least."""
    change = fit.change[:, fit.lit]
    if not change.size:
        return 0.0
    parts = np.split(change - change.mean(1, keepdims=True), list(fit.jumps))
    return min(float(part.std()) for part in parts)


def is_unchanged(frames: Image, reference: Image) -> bool:
    """Whether a reference still holds for a sample that turns: beside it frames `(n, h, w)` show no more than
    the reference `(h, w)`, and it is known where that is; counts on the working grid.
    """
    mean = frames.mean(0)
    lit = _well_lit(mean)
    if not lit.any():
        return False
    logs = log_counts(frames, lit) - log_counts(reference, lit)
    usual = np.median(logs - np.median(logs[:, lit], 1)[:, None, None], 0)
    empty, sure = empty_cells(usual, lit)
    return sure and float(usual[empty].std()) < UNCHANGED


def _passed(left: Image, lit: NDArray[np.bool_]) -> Image:
    """How much brighter cells `(h, w)` are where a sample that turns has passed than in the middle of frames.

    Near the axis it stands in most frames, so that their middle shows it. `left` `(n, h, w)`: frames over
    the background so far; noise alone makes all cells alike in this. Where the sample has passed, two frames in
    a row are bright: a single one shows something else.
    """
    lasting = np.minimum(left[:-1], left[1:]) if len(left) > 1 else left
    above = np.quantile(lasting, PASSED, axis=0).astype(np.float32)
    if not lit.any():
        return np.zeros_like(above)
    above -= np.median(above[lit])
    usual = np.float32(1.4826) * np.median(np.abs(above[lit]))
    return np.where(lit & (above > CERTAIN * usual), above, np.float32(0))


def usual_light(known: Known) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Frames that are fitted, spread over the scan, and the cells `(h, w)` that are lit in them."""
    chosen = np.flatnonzero(known.usable)
    if len(chosen) > MOST_FRAMES:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MOST_FRAMES).round().astype(int)]
    return chosen, _well_lit(known.frames[chosen].mean(0))


def _well_lit(mean: Image) -> NDArray[np.bool_]:
    return np.asarray(mean > LEAST_LIGHT * np.quantile(mean, 0.95))


def log_counts(counts: Image, lit: NDArray[np.bool_], like: Image | None = None) -> Image:
    """Natural log, floored well below what is lit of `like`, by default these; `(..., h, w)`."""
    bright = (counts if like is None else like)[..., lit]
    floor = FLOOR * np.median(bright) if bright.size else 0.0
    return np.log(np.maximum(counts, max(floor, LEAST))).astype(np.float32)


def _reference(
    known: Known, logs: Image, lit: NDArray[np.bool_]
) -> tuple[Image, list[Group], list[Group]]:
    """What the background is compared with, the ways in which it may depart from that, and others that
    a bank does not know: a few references, or those of another night, don't span all that a beam does.
    """
    first, last = (None if x is None else log_counts(x, lit) for x in (known.before, known.after))
    if first is not None and last is not None:
        middle, half = (first + last) / np.float32(2), (last - first) / np.float32(2)
        # As it is: the line from one to the other.
        ends = Group(half[None], STRAIGHT, 1.0, 1.0, 1.0)
        size = half[lit].std() if lit.any() else np.float32(0)
        bends = np.concatenate([half[None], _broad(middle, lit, ORDERS, size)])
        bent = [
            Group(bends, BENT, 0.3, most=1.0),
            Group(_moved(middle, middle, lit), BENT, 0.3, most=1.0),
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
            Group(_broad(mean, lit, ORDERS), DRIFTING),
            Group(_moved(mean, mean, lit), DRIFTING),
        ]
        if first is not None:  # the detector may have changed since the bank was taken
            groups.append(Group((first - mean)[None], SLOW, most=1.5))
        return mean, groups, beyond
    if first is not None:
        groups = [
            Group(_broad(first, lit, ORDERS), DRIFTING, doubt=FRESH),
            Group(_moved(first, first, lit), DRIFTING, doubt=FRESH),
        ]
        # No sample stands still in a mosaic, nor where what stood was found: what all frames have is the beam
        # since then.
        since = logs - first
        still = bool(known.overlaps) or known.standing is not None
        if still and halves_agree(since, lit):
            common = in_common(since, lit)
            groups.append(Group(common[None], STRAIGHT, most=2.0))
            groups.append(Group(_moved(common, first, lit), DRIFTING, 0.5))
        return first, groups, []
    level = np.median(logs[:, lit], 1)[:, None, None] if lit.any() else np.zeros((1, 1, 1))
    median = (np.median(logs - level, 0) + np.median(level)).astype(np.float32)
    common = in_common(logs, lit)
    middle = median - fine(median, lit, COMMON_CELLS) + common
    groups = [
        Group(_broad(middle, lit, FINE_ORDERS), STEADY, 3.0, most=20.0),
        Group(_broad(middle, lit, FEW_ORDERS), MOVING),
        Group(_moved(middle, middle, lit)[:2], MOVING),  # what is fine there may be the sample
    ]
    if known.overlaps:
        groups.append(Group(_moved(common, middle, lit), MOVING, 0.5))
    return middle, groups, []


def _broad(reference: Image, lit: NDArray[np.bool_], most: int, size: np.float32 = BROAD) -> Image:
    """Cosines of a size, by default that of the drift that is expected."""
    return levelled(size * cosines(lit.shape, most), reference, lit)


def _moved(image: Image, reference: Image, lit: NDArray[np.bool_]) -> Image:
    """Change of an image that moves before a beam as bright as the reference."""
    return levelled(moved(image), reference, lit)


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
