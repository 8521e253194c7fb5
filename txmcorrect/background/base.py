"""Frames and references of one scan -> its background without any network, and how sure that is.

Every reference setting is the same fit (`drift`) with other modes (`departures`), and moves of what a first
fit finds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.agreed import agreed
from txmcorrect.background.departures import FEW_ORDERS, broad, departures, moved_before
from txmcorrect.background.drift import More, fit_drift
from txmcorrect.background.groups import ABRUPT, MOVING, STRAIGHT, Fit, Group
from txmcorrect.background.keyframes import interpolate
from txmcorrect.background.known import Known, kind_of
from txmcorrect.background.light import log_counts, usual_light, well_lit
from txmcorrect.background.overlaps import find_overlaps
from txmcorrect.background.scale import LEAST
from txmcorrect.background.steps import empty_cells

Image = NDArray[np.float32]

RECORDED = 0.003  # natural log: how far simulated beams drift from recorded exposures
PASSED, CERTAIN = 0.9, 3.0  # quantile of frames; robust deviations of cells
UNCHANGED = 0.004  # natural log, rms: a reference that is off by less holds
SIMPLER = 0.67  # of a change, by which a fit is believed that needs so much less of it


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
    reference, groups, beyond = departures(known, own, lit)
    groups.append(Group(broad(reference, lit, FEW_ORDERS), ABRUPT, most=20.0))
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
            moved_before(reference + change, reference, lit), MOVING if kind == "none" else STRAIGHT
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
    lit = well_lit(mean)
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
