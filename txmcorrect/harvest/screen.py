"""Frames that must not be learnt from: dead, saturated, seen before."""

from __future__ import annotations

import hashlib

import numpy as np

from txmcorrect.scan import Array

FULL_SCALES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bit cameras
SATURATED_SHARE = 1e-3
DIM_SHARE = 0.05  # of the usual level: the shutter was closed, or the beam off


class Screen:
    """Remembers the frames it has seen, by digest, and says what is wrong with a new one."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def check(self, frame: Array, name: str) -> str:
        """Why a raw frame `(h, w)` is of no use, or ""."""
        if not np.isfinite(frame).all():
            return "dead: not a number in places"
        low, high = frame.min(), frame.max()
        if low == high:
            return f"dead: every pixel is {low:g}"
        share = saturated_share(frame)
        if share > SATURATED_SHARE:
            return f"saturated: {100 * share:.2g} % of pixels at {high:g}"
        digest = hashlib.blake2b(np.ascontiguousarray(frame).tobytes(), digest_size=16).digest()
        earlier = self._seen.setdefault(digest, name)
        return f"duplicate of {earlier}" if earlier != name else ""


def saturated_share(frame: Array) -> float:
    """Share of pixels at the largest value, if that is the full scale of a camera, else 0."""
    high = frame.max()
    full = set(FULL_SCALES)
    if frame.dtype.kind in "ui":
        full.add(int(np.iinfo(frame.dtype).max))
    return float((frame == high).mean()) if float(high) in full else 0.0
