"""Transmission images of simulated samples, for priors that restore."""

from __future__ import annotations

import numpy as np

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.fields import Image, Shape
from txmcorrect.simulate.samples import SAMPLES, Spheres, contrast

STREAM = 0x0B1  # keeps these objects apart from all other streams
SHARES = {"sparse": 0.5, "dense": 0.3, "turning": 0.2}


def draw_transmission(seed: int, index: int, shape: Shape, family: Family = "train") -> Image:
    """Transmission `(h, w)` of object number `index`: 1 is vacuum, phase contrast may exceed it.

    A pure function of its arguments; `family` "benchmark" has shapes that "train" never shows.
    """
    rng = np.random.default_rng(np.random.SeedSequence([STREAM, seed, index]))
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    frame = float(max(shape)) * rng.uniform(1.0, 2.0)
    if kind == "turning":
        log_t = -Spheres(rng, shape, family).project(rng.uniform(0, 2 * np.pi))
    else:
        log_t = contrast(rng, SAMPLES[kind](rng, shape, frame, family), frame)
    return np.asarray(np.exp(log_t), np.float32)
