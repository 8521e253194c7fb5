"""Frames and single flats of one scan -> the background of every frame, without any network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.background.agreed import agreed
from txmcorrect.background.base import Base, find_base
from txmcorrect.background.light import LEAST_LIGHT, log_counts, usual_light
from txmcorrect.background.linear_model.components import (
    FEWEST_FLATS,
    Components,
    FlatModes,
    SingleFlats,
    apart_from,
    flat_modes,
    illumination_moves,
)
from txmcorrect.background.linear_model.levels import (
    LevelPrior,
    Levels,
    flat_levels,
    settle_levels,
    vacuum_levels,
)
from txmcorrect.background.linear_model.solve import Solution, solve
from txmcorrect.background.modes import cosines
from txmcorrect.background.overlaps import find_overlaps
from txmcorrect.background.quality import Expected
from txmcorrect.background.scale import LEAST

if TYPE_CHECKING:
    from txmcorrect.background.known import Known

Image = NDArray[np.float32]
Array = NDArray[Any]

# Of the variance that flats show: what a bank of other days leaves to the offset of a whole scan, to its
# walk, and to jitter; evidence settles it.
BANK_FRACTIONS = (0.5, 0.3, 0.3)
FRESH_OFFSET = 0.02  # between a scan's own flats and its frames
UNSEEN_WALK = 0.1  # of the variance of one burst: how its components walk is not seen
LEAST_JITTER = 0.02
BURST = 0.1  # scan durations between flats of one burst
# Square of shifts and zoom, in units of one per cent of the long side: offset, walk, jitter.
MOVES = (0.01, 0.01, 0.001)
MOVES_STRENGTH = 3.0
FINE_CELLS, LEAST_FINE = 4.0, 0.1  # cells of the working grid; of the power of what moves
BRACKETED = (1e-8, 0.01, 0.001)  # where flats around the scan show nothing of it
# Cosines of up to so many half periods, rms of the broadest in natural log; they count only where vacuum
# is visible or frames overlap, and not beside a bank, which knows what the beam does.
BROAD, BROAD_ORDERS = 0.03, 5
BROAD_FRACTIONS, BROAD_STRENGTH = (0.01, 0.01), 3.0
A_BANK, FEW_COMPONENTS = 8, 3  # flats of other moments, and what they show
OPAQUE = 1.4  # natural log: the median frame keeps less than a quarter of the light
# Cells count as vacuum where they lie within so many deviations of the expected level, and this at least
# (natural log).
VACUUM_STD, LEAST_TOLERANCE = 4.0, 0.05
BATCH = 96  # frames that are fitted at once


# Expected errors: times what the fit says of itself; of a drift that was found, the part that is missed;
# natural log.
OWN_DOUBT = 3.0
MISSED = {"bank": 0.15, "before and after": 0.25, "one moment": 0.35}
UNSEEN_DRIFT, LEAST_ERROR = 0.015, 0.001
SEEN = 0.5  # of the frames, in which vacuum shows what the beam does
COLUMN = 0.5  # of a column's cells are vacuum
EQUAL = "exposure not recorded, taken as equal"


@dataclass(frozen=True)
class BackgroundFit:
    """The background of `n` frames, natural log counts on the working grid.

    Attributes
    ----------
    mean : `(h, w)` of the flats, 0 on average. solution : what comes on top. common : `(m, h, w)` what the
    residuals of the frames `fitted` `(m,)` have in common (mosaics), or None. levels : of frames. prior :
    what was expected of them. lit : `(h, w)`. doubt : factor on what the fit says of its own errors
    (calibration). notes : in words.
    known_from : what flats say of the drift, a key of `MISSED`; exposed : exposures are recorded.
    """

    mean: Image
    solution: Solution | DriftShapes
    common: Image | None
    fitted: NDArray[np.intp]
    levels: Levels
    prior: LevelPrior
    lit: NDArray[np.bool_]
    doubt: float = 1.0
    notes: tuple[str, ...] = ()

    known_from: str = "one moment"
    exposed: bool = True
    jumps: tuple[int, ...] = ()
    mistakable: bool = False

    def expected(self) -> Expected:
        """Errors to be expected, by what was measured on simulated worlds of the development family.

        What the fit says of itself knows nothing of what its components cannot express: of a drift that was
        found a part is missed, the more the less flats tell of it; and flats of one moment say nothing of a
        drift that the frames do not show either.
        """
        every = np.arange(len(self.levels.level))
        shape = np.empty(len(every))
        missed = MISSED[self.known_from]
        for start in range(0, len(every), BATCH):
            some = every[start : start + BATCH]
            std = self.solution.std(some)[:, self.lit]
            change = self.solution.change(some)[:, self.lit]
            change = change - change.mean(1, keepdims=True)
            shape[some] = np.hypot(OWN_DOUBT * np.sqrt((std**2).mean(1)), missed * change.std(1))
        blind = self.known_from == "one moment" and self.levels.observed.mean() < SEEN
        shape = np.hypot(shape, UNSEEN_DRIFT if blind else LEAST_ERROR)
        assumed = "" if self.exposed or self.levels.observed.any() else EQUAL
        return Expected(shape, self.levels.relative, self.levels.absolute, assumed)

    def decided(self, factor: int) -> str:
        """What the background was found from, in words; `factor` : pixels of a cell's side."""
        if isinstance(self.solution, DriftShapes):
            return "fit of smooth drifts over the mean flat, no network asked"
        count = len(self.solution.images)
        said = f"linear model of flats and frames ({count} components), no network asked"
        vacuum = self.solution.vacuum
        if vacuum is None or not vacuum.any():
            return said
        columns = np.flatnonzero(vacuum.mean(0) > COLUMN)
        runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if len(columns) else []
        places = ", ".join(f"{r[0] * factor}-{(r[-1] + 1) * factor - 1}" for r in runs)
        return f"{said}; vacuum beside the sample in columns {places or 'here and there'}"

    def fields(self, frames: NDArray[np.intp]) -> Image:
        """Log background `(b, h, w)` of frames `(b,)`."""
        level = self.levels.level[frames].astype(np.float32)[:, None, None]
        return np.asarray(self.shapes(frames) + level, np.float32)

    def shapes(self, frames: NDArray[np.intp]) -> Image:
        """The same without levels."""
        found = self.mean + self.solution.change(frames)
        if self.common is not None:
            nearest = np.abs(frames[:, None] - self.fitted[None]).argmin(1)
            found = found + self.common[nearest]
        return np.asarray(found, np.float32)

    def std(self, frames: NDArray[np.intp]) -> Image:
        """Deviation `(b, h, w)` of the shape of frames `(b,)`."""
        return np.asarray(np.float32(self.doubt) * self.solution.std(frames))

    def deviation(self, frames: NDArray[np.intp], rng: np.random.Generator) -> Image:
        """A draw of what `std` is the deviation of, `(b, h, w)`; of all frames alike, whichever are asked."""
        return np.asarray(np.float32(self.doubt) * self.solution.deviation(frames, rng))


