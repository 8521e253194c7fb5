"""How bright the beam was in each frame: a prior from references and records, evidence from visible vacuum.

Prior: the flats' own levels, carried through the scan as far as these say (`flat_levels`). Evidence: cells
that no sample reaches, or, in sparse frames, the narrow peak that empty cells make among all ratios of a
frame to its background. Both are Gaussian and are joined; a contradiction is said, never switched on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Array = NDArray[Any]

# Natural log. Shutters repeat to a few tenths of a per cent; beams wander by one per cent in a scan (DESIGN).
LEAST_SCATTER, WANDER = 0.003, 0.01
MEMORY = 1.0  # scan durations over which a beam's level forgets
MISFIT = (
    0.002  # natural log, rms: what a fitted background is off by in a cell, beside photon noise
)
SHARED_MISFIT = 0.001  # of it, what does not average out over cells
FEWEST_CELLS = 16  # of vacuum
# A peak of vacuum: cells within NEAR deviations of it, compared with those between SIDE[0] and SIDE[1].
NEAR, SIDE = 1.5, (3.0, 6.0)
CERTAIN = 6.0  # deviations by which a peak exceeds its sides
LEAST_SHARE = 0.03  # of the lit cells
REACH = 4.0  # deviations of the prior within which a peak is looked for
OUTLIER, MOST_OUTLIERS = 3.0, 0.3  # deviations from what others say; fraction of the frames
WIDE = 0.3  # natural log
CONTRADICTION = 4.0  # deviations of the prior


@dataclass(frozen=True)
class LevelPrior:
    """Expected log level `(n,)` of frames; deviations of a part that all share, that wanders, and of each
    alone.
    """

    mean: Array
    shared: float
    walk: float
    jitter: float

    def covariance(self, time: Array) -> Array:
        """Between frames at times `(n,)`: `(n, n)`."""
        apart = np.abs(time[:, None] - time[None])
        same = self.walk**2 * np.exp(-apart / MEMORY) + self.shared**2
        return np.asarray(same + self.jitter**2 * np.eye(len(time)))

    @property
    def deviation(self) -> float:
        return float(np.sqrt(self.shared**2 + self.walk**2 + self.jitter**2))


@dataclass(frozen=True)
class Levels:
    """Log level of frames `(n,)` and its deviation; `observed` `(n,)`: frames in which vacuum was seen.

    `offset`: mean of what vacuum says over what was expected, `contradicts`: it is more than chance.
    `absolute`, `relative`: deviation of the mean of all levels, and of levels about that.
    """

    level: Array
    std: Array
    observed: Mask
    offset: float
    contradicts: bool
    absolute: float = 0.0
    relative: float = 0.0


def flat_levels(
    level: Array, moment: Array, flat_time: Array | None, time: Array, record: Array
) -> LevelPrior:
    """What flats say of the level of frames.

    Parameters
    ----------
    level : `(m,)` log level of each flat, at the exposure of the frames. moment : `(m,)` which burst it is of.
    flat_time : `(m,)` in scan durations, 0 to 1 within the scan; None where unknown or long ago.
    time : `(n,)` of frames; record : `(n,)` log of recorded exposure.
    """
    moments = [level[moment == i] for i in np.unique(moment)]
    count = sum(len(m) - 1 for m in moments)
    within = sum(((m - m.mean()) ** 2).sum() for m in moments)
    jitter = max(np.sqrt(within / count) if count else 0.0, LEAST_SCATTER)
    if flat_time is None:
        spread = float(level.std(ddof=1)) if len(level) > 1 else WANDER
        shared = max(spread, LEAST_SCATTER) * np.sqrt(1 + 1 / len(level))
        return LevelPrior(level.mean() + record, shared, min(spread, WANDER), jitter)
    # Kriging: flats are observations of the same wandering level, at their own times.
    means = np.array([m.mean() for m in moments])
    between = float(np.ptp(means)) / 2 if len(means) > 1 else WANDER
    walk = max(between, LEAST_SCATTER)
    known = walk**2 * np.exp(-np.abs(flat_time[:, None] - flat_time[None]) / MEMORY)
    known = known + jitter**2 * np.eye(len(level))
    cross = walk**2 * np.exp(-np.abs(time[:, None] - flat_time[None]) / MEMORY)
    inverse = np.linalg.inv(known)
    centre = float(inverse.sum(0) @ level / inverse.sum())
    mean = centre + cross @ (inverse @ (level - centre))
    left = walk**2 - np.einsum("nm,mk,nk->n", cross, inverse, cross)
    return LevelPrior(
        mean + record, jitter / np.sqrt(len(level)), float(np.sqrt(max(left.mean(), 0.0))), jitter
    )


def vacuum_levels(
    left: Image, noise: Image, lit: Mask, vacuum: Mask | None, prior: LevelPrior
) -> tuple[Array, Array]:
    """Log level of frames `(n,)` over the prior's mean by what vacuum they show, and its deviation (inf: none).

    Parameters
    ----------
    left : `(n, h, w)` log of frames over background and expected level. noise : `(n, h, w)` deviation of a
    cell. vacuum : `(h, w)` cells that no sample reaches; None: looked for frame by frame.
    """
    n = len(left)
    offset, std = np.zeros(n), np.full(n, np.inf)
    for i in range(n):
        width = np.hypot(noise[i], MISFIT)
        if vacuum is not None:
            cells = vacuum & lit
            if cells.sum() < FEWEST_CELLS:
                continue
            weight = 1 / width[cells] ** 2
            offset[i] = float(np.average(left[i][cells], weights=weight))
            std[i] = float(np.hypot(1 / np.sqrt(weight.sum()), SHARED_MISFIT))
        else:
            found = _peak(left[i][lit], width[lit], prior.deviation)
            if found is not None:
                offset[i], std[i] = found
    return offset, std


def _peak(values: Array, width: Array, expected: float) -> tuple[float, float] | None:
    """Where cells `(p,)` of noise `width` `(p,)` make a narrow peak near 0, and how sure that is; None:
    nowhere.

    Empty cells differ by noise alone. A textured sample has no such peak: at the scale of the noise its values
    are spread evenly.
    """
    best: tuple[float, float, float] | None = None
    usual = float(np.median(width))
    reach = REACH * expected + NEAR * usual
    for centre in np.arange(-reach, reach + usual / 4, usual / 2):
        apart = np.abs(values - centre) / width
        near = np.count_nonzero(apart < NEAR)
        side = np.count_nonzero((apart > SIDE[0]) & (apart < SIDE[1]))
        chance = side * NEAR / (SIDE[1] - SIDE[0])
        excess = near - chance
        if excess < CERTAIN * np.sqrt(chance + 1) or excess < LEAST_SHARE * len(values):
            continue
        likely = excess * np.exp(-0.5 * (centre / expected) ** 2)
        if best is None or likely > best[0]:
            best = likely, float(centre), float(excess)
    if best is None or best[2] < FEWEST_CELLS:
        return None
    centre = best[1]
    for _ in range(5):  # the mean of what is near, to the cells' own weights
        close = np.abs(values - centre) < NEAR * width
        centre = float(np.average(values[close], weights=1 / width[close] ** 2))
    return centre, float(np.hypot(usual / np.sqrt(best[2]), 2 * SHARED_MISFIT))


# A uniform film under everything makes the same peak as vacuum, a little darker: as likely as not,
# anywhere down to SUBSTRATE. What is brighter may be a halo of phase contrast, less likely.
SUBSTRATE, SUBSTRATE_ODDS, HALO_ODDS = 0.2, 0.5, 0.1


def settle_levels(
    prior: LevelPrior, time: Array, offset: Array, std: Array, certain: bool = False
) -> Levels:
    """Join prior and evidence: levels of frames and their deviations.

    `time`, `offset`, `std` `(n,)`. `certain` : what was seen is vacuum; else it may be one uniform film
    that all frames show, so that differences between frames count in full, and their mean as far as it is
    likely.
    """
    std = without_outliers(prior, time, offset, std)
    seen = np.isfinite(std)
    believed, mean = 1.0, float(offset[seen].mean()) if seen.any() else 0.0
    if seen.any() and not certain:
        width = np.hypot(prior.deviation, SHARED_MISFIT)
        vacuum = np.exp(-0.5 * (mean / width) ** 2) / (np.sqrt(2 * np.pi) * width)
        film = (SUBSTRATE_ODDS if mean < 0 else HALO_ODDS) / SUBSTRATE
        believed = float(vacuum / (vacuum + film))
        offset = np.where(seen, offset - (1 - believed) * mean, offset)
    covariance = prior.covariance(time)
    if not seen.any():
        return _levels(prior.mean, covariance, seen, 0.0, False)
    cross = covariance[:, seen]
    inner = np.linalg.inv(covariance[np.ix_(seen, seen)] + np.diag(std[seen] ** 2))
    change = cross @ (inner @ offset[seen])
    contradicts = believed > 0.5 and abs(mean) > CONTRADICTION * prior.deviation
    left = covariance - cross @ inner @ cross.T
    found = _levels(prior.mean + change, left, seen, mean, contradicts)
    doubtful = float(np.sqrt(believed * (1 - believed))) * abs(
        mean
    )  # vacuum or film: one for all frames
    return replace(found, absolute=float(np.hypot(found.absolute, doubtful)))


def without_outliers(prior: LevelPrior, time: Array, offset: Array, std: Array) -> Array:
    """Deviations `(n,)` with inf where a frame contradicts all others: what it shows is no vacuum."""
    std = std.copy()
    common = WIDE**2  # what all share is settled elsewhere
    covariance = prior.covariance(time) + common
    for _ in range(int(MOST_OUTLIERS * np.isfinite(std).sum())):
        seen = np.flatnonzero(np.isfinite(std))
        inverse = np.linalg.inv(covariance[np.ix_(seen, seen)] + np.diag(std[seen] ** 2))
        # Leave-one-out residuals of a Gaussian process (Rasmussen and Williams 2006, eq. 5.12).
        apart = (inverse @ offset[seen]) / np.sqrt(np.diag(inverse))
        apart = np.abs(apart - np.median(apart))
        worst = int(apart.argmax())
        if apart[worst] < OUTLIER * max(1.0, 1.4826 * float(np.median(apart))):
            break
        std[seen[worst]] = np.inf
    return std


def _levels(
    level: Array, covariance: Array, seen: Mask, offset: float, contradicts: bool
) -> Levels:
    """Levels and their deviations from the covariance `(n, n)` between frames."""
    variance = np.maximum(np.diag(covariance), 0)
    shared = max(float(covariance.mean()), 0.0)
    return Levels(
        level,
        np.sqrt(variance),
        seen,
        offset,
        contradicts,
        float(np.sqrt(shared)),
        float(np.sqrt(max(variance.mean() - shared, 0.0))),
    )
