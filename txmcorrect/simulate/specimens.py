"""Samples of `draw_world`: from nothing to opaque, at every contrast; tiles, spots, tomograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, spline_filter
from scipy.ndimage import shift as spline_shift

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.fields import Image, Shape
from txmcorrect.simulate.samples import SAMPLES, Spheres, contrast

OPAQUE_T = 0.06
OPAQUE_SPREAD = 0.12  # rms of an opaque sample's thickness over its mean
STRENGTH = (0.01, 0.9)  # absorption at the strongest place
WIDER = (2.2, 3.0)  # widths of the field for bodies that are wider than it
BLUR = 0.6
Seen = tuple[Image, dict[str, Any]]


def draw_specimen(
    rng: np.random.Generator,
    kind: str,
    shape: Shape,
    n: int,
    family: Family,
    strength: float,
    grid: tuple[int, int],
    overlap: float,
    pixel_um: float | None,
) -> Seen:
    """Log transmission `(n, h, w)` and the geometry that it was seen in.

    Parameters
    ----------
    kind : of `SPECIMENS`. strength : absorption at its strongest place. pixel_um : draw the volume of a
    tomogram as well, in 1/um.
    """
    if kind in TURNING:
        return _turning(rng, kind, shape, n, family, strength, pixel_um)
    if kind == "empty":
        return np.zeros((n, *shape), np.float32), {}
    if kind in SPOTS:
        return _spots(rng, SPOTS[kind], shape, n, family, strength), {}
    return _tiles(rng, kind, shape, family, strength, grid, overlap)


def grid_of(n: int) -> tuple[int, int]:
    """Rows x columns of `n` tiles, as nearly square as they come."""
    rows = next(r for r in range(int(n**0.5), 0, -1) if n % r == 0)
    return rows, n // rows


def _scaled(log_t: Image, strength: float) -> Image:
    """Log transmission whose strongest places (99.9th percentile) absorb or refract by `strength`."""
    strong = float(np.quantile(np.abs(log_t[..., ::2, ::2]), 0.999)) + 1e-9
    return np.asarray(log_t * (-np.log(1 - strength) / strong), np.float32)


def _common(sample: str) -> Callable[..., Image]:
    def world(
        rng: np.random.Generator, size: Shape, long: float, family: Family, strength: float
    ) -> Image:
        thickness = SAMPLES[sample](rng, size, long, family)
        return _scaled(
            gaussian_filter(contrast(rng, thickness, long), BLUR, mode="nearest"), strength
        )

    return world


def _opaque(
    rng: np.random.Generator, size: Shape, long: float, family: Family, strength: float
) -> Image:
    """Transmission about `OPAQUE_T` everywhere, with the structure of tissue; `strength` plays no part."""
    tissue = SAMPLES["dense"](rng, size, long, family)
    relative = 1 + OPAQUE_SPREAD * (tissue - tissue.mean()) / tissue.std()
    return np.asarray(np.log(OPAQUE_T) * np.maximum(relative, 0.3), np.float32)


SPOTS: dict[str, Callable[..., Image]] = {"film": _common("film"), "opaque": _opaque}
TURNING = ("tomo", "wide")
SPECIMENS = ("sparse", "dense", "film", "opaque", "tomo", "wide", "empty")


def _spots(
    rng: np.random.Generator,
    draw: Callable[..., Image],
    shape: Shape,
    n: int,
    family: Family,
    strength: float,
) -> Image:
    """Places of one large sample, never the same twice; each serves as its mirror images, too."""
    h, w = shape
    rows, columns = grid_of(-(-n // 4))
    world = draw(rng, (rows * h, columns * w), float(max(shape)), family, strength)
    views = world.reshape(rows, h, columns, w).swapaxes(1, 2).reshape(-1, h, w)
    mirrored = np.concatenate([views[:, ::up, ::left] for up in (1, -1) for left in (1, -1)])
    return np.ascontiguousarray(mirrored[rng.permutation(len(mirrored))[:n]])


def _tiles(
    rng: np.random.Generator,
    kind: str,
    shape: Shape,
    family: Family,
    strength: float,
    grid: tuple[int, int],
    overlap: float,
) -> Seen:
    """Overlapping tiles of a world, rows from the bottom left, at jittered places between pixels."""
    frame = np.array(shape, float)
    margin = np.ceil(frame * max(overlap / 4, 0.01)) + 2
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    order = np.stack([(grid[0] - 1 - rows).ravel(), columns.ravel()], 1)  # bottom row first
    jitter = rng.uniform(-1, 1, (len(order), 2)) * frame * overlap / 4
    position = order * frame * (1 - overlap) + margin + jitter
    size = np.ceil((np.array(grid) - 1) * frame * (1 - overlap) + frame + 2 * margin).astype(int)
    long = float(max(shape))
    world = _common(kind)(rng, (int(size[0]), int(size[1])), long, family, strength)
    splines = spline_filter(world, order=3, output=np.float32, mode="mirror")
    log_t = np.stack([_crop(splines, p, shape) for p in position])
    return log_t, {"position_px": position, "world": np.exp(world), "grid": grid}


def _crop(splines: Image, corner: Any, shape: Shape) -> Image:
    """The frame whose first pixel lies at a fractional `corner`, from spline coefficients."""
    h, w = shape
    whole = np.floor(corner).astype(int)
    y0, x0 = np.maximum(whole - 2, 0)
    window = splines[y0 : whole[0] + h + 3, x0 : whole[1] + w + 3]
    moved = spline_shift(window, -(corner - [y0, x0]), order=3, prefilter=False, mode="nearest")
    return np.asarray(moved[:h, :w], np.float32)


def _turning(
    rng: np.random.Generator,
    kind: str,
    shape: Shape,
    n: int,
    family: Family,
    strength: float,
    pixel_um: float | None,
) -> Seen:
    """Spheres in a capillary over half a turn; `wide` ones leave no vacuum beside them."""
    h, w = shape
    width = w if kind == "tomo" else round(w * rng.uniform(*WIDER))
    body = Spheres(rng, (h, width), family)
    theta = np.linspace(0, np.pi, n, endpoint=False)
    left = (width - w) // 2
    integrals = np.stack([body.project(t)[:, left : left + w] for t in theta])
    log_t = _scaled(-integrals, strength)
    geometry: dict[str, Any] = {"theta": theta}
    if pixel_um is not None and kind == "tomo":
        factor = float(log_t.sum() / -integrals.sum())
        geometry["volume"] = body.volume() * np.float32(factor / pixel_um)
    return log_t, geometry
