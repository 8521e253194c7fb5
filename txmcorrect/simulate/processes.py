"""How a beam changes in time: stationary processes at any times, their jitter, trends, ring currents.

Times are in durations of the scan: it lasts from 0 to 1. Each family has processes of its own (the
table in `worlds`). Stationary ones have mean zero and unit variance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.simulate.beam import Family, wander

Times = NDArray[np.float64]
Scores = NDArray[np.float64]
WAVES = 48  # cosines that make up one random course
EARLIEST, LATEST = -1.0, 2.0  # a trend goes on this far beyond the scan; older times are other days
GRID = 193  # points of a trend between these
ORDER = 3  # of a polynomial trend


def ornstein_uhlenbeck(
    rng: np.random.Generator, times: Times, correlation: float, k: int
) -> Scores:
    """`(m, k)` with autocorrelation `exp(-|dt| / correlation)`, exact at any times."""
    order = np.argsort(times)
    keep = np.exp(-np.diff(times[order]) / correlation)
    noise = rng.standard_normal((len(times), k))
    noise[1:] *= np.sqrt(1 - keep**2)[:, None]
    found = np.empty_like(noise)
    for i, at in enumerate(order):
        found[at] = noise[i] + (keep[i - 1] * found[order[i - 1]] if i else 0)
    return found


def random_waves(rng: np.random.Generator, times: Times, correlation: float, k: int) -> Scores:
    """`(m, k)`, smooth: autocorrelation `exp(-(dt / correlation)**2)`, as a sum of cosines."""
    rate = rng.standard_normal((k, WAVES)) * np.sqrt(2) / correlation
    phase = rng.uniform(0, 2 * np.pi, (k, WAVES))
    return np.sqrt(2 / WAVES) * np.cos(times[:, None, None] * rate + phase).sum(-1)


def held_and_led(rng: np.random.Generator, times: Times, correlation: float, k: int) -> Scores:
    """`(m, k)`, piecewise linear between independent knots `correlation` apart, with unit variance."""
    at = times / correlation + rng.uniform(0, 1)
    first = int(np.floor(at.min()))
    values = rng.standard_normal((int(np.floor(at.max())) - first + 2, k))
    whole = np.floor(at).astype(int)
    part = (at - whole)[:, None]
    led = (1 - part) * values[whole - first] + part * values[whole - first + 1]
    return np.asarray(led / np.sqrt((1 - part) ** 2 + part**2))


PROCESSES: dict[Family, Callable[[np.random.Generator, Times, float, int], Scores]] = {
    "train": ornstein_uhlenbeck,
    "develop": random_waves,
    "benchmark": held_and_led,
}
# Without memory, `(m, k)`: Gaussian, heavy tails, bounded.
JITTERS: dict[Family, Callable[[np.random.Generator, tuple[int, int]], Scores]] = {
    "train": lambda rng, size: rng.standard_normal(size),
    "develop": lambda rng, size: rng.laplace(0, np.sqrt(0.5), size),
    "benchmark": lambda rng, size: rng.uniform(-np.sqrt(3), np.sqrt(3), size),
}


def _wandering(rng: np.random.Generator, t: Times, k: int) -> Scores:
    """The path of `beam.wander`, over three durations instead of one."""
    return np.concatenate([wander(rng, len(t)) for _ in range(-(-k // 6))], 1)[:, :k]


def _polynomial(rng: np.random.Generator, t: Times, k: int) -> Scores:
    """A line that bends."""
    weights = rng.standard_normal((ORDER, k)) * (0.5 ** np.arange(ORDER))[:, None]
    bends: Any = np.polynomial.legendre.legvander(2 * t / 3 - 1 / 3, ORDER)[:, 1:]
    return np.asarray(bends @ weights)


def _settling(rng: np.random.Generator, t: Times, k: int) -> Scores:
    """Optics that warm up, each at its own rate, and breathe a little."""
    rate, phase = rng.uniform(0.3, 3, (2, k))
    warm = (1 - np.exp(-rate * (t[:, None] - EARLIEST))) * rng.standard_normal(k)
    return warm + 0.1 * rng.standard_normal(k) * np.sin(4 * t[:, None] + 2 * phase)


TRENDS: dict[Family, Callable[[np.random.Generator, Times, int], Scores]] = {
    "train": _wandering,
    "develop": _polynomial,
    "benchmark": _settling,
}


def trend(rng: np.random.Generator, times: Times, family: Family, k: int) -> Scores:
    """`(m, k)` of a course that goes on from `EARLIEST` to `LATEST`, 0 at time 0.

    Before that lie other days: independent states, about as far apart as the scan's ends.
    """
    grid = np.linspace(EARLIEST, LATEST, GRID)
    course = TRENDS[family](rng, grid, k)
    found = np.stack([np.interp(times, grid, c) - np.interp(0.0, grid, c) for c in course.T], 1)
    ends = [np.interp(1.0, grid, c) - np.interp(0.0, grid, c) for c in course.T]
    elsewhere = JITTERS[family](rng, (len(times), k)) * np.abs(ends)
    return np.where((times < EARLIEST)[:, None], elsewhere, found)


def steps_at(rng: np.random.Generator) -> Times:
    """Times of sudden changes: one or two within the scan, now and then on earlier days."""
    inside = rng.uniform(0.1, 0.9, int(rng.integers(1, 3)))
    return np.sort(np.concatenate([rng.uniform(-300, -0.5, 100), inside]))


def steps(
    rng: np.random.Generator, times: Times, at: Times, family: Family, k: int
) -> tuple[Scores, Scores]:
    """`(m, k)` that jumps `at` some times and stays; and the two states `(2, k)` about the first in the scan.

    Training jumps to new states; development overshoots and settles; the benchmark changes between two.
    """
    states = rng.standard_normal((len(at) + 1, k))
    if family == "benchmark":
        states = states[:2][np.arange(len(at) + 1) % 2]
    index = np.searchsorted(at, times, side="right")
    found = states[index]
    if family == "develop":
        since = times - at[np.maximum(index - 1, 0)]
        rise = states[index] - states[np.maximum(index - 1, 0)]
        found = found + 0.5 * rise * np.exp(-np.maximum(since, 0) / 0.05)[:, None]
    first = int(np.searchsorted(at, 0.0))
    return found, states[first : first + 2]


# log current over the phase (0 to 1) between top-ups, in units of its depth.
TEETH: dict[Family, Callable[[Times], Times]] = {
    "train": lambda phase: -phase,
    "develop": lambda phase: -(1 - np.exp(-2 * phase)) / (1 - np.exp(-2.0)),
    "benchmark": lambda phase: -(phase**0.7),
}


def sawtooth(times: Times, family: Family, depth: float, period: float, start: float) -> Times:
    """Log ring current `(m,)`: decay by `depth`, then a top-up, every `period`."""
    return depth * TEETH[family]((times / period + start) % 1)


def heat(
    times: Times, family: Family, period: float, start: float, lag: float
) -> NDArray[np.float64]:
    """A `sawtooth` as optics follow it `(m,)`: low-pass of time constant `lag * period`, from -0.5 to 0.5."""
    phase = np.arange(256) / 256
    response = 1 / (1 + 2j * np.pi * np.fft.rfftfreq(256, 1 / 256) * lag)
    course = np.fft.irfft(np.fft.rfft(TEETH[family](phase)) * response, 256)
    course = (course - course.min()) / np.ptp(course) - 0.5
    found: Any = np.interp((times / period + start) % 1, phase, course, period=1)
    return np.asarray(found)