@dataclass(frozen=True)
class DriftShapes:
    """What the fit of smooth drifts (`base`) puts on top of the mean flat.

    It knows broad modes and what stands of a sample, which a few flats of one moment say nothing of.
    """

    base: Base
    mean: Image
    weight: Image  # `(h, w)` photons of cells, by which levels are counted
    vacuum: NDArray[np.bool_] | None = None

    def change(self, frames: NDArray[np.intp]) -> Image:
        """Log background over the mean flat `(b, h, w)` of frames `(b,)`, without level."""
        apart = self.base.fields(frames) - self.mean
        level = (apart * self.weight).sum((1, 2)) / self.weight.sum()
        return np.asarray(apart - level[:, None, None].astype(np.float32), np.float32)

    def std(self, frames: NDArray[np.intp]) -> Image:
        """Deviation `(b, h, w)` of that."""
        return self.base.std(frames)

    def deviation(self, frames: NDArray[np.intp], rng: np.random.Generator) -> Image:
        """A draw of it, `(b, h, w)`."""
        return self.base.deviation(frames, rng)


def fit_referenced(known: Known, doubt: float = 1.0) -> BackgroundFit:
    """Fit a scan that has flats."""
    flats, time, record = known.flats, known.time, known.record
    assert flats is not None and time is not None and record is not None
    chosen, _ = usual_light(known)
    every = np.flatnonzero(known.usable)
    lit = _lit(flats, known.frames[chosen])
    logs = log_counts(flats.counts, lit)
    detected = (flats.counts * flats.photons[:, None, None]).mean(0)
    modes = flat_modes(logs, detected, lit)

    def over_flats(frames: NDArray[np.intp]) -> Image:
        found = log_counts(known.frames[frames], lit, flats.counts) - modes.mean
        return np.asarray(found, np.float32)

    prior = level_prior(flats, modes, time, record)
    solution, common = _shapes(known, flats, modes, lit, chosen, every, over_flats, prior)
    fit = BackgroundFit(
        modes.mean,
        solution,
        common,
        chosen,
        Levels(prior.mean, np.zeros(len(time)), np.zeros(len(time), bool), 0.0, False),
        prior,
        lit,
        doubt,
    )
    offset, std = np.zeros(len(time)), np.full(len(time), np.inf)
    if not known.turning or solution.vacuum is not None:
        for start in range(0, len(every), BATCH):
            some = every[start : start + BATCH]
            left = over_flats(some) + modes.mean - fit.fields(some)
            counts = np.maximum(known.frames[some], LEAST)
            noise = (1 / np.sqrt(np.maximum(known.photons * counts, 1))).astype(np.float32)
            offset[some], std[some] = vacuum_levels(left, noise, lit, solution.vacuum, prior)
    levels = settle_levels(prior, time, offset, std, solution.vacuum is not None)
    return replace(
        fit,
        levels=levels,
        notes=level_notes(levels),
        known_from=what_is_known(flats, modes),
        exposed=known.exposed,
    )


