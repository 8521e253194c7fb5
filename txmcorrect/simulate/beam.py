"""The beam and the detector: what an empty frame looks like, and how it wanders.

An empty frame is `exp(fixed + illumination(t))`: a fixed detector pattern (pixel gain, column
stripes, scratches, dust) under an illumination (hump or hollow-cone ring, mottle, soft aperture)
that moves by fractions of a pixel and changes shape slowly. Everything is a natural logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from txmcorrect.simulate.fields import Image, Shape, grid_px, shifted, smooth_field, spectrum

Family = Literal["train", "develop", "benchmark"]
DRIFTS = {"slow": 0.015, "medium": 0.05, "fast": 0.15}
LIT_FRACTION = 0.08  # of the median illumination; darker pixels count as unlit
MODES = 4
ENVELOPES = {
    "train": ["hump", "ring", "plane"],
    "develop": ["tent", "saddle"],
    "benchmark": ["lobes", "hump"],
}


@dataclass(frozen=True)
class Beam:
    """One instrument's background.

    Attributes
    ----------
    fixed : `(h, w)` log detector pattern; lit : `(h, w)` pixels that the aperture lights.
    envelope : log illumination `(n, h, w)` for centres `(n, 2)` and log zooms `(n,)`, if any.
    mottle_hat : half spectrum of the moving texture on `grid`; modes : `(k, h, w)` slow shape modes, unit rms
    over lit pixels.
    """

    shape: Shape
    fixed: Image
    lit: NDArray[np.bool_]
    envelope: Callable[..., Image]
    mottle_hat: NDArray[Any]
    grid: Shape
    modes: Image

    def log_background(self, path: NDArray[Any]) -> Image:
        """Log background `(n, h, w)` in the states `path` `(n, 2 + k)`: shift y, x in pixels, mode weights."""
        h, w = self.shape
        shift, weights = path[:, :2], path[:, 2:].astype(np.float32)
        moving = shifted(self.mottle_hat, self.grid, shift)[:, :h, :w]
        shape_change = np.tensordot(weights, self.modes, 1)
        return np.asarray(self.fixed + self.envelope(shift) + moving + shape_change, np.float32)

    def drift_between(self, first: NDArray[Any], last: NDArray[Any]) -> float:
        """Rms over lit pixels of log(b_last / b_first) with its mean removed."""
        a, b = self.log_background(np.stack([first, last]))
        return float((b - a)[self.lit].std())


def draw_beam(
    rng: np.random.Generator,
    shape: Shape,
    family: Family = "train",
    envelopes: Sequence[str] | None = None,
) -> Beam:
    """Draw an instrument. No family shares a generator of texture with another.

    `envelopes`: kinds of broad illumination, if not `ENVELOPES` of the family.
    """
    long = max(shape)
    envelope = _envelope(rng, shape, family, envelopes or ENVELOPES[family])
    strength = rng.uniform(0.0, 0.08)
    grid = (
        scipy.fft.next_fast_len(shape[0] * 5 // 4, True),
        scipy.fft.next_fast_len(shape[1] * 5 // 4, True),
    )
    texture = _mottle(rng, grid, long, family) * strength
    still = envelope(np.zeros((1, 2)))[0]
    level = np.exp(still)
    lit = level > LIT_FRACTION * np.median(level)
    widths = long * rng.uniform(0.15, 0.6, MODES)
    modes = np.stack([smooth_field(rng, shape, width) for width in widths])
    modes -= modes[:, lit].mean(1)[:, None, None]
    modes /= modes[:, lit].std(1)[:, None, None] + 1e-6
    fixed = detector_pattern(rng, shape, family)
    return Beam(shape, fixed, lit, envelope, texture, grid, modes)


def _mottle(rng: np.random.Generator, grid: Shape, long: int, family: Family) -> NDArray[Any]:
    """Half spectrum of the illumination's texture, unit variance."""
    width = long * np.exp(rng.uniform(np.log(1 / 60), np.log(1 / 5)))
    if family == "train":
        return spectrum(rng, grid, 1 / (4 * width), rng.uniform(4, 8))
    if family == "develop":
        return _ridges(rng, grid, width)
    cells = _cells(rng, grid, width * 2)
    texture = gaussian_filter(cells, width / 3, mode="wrap")
    texture = (texture - texture.mean()) / (texture.std() + 1e-9)
    return np.asarray(scipy.fft.rfft2(texture.astype(np.float32)))


