"""Transmission images of simulated samples, for priors that restore."""

from __future__ import annotations

import numpy as np

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.fields import Image, Shape
from txmcorrect.simulate.samples import SAMPLES, Spheres, contrast
from txmcorrect.simulate.scans import stream

STREAM = 0x0B1  # keeps these objects apart from all other streams
SCALE = 0.25  # transmission per unit of a prior's x0: about the deviation of simulated samples
SIDES = (80, 320)  # pixels of an object's image that patches are cut from
SHARES = {"sparse": 0.5, "dense": 0.3, "turning": 0.2}


def draw_transmission(seed: int, index: int, shape: Shape, family: Family = "train") -> Image:
    """Transmission `(h, w)` of object number `index`: 1 is vacuum, phase contrast may exceed it.

    A pure function of its arguments; `family` "benchmark" has shapes that "train" never shows.
    """
    return _draw(
        np.random.default_rng(np.random.SeedSequence([STREAM, seed, index])), shape, family
    )


def draw_objects(seed: int, index: int, purpose: str = "train") -> Image:
    """Normalised image `(1, h, w)` of a training object, `(T - 1) / SCALE`: vacuum is 0.

    Any size and aspect, turned and mirrored; a pure function of its arguments.
    """
    rng = stream(purpose, seed, index, 5)
    long = np.exp(rng.uniform(*np.log(SIDES)))
    shape = round(long), round(long * rng.uniform(0.6, 1))
    image = np.rot90(_draw(rng, shape, "train"), int(rng.integers(4)))
    image = image[:, :: rng.choice([1, -1])]
    return np.ascontiguousarray((image[None] - 1) / np.float32(SCALE))


def _draw(rng: np.random.Generator, shape: Shape, family: Family) -> Image:
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    frame = float(max(shape)) * rng.uniform(1.0, 2.0)
    if kind == "turning":
        log_t = -Spheres(rng, shape, family).project(rng.uniform(0, 2 * np.pi))
    else:
        log_t = contrast(rng, SAMPLES[kind](rng, shape, frame, family), frame)
    return np.asarray(np.exp(log_t), np.float32)