def what_is_known(flats: SingleFlats, modes: FlatModes) -> str:
    """How much flats say of a drift, as a key of `MISSED`."""
    if has_bank(flats, modes):
        return "bank"
    return "before and after" if is_bracketed(flats) else "one moment"


def has_bank(flats: SingleFlats, modes: FlatModes) -> bool:
    """Whether flats of other days show how the beam changes."""
    return bool((~flats.timed).sum() >= A_BANK and len(modes.images) >= FEW_COMPONENTS)


def is_bracketed(flats: SingleFlats) -> bool:
    """Whether flats of several moments lie around the scan or in it."""
    return len(np.unique(bursts_of(flats.time[flats.timed]))) > 1


def _shapes(
    known: Known,
    flats: SingleFlats,
    modes: FlatModes,
    lit: NDArray[np.bool_],
    chosen: NDArray[np.intp],
    every: NDArray[np.intp],
    over_flats: Callable[[NDArray[np.intp]], Image],
    prior: LevelPrior,
) -> tuple[Solution | DriftShapes, Image | None]:
    """What comes on top of the mean flat, and what residuals of the frames `chosen` have in common.

    A single flat, or flats of one moment that show no change, say nothing of how the beam drifts. Then the
    fit of smooth drifts knows more where something else does: overlaps, a standing sample that was found, or
    cells beside a turning one that are empty beyond doubt. It is used as well with one or two flats of unknown
    age where frames show no vacuum, but not with a burst, which belongs to the scan: there it would do harm.
    """
    time, record = known.time, known.record
    assert time is not None and record is not None
    expected = np.zeros(len(time))
    for start in range(0, len(every), BATCH):
        some = every[start : start + BATCH]
        expected[some] = prior.mean[some] - np.median(over_flats(some)[:, lit], 1)
    opaque = float(np.median(expected[every])) > OPAQUE
    silent = not len(modes.images) and not flats.timed.any() and not opaque
    old = silent and len(flats.counts) < FEWEST_FLATS and not known.turning

    def smooth_drift() -> tuple[DriftShapes, None]:
        weight = np.where(lit, flats.counts.mean(0), np.float32(0))
        return DriftShapes(find_base(known), modes.mean, weight), None

    if silent and (known.turning or known.overlaps):
        smooth = smooth_drift()
        if not known.turning or known.standing is not None or smooth[0].base.fit.told:
            return smooth

    def without_levels(frames: NDArray[np.intp]) -> Image:
        found = over_flats(frames)
        return found - np.median(found[:, lit], 1)[:, None, None]

    groups = list(component_groups(flats, modes, lit, known.turning, opaque))
    tolerance = max(VACUUM_STD * prior.deviation, LEAST_TOLERANCE)
    flat_time = flats.time[flats.timed] if flats.timed.any() else None
    at = np.interp(np.arange(len(time)), chosen, np.arange(len(chosen)))
    overlaps = find_overlaps(known.overlaps, modes.mean, record, lit, at)
    if not groups:
        return Solution.nothing(len(time), lit.shape), None
    found = solve(
        without_levels(chosen),
        lit,
        groups,
        time[chosen],
        flat_time,
        known.turning,
        overlaps,
        expected[chosen],
        tolerance,
    )
    if old and not found.sees_vacuum:
        return smooth_drift()
    solution = found.extended(chosen, every, len(time), time, without_levels, BATCH, expected)
    if known.turning:
        return solution, None
    left = without_levels(chosen) - solution.change(chosen)
    counts = np.maximum(known.frames[chosen].mean(0), LEAST)
    noise = (1 / np.sqrt(known.photons * counts)).astype(np.float32)
    return solution, agreed(left, solution.change(chosen), noise, lit)


