"""Samples: log transmission of particles, fibres, tissue, films; absorption and Zernike contrast.

A phantom is drawn as `thickness >= 0` (a line integral in arbitrary units), then turned into log
transmission by `contrast`. Each family draws shapes that the others never show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.fields import Image, Shape, grid_px, smooth_field

Draw = Callable[[np.random.Generator, Shape, float, Family], Image]


def sparse(rng: np.random.Generator, shape: Shape, frame: float, family: Family) -> Image:
    """Particles and fibres with empty space between; sizes relative to a frame of `frame` pixels."""
    thickness = np.zeros(shape, np.float32)
    area = shape[0] * shape[1] / frame**2
    for _ in range(max(1, rng.poisson(rng.uniform(3, 30) * area))):
        _add_particle(rng, thickness, frame, family)
    for _ in range(rng.poisson(rng.uniform(0, 3) * area)):
        _add_fibre(rng, thickness, frame)
    if rng.random() < 0.3:  # a slab or support that ends inside the field
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4) * min(shape)
        y, x = grid_px(shape)
        edge = (y * np.sin(angle) + x * np.cos(angle) - offset) / (0.005 * frame + 0.5)
        thickness += rng.uniform(0.1, 0.6) / (1 + np.exp(-np.clip(edge, -40, 40)))
    return thickness


def dense(rng: np.random.Generator, shape: Shape, frame: float, family: Family) -> Image:
    """Tissue that leaves no empty pixel: smooth bulk, cells with membranes, granules."""
    bulk = 0.6 + 0.35 * np.tanh(smooth_field(rng, shape, frame * rng.uniform(0.08, 0.4)))
    width = frame * np.exp(rng.uniform(np.log(0.01), np.log(0.08)))
    field = smooth_field(rng, shape, width)
    if family == "benchmark":  # a network of ridges instead of closed membranes
        ridges = np.abs(np.sin(2.2 * field + smooth_field(rng, shape, 3 * width)))
        cells = np.exp(-((ridges / 0.25) ** 2))
    elif family == "develop":  # round cells of one level in a matrix of another
        cells = 1 / (1 + np.exp(-np.clip(6 * (field - 0.3), -40, 40)))
    else:
        cells = np.exp(-((field / rng.uniform(0.1, 0.4)) ** 2))
    granules = np.maximum(smooth_field(rng, shape, frame * 0.008) - rng.uniform(0.8, 2), 0)
    total = bulk + rng.uniform(0.1, 0.6) * cells + rng.uniform(0, 0.4) * granules
    return np.asarray(total + 0.3 * sparse(rng, shape, frame, family), np.float32)


def film(rng: np.random.Generator, shape: Shape, frame: float, family: Family) -> Image:
    """A film over everything: slow changes of thickness, cracks, grains."""
    thickness = 1 + 0.15 * smooth_field(rng, shape, frame * rng.uniform(0.1, 0.5))
    grains = smooth_field(rng, shape, frame * rng.uniform(0.01, 0.04))
    if family == "benchmark":
        grains = np.sign(grains)
    elif family == "develop":  # terraces
        grains = np.asarray(np.round(1.5 * grains) / 1.5, np.float32)
    thickness += rng.uniform(0.02, 0.15) * grains
    if rng.random() < 0.5:
        crack = smooth_field(rng, shape, frame * 0.15)
        thickness -= rng.uniform(0.2, 0.8) * np.exp(-((crack / 0.04) ** 2))
    return np.asarray(
        np.maximum(thickness, 0) + 0.3 * sparse(rng, shape, frame, family), np.float32
    )


SAMPLES: dict[str, Draw] = {"sparse": sparse, "dense": dense, "film": film}


def contrast(rng: np.random.Generator, thickness: Image, frame: float) -> Image:
    """Thickness -> log transmission, in absorption or Zernike phase contrast.

    Zernike phase contrast passes a band: the phase ring removes what is wider than the halo, so
    objects are surrounded by a halo of opposite sign and fade towards their middle (shade-off).
    The strongest absorption (99.9th percentile) becomes 3-90 %.
    """
    strong = float(np.quantile(thickness[::2, ::2], 0.999)) + 1e-6
    absorption = -np.log(1 - rng.uniform(0.03, 0.9)) / strong * thickness
    if rng.random() < 0.5:
        return np.asarray(-absorption, np.float32)
    halo = frame * np.exp(rng.uniform(np.log(0.01), np.log(0.08)))
    phase = gaussian_filter(absorption, 0.5) - rng.uniform(0.6, 1) * gaussian_filter(
        absorption, halo
    )
    sign = rng.choice([-1, -1, 1])
    mixed = sign * phase - rng.uniform(0, 0.4) * absorption
    return np.asarray(np.clip(mixed, -3, 0.4), np.float32)


def _add_particle(rng: np.random.Generator, thickness: Image, frame: float, family: Family) -> None:
    """Add one particle in place: an ellipsoid (train), a cushion (develop), a faceted crystal (benchmark)."""
    h, w = thickness.shape
    radius = frame * np.exp(rng.uniform(np.log(0.006), np.log(0.16)))
    cy, cx = rng.uniform(-0.02, 1.02, 2) * (h, w)
    reach = int(1.8 * radius) + 2
    ys = slice(max(0, int(cy) - reach), max(0, min(h, int(cy) + reach + 1)))
    xs = slice(max(0, int(cx) - reach), max(0, min(w, int(cx) + reach + 1)))
    y, x = np.ogrid[ys, xs]
    if y.size == 0 or x.size == 0:
        return
    angle, squeeze = rng.uniform(0, np.pi), rng.uniform(0.5, 1)
    u = ((y - cy) * np.sin(angle) + (x - cx) * np.cos(angle)) / radius
    v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / (radius * squeeze)
    if family == "benchmark":
        sides = np.arange(rng.integers(4, 8))
        turns = 2 * np.pi * sides / len(sides)
        depth = 1 - np.max([u * np.cos(t) + v * np.sin(t) for t in turns], axis=0)
        profile = np.clip(depth * 2.5, 0, 1)
    elif family == "develop":
        profile = np.clip(1 - u**4 - v**4, 0, 1) ** 0.25
    else:
        profile = np.sqrt(np.maximum(1 - u**2 - v**2, 0))
        if rng.random() < 0.3:  # hollow shell
            profile = profile - 0.9 * np.sqrt(np.maximum(0.64 - u**2 - v**2, 0))
    size = radius / (0.1 * frame) if rng.random() < 0.6 else 1.0
    thickness[ys, xs] += np.float32(rng.uniform(0.3, 1) * size) * profile.astype(np.float32)


def _add_fibre(rng: np.random.Generator, thickness: Image, frame: float) -> None:
    """Add one wavy fibre in place."""
    y, x = grid_px(thickness.shape)
    angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5) * min(thickness.shape)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    bend = frame * rng.uniform(0, 0.08) * np.sin(along / (frame * rng.uniform(0.1, 0.4)))
    radius = frame * np.exp(rng.uniform(np.log(0.004), np.log(0.04)))
    chord = np.sqrt(np.maximum(1 - ((across - offset - bend) / radius) ** 2, 0))
    thickness += np.float32(rng.uniform(0.1, 0.6)) * chord


# --- objects that turn: exact line integrals of spheres inside a capillary ---------------------


# Radii over the capillary's, log-uniform between these.
SPHERE_SIZES = {"train": (0.02, 0.2), "develop": (0.11, 0.14), "benchmark": (0.04, 0.12)}


class Spheres:
    """Spheres in an upright capillary: analytic projections at any angle, and the volume.

    Lengths are pixels, the axis of rotation is upright through the middle of the frame.
    `mu` is attenuation per pixel.
    """

    def __init__(self, rng: np.random.Generator, shape: Shape, family: Family):
        h, w = shape
        self.shape = shape
        self.radius = 0.5 * w * rng.uniform(0.5, 0.8)  # of the capillary
        self.wall = self.radius * rng.uniform(0.03, 0.1)
        count = int(rng.integers(25, 60))
        small, large = SPHERE_SIZES[family]
        r = self.radius * np.exp(rng.uniform(np.log(small), np.log(large), count))
        bore = self.radius - self.wall
        distance = np.sqrt(rng.uniform(0, 1, count)) * np.maximum(bore - r, 0)
        turn = rng.uniform(0, 2 * np.pi, count)
        self.centres = np.stack(
            [rng.uniform(-0.55, 0.55, count) * h, distance * np.sin(turn), distance * np.cos(turn)],
            1,
        )
        self.radii = r
        self.mu = rng.uniform(0.3, 1.5, count) / self.radius
        self.mu_wall = rng.uniform(0.1, 0.6) / self.radius
        self.mu_bore = rng.uniform(0.0, 0.1) / self.radius

    def project(self, theta: float) -> Image:
        """Line integral `(h, w)` of attenuation along the beam at `theta` radians."""
        h, w = self.shape
        y, x = grid_px(self.shape)

        def chord(radius: float, offset: NDArray[Any]) -> NDArray[Any]:
            return 2 * np.sqrt(np.maximum(radius**2 - offset**2, 0))

        bore = self.radius - self.wall
        tube = self.mu_wall * (chord(self.radius, x) - chord(bore, x)) + self.mu_bore * chord(
            bore, x
        )
        image = np.repeat(tube, h, 0).astype(np.float32)
        for (cz, cy, cx), r, mu in zip(self.centres, self.radii, self.mu, strict=True):
            sx = cx * np.cos(theta) + cy * np.sin(theta)  # where the centre is seen
            i0, i1 = int(cz - r + h / 2) - 1, int(cz + r + h / 2) + 2
            j0, j1 = int(sx - r + w / 2) - 1, int(sx + r + w / 2) + 2
            ys, xs = slice(max(i0, 0), max(i1, 0)), slice(max(j0, 0), max(j1, 0))
            r2 = (y[ys] - cz) ** 2 + (x[:, xs] - sx) ** 2
            image[ys, xs] += (mu * 2 * np.sqrt(np.maximum(r**2 - r2, 0))).astype(np.float32)
        return image

    def volume(self) -> NDArray[np.float32]:
        """Attenuation per pixel `(z, y, x)` = `(h, w, w)`, sampled at voxel centres."""
        h, w = self.shape
        z, x = grid_px(self.shape)
        y = x.T
        rho = np.sqrt(y**2 + x**2)
        bore = self.radius - self.wall
        disc = np.where(rho < bore, self.mu_bore, np.where(rho < self.radius, self.mu_wall, 0))
        volume = np.repeat(disc[None].astype(np.float32), h, 0)
        for (cz, cy, cx), r, mu in zip(self.centres, self.radii, self.mu, strict=True):
            zs = slice(max(int(cz - r + h / 2) - 1, 0), max(int(cz + r + h / 2) + 2, 0))
            ys = slice(max(int(cy - r + w / 2) - 1, 0), max(int(cy + r + w / 2) + 2, 0))
            xs = slice(max(int(cx - r + w / 2) - 1, 0), max(int(cx + r + w / 2) + 2, 0))
            inside = (
                (z[zs, :, None] - cz) ** 2 + (y[None, ys] - cy) ** 2 + (x[None, :, xs] - cx) ** 2
            ) < r**2
            volume[zs, ys, xs] += np.float32(mu) * inside
        return volume
