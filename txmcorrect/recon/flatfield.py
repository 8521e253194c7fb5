"""Plain flat-field correction: the measured flats, and what lies between them in time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import FlatFieldError
from txmcorrect.scan import Array, Frames

Image = NDArray[np.float32]
DEAD = 0.01  # of the median flat: pixels with less cannot be divided


@dataclass(frozen=True)
class FlatFielded:
    """Transmission of raw frames, divided when they are read.

    Attributes
    ----------
    counts : raw frames `(n, h, w)`. dark : `(h, w)`.
    flats : `(k, h, w)` mean flats above dark, at the median exposure; `at` `(k,)` rising: how many
    projections were taken before each. frame_scale : `(n,)` exposure and current over the median.
    split : frames before it take the first flat, the others the last; else flats are interpolated.
    """

    counts: Frames = field(repr=False)
    dark: Image = field(repr=False)
    flats: Image = field(repr=False)
    at: NDArray[np.floating[Any]]
    frame_scale: NDArray[np.floating[Any]]
    split: int | None = None

    def __post_init__(self) -> None:
        if not (self.flats.shape[1:] == self.dark.shape == self.counts.shape[1:]):
            raise FlatFieldError(
                f"expected flats and dark of {self.counts.shape[1:]}, got {self.flats.shape[1:]} "
                f"and {self.dark.shape}; take references of the same region and binning"
            )
        if not (self.flats > 0).any():
            raise FlatFieldError(
                "expected flats brighter than the dark, got none; are they swapped?"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.counts.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def flat(self, frame: int) -> Image:
        """Flat expected for a frame, `(h, w)` counts above dark."""
        last = len(self.at) - 1
        if self.split is not None:
            flat = self.flats[0 if frame < self.split else last]
        else:
            place = float(np.interp(frame, self.at, np.arange(last + 1)))
            low = min(int(place), max(last - 1, 0))
            high = min(low + 1, last)
            flat = self.flats[low] + np.float32(place - low) * (self.flats[high] - self.flats[low])
        return np.asarray(flat * np.float32(self.frame_scale[frame]), np.float32)

    def read(self, start: int, stop: int) -> Array:
        """Return transmission `(m, h, w)`; pixels that no light reaches, or dead ones, are 1."""
        frames = self.counts.read(start, stop).astype(np.float32) - self.dark
        for i, frame in enumerate(frames, start):
            flat = self.flat(i)
            lit = flat > DEAD * np.median(flat)
            frame /= np.where(lit, flat, 1)
            frame[~lit | ~np.isfinite(frame)] = 1.0
        return frames
