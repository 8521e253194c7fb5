"""Which frames get a background of their own, and what lies between them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.formats.corrected import key_weights

Index = NDArray[np.intp]
MOST_KEYS = 64  # of the first plan; frames that drift faster get more
STILL = 0.004  # rms log change between key frames that interpolation follows well
LEAST_WEIGHT = 0.05  # of the farthest key frame in a window
REWEIGHTINGS = 10
JUMP_FLOOR, JUMP_RATIO = (
    0.03,
    8.0,
)  # a jump: this much at once, and this many times the usual change


def first_plan(usable: NDArray[np.bool_], every: int | None) -> Index:
    """Usable frames about `every` apart (None: at most 64 in all), the first and the last included."""
    index = np.flatnonzero(usable)
    step = every or -(-len(index) // MOST_KEYS)
    return np.unique(np.append(index[::step], index[-1]))


def changes(fields: NDArray[np.float32], lit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Rms log change of shape between consecutive key frames: `(k, h, w)` -> `(k - 1,)`."""
    steps = np.diff(fields, axis=0)[:, lit]
    return steps.std(1).astype(np.float64)


def refinement(keys: Index, change: NDArray[np.float64], usable: NDArray[np.bool_]) -> Index:
    """Frames half-way between key frames that differ much more than most; bisection towards a jump."""
    usual = float(np.median(change)) if len(change) else 0.0
    wanted = []
    for (a, b), c in zip(pairwise(keys), change, strict=True):
        between = np.flatnonzero(usable[a + 1 : b]) + a + 1
        if len(between) and c > max(3 * usual, 3 * STILL):
            wanted.append(between[len(between) // 2])
    return np.array(wanted, np.intp)


def find_jumps(keys: Index, change: NDArray[np.float64]) -> Index:
    """First frames after a jump: neighbouring key frames with far more than the usual change."""
    usual = float(np.median(change)) if len(change) else 0.0
    sudden = change > max(JUMP_FLOOR, JUMP_RATIO * usual)
    close = np.diff(keys) <= 2  # bisection ends at neighbours (or next ones, past a bad frame)
    return keys[1:][sudden & close]


def interpolate(values: NDArray[Any], keys: Index, jumps: Index, frame: int) -> NDArray[Any]:
    """Values at key frames `(k, ...)` at any frame, linear, never across a jump."""
    left, right, t = key_weights(keys, jumps, frame)
    return (1 - t) * values[left] + t * values[right]


def nearest_keys(keys: Index, n: int) -> Index:
    """The number `(n,)` of the key frame nearest to each frame; the earlier of two that are as near."""
    frames = np.arange(n)
    right = np.minimum(np.searchsorted(keys, frames), len(keys) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(frames - keys[left]) <= np.abs(keys[right] - frames), left, right)


def settle(
    fields: NDArray[np.float32], lit: NDArray[np.bool_], keys: Index, jumps: Index, window: int
) -> NDArray[np.float32]:
    """Shapes on a robust line through `window` neighbouring key frames; each keeps its own level.

    The beam drifts slowly, while what leaks from a sample differs from frame to frame: the line
    follows the drift, and a leak is one residual among many. Windows never reach across a jump.
    `fields` `(k, h, w)` logarithms.
    """
    if window <= 1:
        return fields
    level = fields[:, lit].mean(1)[:, None, None]
    shapes = fields - level
    segment = np.searchsorted(jumps, keys, side="right")
    out = np.empty_like(fields)
    for k in range(len(keys)):
        same = np.flatnonzero(segment == segment[k])
        near = same[np.argsort(np.abs(same - k), kind="stable")[:window]]
        out[k] = _robust_line(keys[near] - keys[k], shapes[near])
    return out - out[:, lit].mean(1)[:, None, None] + level


def _robust_line(times: Index, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where a line through `values` `(m, h, w)` is at time 0; the median of fewer than five.

    Local regression (Cleveland 1979): tricube weights in time, here with the absolute residual as
    loss, by reweighting.
    """
    if len(times) < 5:
        return np.asarray(np.median(values, axis=0), np.float32)
    t = times / (np.abs(times).max() + 1.0)
    near = np.maximum((1 - np.abs(t) ** 3) ** 3, LEAST_WEIGHT).astype(np.float32)[:, None, None]
    t = t.astype(np.float32)[:, None, None]
    weight = near
    for _ in range(REWEIGHTINGS):
        total = weight.sum(0)
        middle, centre = (weight * t).sum(0) / total, (weight * values).sum(0) / total
        slope = (weight * (t - middle) * (values - centre)).sum(0)
        slope /= (weight * (t - middle) ** 2).sum(0)
        left = np.abs(values - centre - slope * (t - middle))
        weight = near / np.maximum(left, np.median(left) + STILL / 40)
    return np.asarray(centre - slope * middle, np.float32)