def _ridges(rng: np.random.Generator, grid: Shape, width_px: float) -> NDArray[Any]:
    """Half spectrum of sharp ridges between round valleys, unit variance: a folded field."""
    field = scipy.fft.irfft2(spectrum(rng, grid, 1 / (4 * width_px), 6), s=grid)
    folded = -np.abs(field)
    folded = (folded - folded.mean()) / (folded.std() + 1e-9)
    return np.asarray(scipy.fft.rfft2(folded.astype(np.float32)))


def _cells(rng: np.random.Generator, grid: Shape, width_px: float) -> Image:
    """Periodic mosaic of cells of constant level, about `width_px` across (Voronoi)."""
    h, w = grid
    count = max(8, int(h * w / width_px**2))
    seeds = rng.uniform(0, 1, (count, 2)) * (h, w)
    levels = rng.standard_normal(count).astype(np.float32)
    pixels = np.indices(grid).reshape(2, -1).T
    nearest = cKDTree(seeds, boxsize=np.array([h, w], float)).query(pixels)[1]
    return np.asarray(levels[nearest].reshape(grid))


def _envelope(
    rng: np.random.Generator, shape: Shape, family: Family, kinds: Sequence[str]
) -> Callable[..., Image]:
    """Broad illumination of one of these kinds, under a soft aperture."""
    y, x = grid_px(shape)
    long = max(shape)
    kind = rng.choice(list(kinds))
    centre = rng.normal(0, 0.12, 2) * long
    depth = rng.uniform(0.1, 1.2)
    width = long * rng.uniform(0.35, 0.9)
    stretch = np.exp(rng.normal(0, 0.15))
    power = rng.uniform(1.5, 4)
    slope = rng.normal(0, 0.25, 2) / long
    radius, edge = long * rng.uniform(0.45, 1.1), long * rng.uniform(0.01, 0.06)
    apertured = rng.random() < (0.5 if family == "train" else 0.35)
    lobes = rng.uniform(-0.5, 0.5, (5, 2)) * long, rng.uniform(0.2, 0.5, 5) * long

    def level(dy: Image, dx: Image) -> Image:
        r = np.sqrt((dy * stretch) ** 2 + (dx / stretch) ** 2)
        if kind == "hump":
            log_level = -depth * (r / width) ** power
        elif kind == "ring":
            log_level = np.log(0.3 + np.exp(-(((r - 0.6 * width) / (0.35 * width)) ** 2)))
        elif kind == "lobes":
            parts = [
                np.exp(-((dy - cy) ** 2 + (dx - cx) ** 2) / (2 * s**2))
                for (cy, cx), s in zip(*lobes, strict=True)
            ]
            log_level = 0.6 * np.log(0.4 + sum(parts))
        elif kind == "tent":
            log_level = -depth * (np.abs(dy * stretch) + np.abs(dx / stretch)) / (2 * width)
        elif kind == "saddle":
            log_level = 0.5 * depth * ((dy * stretch) ** 2 - (dx / stretch) ** 2) / width**2
        else:
            log_level = np.zeros_like(r)
        log_level = log_level + slope[0] * dy + slope[1] * dx
        if apertured:  # log of a logistic edge, never below e**-6: stray light
            log_level = log_level + np.maximum(-np.logaddexp(0, (r - radius) / edge), -6)
        return np.asarray(log_level, np.float32)

    def envelope(shift: NDArray[Any], zoom: NDArray[Any] | None = None) -> Image:
        corners = (centre + shift).astype(np.float32)
        if zoom is None:
            return np.array([level(y - cy, x - cx) for cy, cx in corners], np.float32)
        smaller = np.exp(-zoom).astype(np.float32)
        return np.array(
            [level(y * s - cy, x * s - cx) for (cy, cx), s in zip(corners, smaller, strict=True)],
            np.float32,
        )

    return envelope


def detector_pattern(rng: np.random.Generator, shape: Shape, family: Family = "train") -> Image:
    """Fixed log pattern `(h, w)`: pixel gain, column stripes, web-like scratches, dust."""
    w = shape[1]
    pattern = rng.standard_normal(shape, dtype=np.float32) * rng.uniform(0.002, 0.015)
    if rng.random() < 0.5:
        pattern += rng.standard_normal((1, w), dtype=np.float32) * rng.uniform(0.001, 0.01)
    if rng.random() < 0.6:
        pattern += _scratches(rng, shape, family)
    for _ in range(rng.poisson(4)):
        _add_dust(rng, pattern)
    if rng.random() < 0.4:
        pattern += smooth_field(rng, shape, rng.uniform(1, 4)) * rng.uniform(0.002, 0.02)
    return pattern


