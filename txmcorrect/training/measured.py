"""Scans for the `stack` condition whose beam is the user's own: on its way between measured references.

What two references of one instrument differ by is what its beam does; the fixed pattern cancels. A scan
starts at one of them and drifts by parts of what others differ from it. References that the way does not
lead by may serve as its bank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.simulate.beam import LIT_FRACTION, wander
from txmcorrect.simulate.fields import Image
from txmcorrect.simulate.stacks import (
    JUMP_SHARE,
    LEAST_BANK,
    MOST_BANK,
    Course,
    draw_length,
    places,
    reference_states,
)

WAYS = 5  # directions that a beam drifts in at once
PART = (0.03, 1.0)  # of what references differ by, that a scan drifts (log-uniform)
FRESH = 0.01  # of that drift stays where references are fresh
NOISE_PX = 1.0  # of the working grid: differences are smoothed by it, as drift is and noise is not
DARK = 1e-3  # of the usual light; logarithms end there
MOST_USED = 1 + WAYS + MOST_BANK  # references of one scan


def log_references(references: Image) -> tuple[Image, NDArray[np.bool_]]:
    """Natural log of counts `(k, h, w)` without its mean over what is lit, and what that is, `(h, w)`."""
    usual = float(np.median(references[0]))
    lit = references[0] > LIT_FRACTION * usual
    logs = np.log(np.maximum(references, DARK * max(usual, 1e-9)))
    return logs - logs[:, lit].mean(1)[:, None, None], lit


def draw_measured_course(rng: np.random.Generator, references: Image, n: int, kind: str) -> Course:
    """A way of `n` frames from the first of `references` `(k, h, w)`, which are counts of empty frames, by
    what the next `WAYS` differ from it; the others make the bank where `kind` has one and they suffice.
    """
    logs, lit = log_references(references)
    apart = logs[1 : 1 + WAYS] - logs[0]
    ways = gaussian_filter(apart, (0, NOISE_PX, NOISE_PX), mode="nearest")
    bank = logs[1 + WAYS :]
    if "bank" in kind and len(bank) < LEAST_BANK:
        kind = "stale"
    total = draw_length(rng, n)
    scale = np.exp(rng.uniform(*np.log(PART))) / np.sqrt(max(len(ways), 1))
    path = wander(rng, total)[:, : len(ways)] * scale
    if rng.random() < JUMP_SHARE:
        path[int(rng.integers(1, total)) :] += rng.standard_normal(len(ways)) * scale
    if kind == "fresh":
        path *= FRESH
    start = int(rng.integers(0, total - n + 1))
    states = {"frames": path[start : start + n], **reference_states(rng, path, kind)}
    found = {
        name: logs[0] + np.tensordot(s.astype(np.float32), ways, 1) for name, s in states.items()
    }
    if "bank" in kind:
        found["bank"] = bank[: int(rng.integers(LEAST_BANK, MOST_BANK + 1))]
    return Course(found, lit, places(start, n, total))
