"""Transmission images of simulated samples, for priors that restore."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.scan import FloatArray
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


def draw_objects(
    seed: int, index: int, purpose: str = "train", sides: tuple[int, int] = SIDES
) -> Image:
    """Normalised image `(1, h, w)` of a training object, `(T - 1) / SCALE`: vacuum is 0.

    Any size and aspect, turned and mirrored; a pure function of its arguments.
    """
    rng = stream(purpose, seed, index, 5)
    long = np.exp(rng.uniform(*np.log(sides)))
    shape = round(long), round(long * rng.uniform(0.6, 1))
    image = np.rot90(_draw(rng, shape, "train"), int(rng.integers(4)))
    image = image[:, :: rng.choice([1, -1])]
    return np.ascontiguousarray((image[None] - 1) / np.float32(SCALE))


def draw_sinogram(
    seed: int, index: int, purpose: str = "train", sides: tuple[int, int] = SIDES
) -> Image:
    """Normalised transmission `(1, n_theta, w)` of one row of a turning sample, half a turn or part.

    A pure function of its arguments; what a corrected stack shows across its frames.
    """
    rng = stream(purpose, seed, index, 8)
    width = round(float(np.exp(rng.uniform(*np.log(sides)))))
    views = round(width * float(np.exp(rng.uniform(np.log(0.4), np.log(2)))))
    turn = np.pi * rng.uniform(0.3, 1) * (np.arange(views) / views) + rng.uniform(0, 2 * np.pi)
    shape = max(16, round(width * rng.uniform(0.4, 1))), width
    return turning_rows(
        Spheres(rng, shape, "train"), turn, float(rng.uniform(-0.5, 0.5) * shape[0])
    )


def turning_rows(body: Spheres, theta: FloatArray, height: float) -> Image:
    """Normalised transmission `(1, n_theta, w)` of the row at `height` px, seen from `theta`."""
    w = body.shape[1]
    x = np.arange(w) - (w - 1) / 2

    def chord(radius: float, miss2: NDArray[Any]) -> NDArray[Any]:
        return 2 * np.sqrt(np.maximum(radius**2 - miss2, 0))

    bore = body.radius - body.wall
    wall = chord(body.radius, x**2) - chord(bore, x**2)
    total = body.mu_wall * wall + body.mu_bore * chord(bore, x**2) + np.zeros((len(theta), w))
    for (cz, cy, cx), r, mu in zip(body.centres, body.radii, body.mu, strict=True):
        if abs(cz - height) < r:
            seen = cx * np.cos(theta) + cy * np.sin(theta)
            total += mu * chord(r, (cz - height) ** 2 + (x - seen[:, None]) ** 2)
    return np.asarray((np.exp(-total[None]) - 1) / SCALE, np.float32)


def _draw(rng: np.random.Generator, shape: Shape, family: Family) -> Image:
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    frame = float(max(shape)) * rng.uniform(1.0, 2.0)
    if kind == "turning":
        log_t = -Spheres(rng, shape, family).project(rng.uniform(0, 2 * np.pi))
    else:
        log_t = contrast(rng, SAMPLES[kind](rng, shape, frame, family), frame)
    return np.asarray(np.exp(log_t), np.float32)
