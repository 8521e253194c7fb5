"""First look at a scan: darks, every frame on the working grid, which frames and pixels can be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean, working_bin
from txmcorrect.background.quality import Flag
from txmcorrect.errors import FlatFieldError
from txmcorrect.scan import Array, Frames, Scan
from txmcorrect.stream import iter_blocks

Image = NDArray[np.float32]
Progress = Callable[[int, int], None]
DARK_FRAMES = 50  # more darks than this change nothing
LEAST_LIGHT = 1.0  # counts above dark in the bright part of a frame; less is no light
LEAST_SHARE = 0.05  # of the scan's usual brightness: a beam dump, where no dark tells
SATURATED_SHARE = 0.01
BYTES_PER_PIXEL = 24.0  # a frame in its own type, in float32, and what is made of it


@dataclass(frozen=True)
class Survey:
    """What one pass over the frames tells.

    Attributes
    ----------
    dark : `(h, w)` counts; dark_known : darks were given.
    small : `(n, h', w')` counts above dark on the working grid; factor : its bin.
    flag : `(n,)` bits of `quality.Flag`; usable : `(n,)` frames that may serve as conditions.
    photons : detected photons per count, a lower bound from the noise itself.
    broken : `(h, w)` pixels that are dead or stuck.
    """

    dark: Image
    dark_known: bool
    small: Image
    factor: int
    flag: NDArray[np.uint32]
    photons: float
    broken: NDArray[np.bool_]

    @property
    def usable(self) -> NDArray[np.bool_]:
        return (self.flag & np.uint32(Flag.NO_LIGHT | Flag.SATURATED | Flag.NOT_FINITE)) == 0


def mean_frame(frames: Frames, limit: int = DARK_FRAMES) -> Image:
    """Mean of up to `limit` frames, `(h, w)`; a median where three or more allow it, against cosmics."""
    count = min(frames.shape[0], limit)
    stack = frames.read(0, count).astype(np.float32)
    return np.asarray(np.median(stack, 0) if 3 <= count < 10 else _clipped_mean(stack), np.float32)


def _clipped_mean(stack: Image) -> Image:
    """Mean without the largest value of each pixel, where there are enough frames for it."""
    if len(stack) < 10:
        return stack.mean(0)
    return (stack.sum(0) - stack.max(0)) / (len(stack) - 1)


def read_counts(frames: Frames, start: int, stop: int, dark: Image) -> Image:
    """Frames as float32 counts above dark; NaN and infinities become NaN."""
    counts = frames.read(start, stop).astype(np.float32) - dark
    if frames.dtype.kind == "f":
        counts[~np.isfinite(counts)] = np.nan
    return counts


def survey_scan(
    scan: Scan, dark: Image | None, size: int, memory: int, progress: Progress
) -> Survey:
    """Look at every frame once.

    Parameters
    ----------
    dark : `(h, w)` from elsewhere, or None for the scan's own (zero, said so, if it has none).
    size : long side of the working grid. memory : bytes.

    Raises
    ------
    FlatFieldError : fewer than two frames can be used.
    """
    n, h, w = scan.shape
    if dark is None and scan.darks is not None and scan.darks.shape[0]:
        dark = mean_frame(scan.darks)
    known = dark is not None
    level = np.zeros((h, w), np.float32) if dark is None else dark
    if level.shape != (h, w):
        raise FlatFieldError(
            f"darks are {level.shape} but frames are {(h, w)}; give others by --dark"
        )
    factor = working_bin((h, w), size)
    small = np.empty((n, -(-h // factor), -(-w // factor)), np.float32)
    flag = np.zeros(n, np.uint32)
    stuck, photons = _Stuck((h, w)), []
    for start, stop in iter_blocks(n, h, w, memory, BYTES_PER_PIXEL):
        raw = scan.projections.read(start, stop)
        counts = raw.astype(np.float32) - level
        flag[start:stop] = [_judge(r, c) for r, c in zip(raw, counts, strict=True)]
        counts[~np.isfinite(counts)] = 0
        small[start:stop] = bin_mean(torch.from_numpy(counts), factor).numpy()
        stuck.see(raw)
        photons += [photons_per_count(c) for c in counts[:: max(1, len(counts) // 4)]]
        progress(stop, n)
    bright = np.quantile(small, 0.9, axis=(1, 2))
    flag[bright < LEAST_SHARE * np.median(bright)] |= np.uint32(Flag.NO_LIGHT)
    told = [p for p in photons if np.isfinite(p)]
    gain = float(np.median(told)) if told else 1.0
    seen = Survey(level, known, small, factor, flag, gain, stuck.broken())
    if seen.usable.sum() < 2:
        raise FlatFieldError(_nothing_left(scan, seen))
    return seen


def _judge(raw: Array, counts: Image) -> int:
    """Bits of a single frame."""
    bits = 0
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        bits |= Flag.BAD_PIXELS
        if np.isfinite(raw).mean() < 0.5:
            return bits | Flag.NOT_FINITE
        counts = counts[np.isfinite(counts)]
    if np.quantile(counts[..., ::4], 0.9) < LEAST_LIGHT:
        return bits | Flag.NO_LIGHT
    if raw.dtype.kind == "u" and (raw == np.iinfo(raw.dtype).max).mean() > SATURATED_SHARE:
        bits |= Flag.SATURATED
    return bits


class _Stuck:
    """Pixels that never change over the frames although light does, or that are at an end of range."""

    def __init__(self, shape: tuple[int, int]):
        self.low = np.full(shape, np.inf, np.float32)
        self.high = np.full(shape, -np.inf, np.float32)
        self.count = 0

    def see(self, raw: Array) -> None:
        self.low = np.minimum(self.low, raw.min(0))
        self.high = np.maximum(self.high, raw.max(0))
        self.count += len(raw)

    def broken(self) -> NDArray[np.bool_]:
        """Noise alone makes an honest pixel differ between frames; three equal ones are no chance."""
        if self.count < 3:
            return np.zeros(self.low.shape, np.bool_)
        same = self.low == self.high
        return same if same.mean() < 0.5 else np.zeros_like(same)


def photons_per_count(counts: Image) -> float:
    """Mean over noise variance, at most 1 per count gained; NaN where it cannot be told.

    The second difference over 2 x 2 pixels removes smooth images; its median absolute deviation is
    blind to edges. A fixed pixel pattern makes this an underestimate, which is the safe side.
    """
    if min(counts.shape) < 4:
        return 1.0
    difference = (counts[1:, 1:] - counts[:-1, 1:] - counts[1:, :-1] + counts[:-1, :-1]) / 2
    spread: Any = 1.4826 * np.median(np.abs(difference - np.median(difference)))
    middle = float(np.median(counts))
    if middle <= 0 or spread <= 0:
        return float("nan")
    return float(np.clip(middle / spread**2, 1e-4, 100.0))


def _nothing_left(scan: Scan, seen: Survey) -> str:
    n = scan.shape[0]
    if n < 2:
        return (
            f"{scan.path}: expected at least two frames, got {n}; "
            "one alone cannot tell background from sample: add frames that share its background"
        )
    names = {
        "no light": Flag.NO_LIGHT,
        "saturated": Flag.SATURATED,
        "mostly not finite": Flag.NOT_FINITE,
    }
    found = [f"{int(((seen.flag & bit) != 0).sum())} {name}" for name, bit in names.items()]
    return (
        f"{scan.path}: expected at least two usable frames of {n}, got {int(seen.usable.sum())} "
        f"({', '.join(found)}); check the shutter, the dark and the exposure"
    )
