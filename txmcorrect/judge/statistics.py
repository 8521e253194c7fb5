"""Means, paired differences and their intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds and its 95 % interval; infinitely wide for one seed."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2

    def overlaps(self, other: Interval) -> bool:
        """Whether two intervals share a value."""
        return self.low <= other.high and other.low <= self.high


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean; values that are not finite are left out."""
    data = np.asarray(values, np.float64)
    data = data[np.isfinite(data)]
    n = len(data)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = float(data.mean())
    if n == 1:
        return Interval(mean, float("-inf"), float("inf"), 1)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * data.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def geometric_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Geometric mean and its interval: errors of scans scatter by factors, not by amounts.

    Where a value is zero or mere rounding (the oracle's) the plain mean is given instead.
    """
    data = np.asarray(values, np.float64)
    data = data[np.isfinite(data)]
    if len(data) == 0 or data.min() <= 1e-6:
        return mean_interval(values, level)
    log = mean_interval(np.log(data).tolist(), level)
    low, mean, high = (float(np.exp(v)) for v in (log.low, log.mean, log.high))
    return Interval(mean, low, high, log.n)


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean: for figures that are far from normal."""
    data = np.asarray(values, np.float64)
    data = data[np.isfinite(data)]
    if len(data) < 2:
        return mean_interval(values, level)
    rng = np.random.default_rng(seed)
    means = rng.choice(data, (draws, len(data))).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> Interval:
    """Interval of ours - theirs over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    return mean_interval([ours[s] - theirs[s] for s in seeds])


def paired_ratio(ours: dict[int, float], theirs: dict[int, float]) -> Interval:
    """Interval of the geometric mean of ours / theirs over the seeds that both have."""
    seeds = sorted(s for s in ours.keys() & theirs.keys() if theirs[s] > 0)
    return geometric_interval([ours[s] / theirs[s] for s in seeds])


def wins(ours: dict[int, float], theirs: dict[int, float]) -> tuple[int, int]:
    """On how many seeds ours is lower, of how many."""
    seeds = ours.keys() & theirs.keys()
    return sum(ours[s] < theirs[s] for s in seeds), len(seeds)
