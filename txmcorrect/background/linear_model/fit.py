"""Frames and single flats of one scan -> the background of every frame, without any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.light import log_counts, usual_light
from txmcorrect.background.linear_model.components import (
    Components,
    FlatModes,
    flat_modes,
    illumination_moves,
)
from txmcorrect.background.linear_model.levels import (
    Levels,
    LevelPrior,
    flat_levels,
    settle_levels,
    vacuum_levels,
)
from txmcorrect.background.linear_model.solve import Solution, solve

Image = NDArray[np.float32]
Array = NDArray[Any]

# Of the variance that flats show: what a bank of other days leaves to the offset of a whole scan, to its walk, and to
# jitter; evidence settles it.
BANK_FRACTIONS = (0.5, 0.3, 0.3)
FRESH_OFFSET = 0.02  # between a scan's own flats and its frames
UNSEEN_WALK = 0.1  # of the variance of one burst: how its components walk is not seen
# Square of shifts and zoom, in units of one per cent of the long side.
MOVES = (0.01, 0.01, 0.001)
MOVES_STRENGTH = 3.0


@dataclass(frozen=True)
class SingleFlats:
    """Flats one by one, on the working grid.

    `counts` `(m, h, w)` above dark, at the frames' exposure; `own` `(m,)` of the scan itself; `time` `(m,)` in
    scan durations, NaN where unknown; `photons` `(m,)` detected in a cell per count.
    """

    counts: Image
    own: NDArray[np.bool_]
    time: Array
    photons: Array


@dataclass(frozen=True)
class BackgroundFit:
    """The background of `n` frames: `mean` `(h, w)` flat, what `solution` adds, and `levels`."""

    mean: Image
    solution: Solution | None
    levels: Levels
    prior: LevelPrior
    lit: NDArray[np.bool_]

    def fields(self, frames: Array) -> Image:
        """Log background `(b, h, w)` of frames `(b,)`, natural log counts."""
        level = self.levels.level[frames].astype(np.float32)[:, None, None]
        change = 0 if self.solution is None else self.solution.change(frames)
        return np.asarray(self.mean + change + level, np.float32)


def moments_of(flats: SingleFlats, modes: FlatModes) -> Array:
    """Which burst each flat belongs to `(m,)`: taken within a tenth of a scan of the one before."""
    order = np.argsort(flats.time, kind="stable")
    moment = np.zeros(len(order), int)
    steps = np.diff(flats.time[order]) > 0.1
    moment[order[1:]] = np.cumsum(steps)
    return moment


def flat_components(flats: SingleFlats, modes: FlatModes) -> Components:
    """Components of flats, with what they say of how weights change."""
    m = len(modes.level)
    variance = modes.variance * (1 + 1 / m)
    if not timed(flats):
        return Components(
            "principal components of flats", modes.images, variance, *BANK_FRACTIONS, m - 1.0
        )
    moment = moments_of(flats, modes)
    bursts = [modes.scores[moment == i] for i in np.unique(moment)]
    count = sum(len(b) - 1 for b in bursts)
    within = sum(((b - b.mean(0)) ** 2).sum() for b in bursts) / max(count, 1)
    jitter = float(np.clip(within / max(variance.sum(), 1e-12), 0.02, 1.0)) if count else 0.3
    walk = max(1 - jitter, UNSEEN_WALK)
    return Components(
        "principal components of flats",
        modes.images,
        variance,
        FRESH_OFFSET,
        walk,
        jitter,
        m - 1.0,
        modes.scores,
    )


def timed(flats: SingleFlats) -> bool:
    """Whether all flats are the scan's own, at known times."""
    return bool(flats.own.all() and np.isfinite(flats.time).all())


def fit_background(
    frames: Image,
    usable: NDArray[np.bool_],
    flats: SingleFlats,
    photons: float,
    time: Array,
    record: Array,
    turning: bool,
) -> BackgroundFit:
    """Fit frames `(n, h, w)` of counts above dark.

    Parameters
    ----------
    photons : detected in a cell per count of a frame. time : `(n,)` 0 to 1. record : `(n,)` log of the recorded
    exposure over that which `flats` are scaled to, 0 where nothing is recorded.
    """
    lit = np.asarray((flats.counts.mean(0) > 0.03 * np.quantile(flats.counts.mean(0), 0.95)))
    logs = log_counts(flats.counts, lit)
    detected = (flats.counts * flats.photons[:, None, None]).mean(0)
    modes = flat_modes(logs, detected, lit)
    own = log_counts(frames, lit, flats.counts)
    shapes = own - modes.mean
    shapes = shapes - np.median(shapes[:, lit], 1)[:, None, None]
    groups = []
    if len(modes.images):
        groups.append(flat_components(flats, modes))
    moves = illumination_moves(modes.mean, lit, modes.images)
    groups.append(
        Components("illumination moves", moves, np.ones(3), *MOVES, MOVES_STRENGTH, mistakable=True)
    )
    flat_time = flats.time if timed(flats) else None
    solution = solve(shapes, lit, groups, time, flat_time, turning)
    every = np.arange(len(frames))
    prior = flat_levels(
        modes.level,
        moments_of(flats, modes) if flat_time is not None else np.zeros(len(modes.level), int),
        flat_time,
        time,
        record,
    )
    expected = modes.mean + solution.change(every) + prior.mean.astype(np.float32)[:, None, None]
    noise = 1 / np.sqrt(np.maximum(photons * np.maximum(frames, 1e-3), 1))
    found = vacuum_levels(own - expected, noise, lit, solution.vacuum, prior)
    if turning and solution.vacuum is None:
        found = np.zeros(len(frames)), np.full(len(frames), np.inf)
    levels = settle_levels(prior, time, *found)
    return BackgroundFit(modes.mean, solution, levels, prior, lit)