def level_notes(levels: Levels) -> tuple[str, ...]:
    """What is to be said of a contradiction."""
    if not levels.contradicts:
        return ()
    ratio = float(np.exp(levels.offset))
    return (
        f"vacuum reads {ratio:.2f} at the references' level: exposure or current of references and frames "
        "differ by more than is recorded",
    )


def _lit(flats: SingleFlats, frames: Image) -> NDArray[np.bool_]:
    """Cells `(h, w)` with light in the flats, all of them."""
    mean = flats.counts.mean(0)
    return np.asarray(mean > LEAST_LIGHT * np.quantile(mean, 0.95))


def component_groups(
    flats: SingleFlats, modes: FlatModes, lit: NDArray[np.bool_], turning: bool, opaque: bool
) -> Iterator[Components]:
    """All that the background may do; behind an `opaque` sample only what flats show.

    Little light is left there, of which scattered and direct light are a part that does not scale with T.
    """
    if len(modes.images):
        yield flat_components(flats, modes)
    if opaque:
        return
    moves = illumination_moves(modes.mean, lit, modes.images)
    timed, bracketed = flats.timed, is_bracketed(flats)

    def unseen(images: Image) -> Array | None:
        """Flats around the scan show none of it then, so that it is small in between; others say nothing."""
        return np.zeros((int(timed.sum()), len(images))) if bracketed else None

    yield Components(
        "shift and zoom of the illumination",
        moves,
        np.ones(len(moves)),
        *(BRACKETED if bracketed else MOVES),
        MOVES_STRENGTH,
        unseen(moves),
        mistakable=turning or is_broad(moves, lit),
    )
    if not has_bank(flats, modes):
        waves = np.float32(BROAD) * cosines(lit.shape, BROAD_ORDERS)
        waves = apart_from(waves, np.concatenate([modes.images, moves]), lit)
        yield Components(
            "broad change",
            waves,
            np.ones(len(waves)),
            *(BRACKETED[:2] if bracketed else BROAD_FRACTIONS),
            0.0,
            BROAD_STRENGTH,
            unseen(waves),
            mistakable=True,
        )


def is_broad(images: Image, lit: NDArray[np.bool_]) -> bool:
    """Whether images `(k, h, w)` have little that is fine, by which they are told from a sample that is
    broad, too.
    """
    fine = images - gaussian_filter(images, (0, FINE_CELLS, FINE_CELLS))
    power = [float((x[:, lit] ** 2).mean()) for x in (fine, images)]
    return power[0] < LEAST_FINE * power[1]


def flat_components(flats: SingleFlats, modes: FlatModes) -> Components:
    """Components of flats, with what they say of how weights change."""
    m = len(modes.level)
    variance = modes.variance * (1 + 1 / m)
    name, timed = "principal components of flats", flats.timed
    if not timed.any():
        return Components(name, modes.images, variance, *BANK_FRACTIONS, m - 1.0)
    scores = modes.scores[timed]
    if not timed.all():
        return Components(
            name, modes.images, variance, FRESH_OFFSET, *BANK_FRACTIONS[1:], m - 1.0, scores
        )
    moment = bursts_of(flats.time)
    bursts = [modes.scores[moment == i] for i in np.unique(moment)]
    count = sum(len(b) - 1 for b in bursts)
    jitter = BANK_FRACTIONS[2]
    if count:
        within = sum(((b - b.mean(0)) ** 2).sum() for b in bursts) / count
        jitter = float(np.clip(within / max(variance.sum(), 1e-12), LEAST_JITTER, 1.0))
    walk = max(1 - jitter, UNSEEN_WALK)
    return Components(name, modes.images, variance, FRESH_OFFSET, walk, jitter, m - 1.0, scores)


def bursts_of(time: Array) -> Array:
    """Which burst each flat belongs to `(m,)`."""
    order = np.argsort(time, kind="stable")
    burst = np.zeros(len(order), int)
    burst[order[1:]] = np.cumsum(np.diff(time[order]) > BURST)
    return burst


def level_prior(flats: SingleFlats, modes: FlatModes, time: Array, record: Array) -> LevelPrior:
    """Expected levels of frames: those of the flats taken near the scan, else of all."""
    timed = flats.timed
    if not timed.any():
        return flat_levels(modes.level, np.zeros(len(modes.level), int), None, time, record)
    at = flats.time[timed]
    return flat_levels(modes.level[timed], bursts_of(at), at, time, record)
