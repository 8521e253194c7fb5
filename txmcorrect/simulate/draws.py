"""Training items, simulated on the fly: two frames with nearly the same background, and its truth.

A batch is a pure function of (seed, index): resuming, or splitting a batch over processes, changes
nothing. A few beams and worlds are drawn per batch and recombined, as source 0 recombines images
and references.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txmcorrect.simulate.beam import Beam, draw_beam, path_scale, scale_to_drift, wander
from txmcorrect.simulate.fields import Image, Shape
from txmcorrect.simulate.samples import SAMPLES, Spheres, contrast
from txmcorrect.simulate.scans import stream

REUSE = 5  # items that share a beam or a world
ASPECTS = [(1.0, 1.0)] * 12 + [(0.75, 1.0), (1.0, 0.75), (0.5, 1.0), (1.0, 0.5), (0.12, 1.0)]
FAINT_SHARE = 0.4
SAMPLE_SHARES = {"sparse": 0.5, "dense": 0.25, "film": 0.13, "turning": 0.12}


@dataclass(frozen=True)
class PairBatch:
    """A batch on the working grid.

    `frames` `(b, 2, h, w)` mean counts per pixel without dark, with photon noise; `background`
    `(b, h, w)` of the first frame; `lit` `(b, h, w)`; `photons` `(b,)` photons per count and
    working pixel.
    """

    frames: Image
    background: Image
    lit: NDArray[np.bool_]
    photons: Image


def draw_pairs(
    seed: int,
    index: int,
    batch: int,
    size: int,
    counts: tuple[float, float] = (50.0, 20000.0),
    brightness: float = 0.1,
    contrast_spread: float = 0.1,
    purpose: str = "train",
) -> PairBatch:
    """Simulate batch number `index` of pairs whose long side is `size` pixels."""
    rng = stream(purpose, seed, index)
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    shape = max(2, round(size * aspect[0])), max(2, round(size * aspect[1]))
    groups = range(-(-batch // REUSE))
    beams = [draw_beam(rng, shape) for _ in groups]
    worlds = [_draw_world(rng, shape) for _ in groups]
    items = []
    for _ in range(batch):
        log_b, lit = _two_states(rng, beams[rng.integers(len(beams))])
        log_t = _two_samples(rng, worlds[rng.integers(len(worlds))], shape)
        log_t = log_t * np.float32(np.exp(contrast_spread * rng.standard_normal()) * _fade(rng))
        gains = np.exp(brightness * rng.standard_normal(2) * (rng.random() < 0.5))
        items.append(_expose(rng, log_b, log_t, gains, lit, counts))
    frames, background, lits, photons = zip(*items, strict=True)
    return PairBatch(
        np.stack(frames), np.stack(background), np.stack(lits), np.array(photons, np.float32)
    )


def _fade(rng: np.random.Generator) -> float:
    """Faint samples are as common as strong ones, and there a small error counts more."""
    return float(np.exp(rng.uniform(np.log(0.05), 0))) if rng.random() < FAINT_SHARE else 1.0


def _two_states(rng: np.random.Generator, beam: Beam) -> tuple[Image, NDArray[np.bool_]]:
    """Log background of two frames taken close in time, somewhere on the beam's way."""
    start = rng.standard_normal(beam.modes.shape[0] + 2) * path_scale(rng, beam)
    path = start + wander(rng, 2) * path_scale(rng, beam)
    drift = np.exp(rng.uniform(np.log(3e-4), np.log(0.03)))
    log_b = beam.log_background(scale_to_drift(beam, path, drift, iterations=1))
    lit = beam.lit
    if rng.random() < 0.5:  # the only mirror a reference may take: it is tied to the detector
        log_b, lit = log_b[:, ::-1], lit[::-1]
    return log_b, lit


def _draw_world(rng: np.random.Generator, shape: Shape) -> Image | Spheres:
    """Log transmission of a field of view several frames wide, or an object that turns."""
    kind = rng.choice(list(SAMPLE_SHARES), p=list(SAMPLE_SHARES.values()))
    if kind == "turning":
        return Spheres(rng, shape, "train")
    side = int(1.7 * max(shape))
    zoom = np.exp(rng.uniform(np.log(0.7), np.log(2.0)))  # source 0's resized crops
    long = max(shape) * zoom
    return contrast(rng, SAMPLES[str(kind)](rng, (side, side), long, "train"), long)


def _two_samples(rng: np.random.Generator, world: Image | Spheres, shape: Shape) -> Image:
    """Log transmission `(2, h, w)`: two views of one world; now and then one of them is empty."""
    if isinstance(world, Spheres):
        theta = rng.uniform(0, 2 * np.pi)
        apart = np.exp(rng.uniform(np.log(0.01), np.log(np.pi / 2)))
        return -np.stack([world.project(theta), world.project(theta + apart)])
    views = []
    for _ in range(2):
        turned = np.rot90(world, int(rng.integers(4)))
        turned = turned[:, ::-1] if rng.random() < 0.5 else turned
        y, x = (rng.integers(0, side - s + 1) for side, s in zip(turned.shape, shape, strict=True))
        empty = rng.random() < 0.06
        views.append(turned[y : y + shape[0], x : x + shape[1]] * np.float32(not empty))
    return np.stack(views)


def _expose(
    rng: np.random.Generator,
    log_b: Image,
    log_t: Image,
    gains: NDArray[np.float64],
    lit: NDArray[np.bool_],
    counts: tuple[float, float],
) -> tuple[Image, Image, NDArray[np.bool_], np.float32]:
    """Photon noise at a random exposure; the working pixel bins 1, 4 or 16 detector pixels."""
    level = np.exp(rng.uniform(np.log(counts[0]), np.log(counts[1])))
    photons = float(rng.choice([1.0, 4.0, 16.0]))
    scale = level / np.exp(log_b[0])[lit].mean()
    background = np.exp(log_b) * (scale * gains)[:, None, None]
    stray = level * rng.uniform(0, 0.004)  # what dark subtraction and afterglow leave
    light = background * np.exp(log_t) + stray
    frames = rng.poisson(light * photons) / photons
    return frames.astype(np.float32), background[0].astype(np.float32), lit, np.float32(photons)
