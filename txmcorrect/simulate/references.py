"""When references were taken: named kinds, in durations of the scan, which lasts from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from txmcorrect.simulate.scans import FLATS

Times = NDArray[np.float64]
SEVERAL = (4, 16)
MINUTE = 0.017  # of a scan of an hour
BANK = (12, 40)
OLDEST, NEWEST = -300.0, -5.0  # of a bank
AFTER_BURST = 0.02  # rms by which the beam changes once the flats of a burst are taken
Draw = Callable[[np.random.Generator, int], Times]


def _within(rng: np.random.Generator, n: int) -> Times:
    """One to three flats every so many projections, three to eight times a scan, in gaps between frames."""
    every = max(1, round(n / rng.integers(3, 9)))
    gaps = np.arange(0, n + 1, every) / n
    count = int(rng.integers(1, 4))
    return np.sort((gaps[:, None] + np.linspace(-0.2, 0.2, count) / n).ravel())


def _several(rng: np.random.Generator) -> int:
    return int(rng.integers(*SEVERAL, endpoint=True))


REFERENCE_KINDS: dict[str, Draw] = {
    "none": lambda rng, n: np.empty(0),
    # Days or hours old, taken at once.
    "stale": lambda rng, n: -rng.uniform(0.7, 6) + np.linspace(0, MINUTE, FLATS),
    "before-after": lambda rng, n: np.concatenate(
        [np.linspace(-0.05, -0.01, FLATS), np.linspace(1.01, 1.05, FLATS)]
    ),
    # Right before the first frame.
    "fresh": lambda rng, n: np.linspace(-MINUTE, -0.001, FLATS),
    # Within a minute; then the beam moves and changes shape by `AFTER_BURST`.
    "burst": lambda rng, n: -0.03 + np.linspace(0, MINUTE, _several(rng)),
    # Spread over a while before the scan.
    "before": lambda rng, n: np.linspace(-rng.uniform(0.1, 0.4), -0.01, _several(rng)),
    "within": _within,
    # No flats in the scan; those of `draw_bank_times`.
    "bank": lambda rng, n: np.empty(0),
}


def draw_bank_times(rng: np.random.Generator, count: int) -> Times:
    """When the references of earlier days were taken, oldest first."""
    return np.sort(rng.uniform(OLDEST, NEWEST, count))