def _scratches(rng: np.random.Generator, shape: Shape, family: Family) -> Image:
    """Thin dark or bright lines: zero crossings of a field, borders of cells, or straight lines."""
    width = max(shape) * rng.uniform(0.03, 0.15)
    depth = rng.choice([-1, 1]) * rng.uniform(0.01, 0.08)
    if family == "benchmark":
        cells = _cells(rng, shape, width)
        border = (np.diff(cells, axis=0, append=cells[-1:]) != 0) | (
            np.diff(cells, axis=1, append=cells[:, -1:]) != 0
        )
        return np.asarray(depth * gaussian_filter(border.astype(np.float32), 0.7), np.float32)
    if family == "develop":
        return np.asarray(depth * _straight_lines(rng, shape), np.float32)
    field = smooth_field(rng, shape, width)
    lines = np.exp(-((field / rng.uniform(0.02, 0.08)) ** 2))
    where = smooth_field(rng, shape, max(shape) / 5) > rng.uniform(-0.5, 1)
    return np.asarray(depth * lines * where, np.float32)


def _straight_lines(rng: np.random.Generator, shape: Shape) -> Image:
    """Some straight lines across the frame, 1 on them."""
    y, x = grid_px(shape)
    lines = np.zeros(shape, np.float32)
    for _ in range(int(rng.integers(2, 9))):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5) * min(shape)
        across = y * np.cos(angle) - x * np.sin(angle) - offset
        lines = np.maximum(lines, np.exp(-((across / rng.uniform(0.5, 1.5)) ** 2)))
    return lines


def _add_dust(rng: np.random.Generator, pattern: Image) -> None:
    """Add one round speck, in place."""
    h, w = pattern.shape
    radius = np.exp(rng.uniform(np.log(0.8), np.log(max(2.0, max(h, w) / 30))))
    cy, cx = rng.uniform(0, h), rng.uniform(0, w)
    reach = int(3 * radius) + 1
    ys = slice(max(0, int(cy) - reach), min(h, int(cy) + reach + 1))
    xs = slice(max(0, int(cx) - reach), min(w, int(cx) + reach + 1))
    y, x = np.ogrid[ys, xs]
    r2 = ((y - cy) ** 2 + (x - cx) ** 2) / radius**2
    pattern[ys, xs] += np.float32(rng.choice([-1, -1, 1]) * rng.uniform(0.01, 0.15)) * np.exp(
        -(r2 ** rng.uniform(1, 3))
    ).astype(np.float32)


def wander(rng: np.random.Generator, n: int, wobble: float = 0.3) -> NDArray[Any]:
    """Unscaled path `(n, 2 + MODES)` from 0: a steady trend, a smooth random walk, a little jitter."""
    t = np.linspace(0, 1, n)[:, None]
    trend = rng.standard_normal((1, 2 + MODES)) * t
    walk = np.cumsum(np.cumsum(rng.standard_normal((n, 2 + MODES)), 0), 0)
    walk = wobble * walk / (np.abs(walk).max(0) + 1e-9)
    jitter = 0.01 * rng.standard_normal((n, 2 + MODES))
    path = trend + walk + jitter
    return path - path[:1]


def path_scale(rng: np.random.Generator, beam: Beam) -> NDArray[Any]:
    """How much of the drift each coordinate may carry: pixels of shift, weights of shape modes."""
    shift = max(beam.shape) * 0.02 * rng.uniform(0.3, 1)
    return np.array([shift, shift, *rng.uniform(0.005, 0.03, MODES)])


def scale_to_drift(
    beam: Beam, path: NDArray[Any], drift: float, iterations: int = 4
) -> NDArray[Any]:
    """Stretch a path until first and last frame differ by `drift` (rms of the log ratio over lit pixels).

    The change is nearly proportional to the stretch, so a few fixed-point steps settle it.
    """
    for _ in range(iterations):
        now = beam.drift_between(path[0], path[-1])
        path = path[:1] + (path - path[:1]) * min(drift / max(now, 1e-9), 50.0)
    return path
