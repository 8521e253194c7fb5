"""How many photons a count stands for, from how frames of the same beam differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
ENOUGH_PIXELS = 2**18
CALM = 0.75  # quantile over pairs of frames: texture that moves only takes away
BRIGHT = 0.2  # of the bright end: where light is low, other noise than that of photons counts


class Pairs:
    """Frames one after another: `photons` holds what each that counts says together with the one before."""

    def __init__(self) -> None:
        self.photons: list[float] = []
        self._before: Image | None = None

    def also(self, counts: Image, counted: bool = True) -> None:
        """See the next frame, `(h, w)` counts above dark."""
        rows = noise_rows(counts)
        if counted and self._before is not None:
            self.photons.append(photons_per_count(self._before, rows))
        self._before = rows

    def of_mean(self) -> float | None:
        """Detected photons per count of the mean of all frames that were seen; None where none of them tell."""
        single = usual_photons(self.photons)
        return None if single is None else single * (len(self.photons) + 1)


def noise_rows(counts: Image) -> Image:
    """Pairs of neighbouring rows `(2, k, w)`, spread over large frames, that noise is told from."""
    step = max(counts.size // ENOUGH_PIXELS, 1)
    return np.stack([counts[:-1:step], counts[1::step]])


def photons_per_count(before: Image, after: Image) -> float:
    """Detected photons per count of two frames, from their `noise_rows`; NaN where it cannot be told.

    What frames have in common, a fixed pattern above all, is not in their difference. Its second
    difference over 2 x 2 pixels removes what is smooth as well, and a median is blind to edges: what is
    left is noise, to be compared with that of as many photons. Fine texture that moves makes this an
    underestimate.
    """
    if min(before.shape[1:]) < 2 or not (before > 0).any() or not (after > 0).any():
        return float("nan")
    gain = np.median(before[before > 0]) / np.median(after[after > 0])
    upper, lower = before - gain * after
    across = lower - upper
    difference = (across[:, 1:] - across[:, :-1]) / 2
    single = (before + gain**2 * after).sum(0)
    variance = (single[:, 1:] + single[:, :-1]) / 4
    light = variance > BRIGHT * np.quantile(variance, 0.95)
    relative = difference[light] / np.sqrt(variance[light])
    spread: Any = 1.4826 * np.median(np.abs(relative)) if relative.size else 0.0
    return float(np.clip(1 / spread**2, 1e-4, 1e4)) if spread > 0 else float("nan")


def usual_photons(pairs: Sequence[float] | NDArray[np.float64]) -> float | None:
    """What pairs of frames say together; None where none of them could tell."""
    known = np.array([p for p in pairs if np.isfinite(p)])
    return float(np.quantile(known, CALM)) if len(known) else None
