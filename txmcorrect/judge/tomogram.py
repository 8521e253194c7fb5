"""What a background does to the reconstructed slices of a tomogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect import metrics
from txmcorrect.baselines.contract import Array, Image, correct
from txmcorrect.judge.scenes import Scene, expose
from txmcorrect.judge.trial import Finding, Trial, background_only
from txmcorrect.memo import remembered
from txmcorrect.recon.fbp import fbp
from txmcorrect.recon.geometry import ParallelBeam

SLICES = 8  # rows that are reconstructed, spread over the middle half of the frame
SPHERE_DIAMETERS = (1 / 64, 1 / 16, 1 / 4)  # of the frame's width
ABSORPTION = 0.1  # line integral through the middle of any planted sphere
CONTRAST = 0.05  # planted spheres keep their contrast to within this


@dataclass(frozen=True)
class Sphere:
    """Lengths in pixels from the middle of the volume; `mu` attenuation per pixel."""

    centre: tuple[float, float, float]  # z, y, x
    radius: float
    mu: float


def check_slices(trial: Trial) -> Finding:
    """Error of reconstructed slices; contrast and contrast-to-noise of planted spheres.

    Compared with the reconstruction of the true transmission at the same angles, so that only
    noise and background count. Spheres are planted into the raw frames: what they add to the
    slices over what they should is their contrast, the noise is what is wrong around them.
    """
    problem, truth = trial.scene.problem, trial.scene.truth
    if problem.theta is None or truth.volume is None:
        return Finding(None)
    rows = some_rows(trial.lit.shape[0])
    found = reconstruct(correct(problem, trial.estimate)[:, rows], problem.theta)
    ideal = _ideal_slices(trial.scene)
    figures = {"slice_error": metrics.relative_error(found, ideal)} | _sphere_figures(trial)
    contrasts = [v for k, v in figures.items() if k.startswith("contrast_")]
    return Finding(all(abs(c - 1) <= CONTRAST for c in contrasts), figures)


def some_rows(height: int) -> NDArray[np.intp]:
    """Rows that are reconstructed, at most `SLICES`, of frames so high."""
    last = max(3 * height // 4 - 1, height // 4)
    return np.unique(np.linspace(height // 4, last, SLICES).astype(np.intp))


def slice_figures(found: Array, ideal: Array, volume: Array) -> dict[str, float]:
    """Reconstructed slices `(k, w, w)` against those of the true transmission and the true object.

    Error, and contrast-to-noise of the densest tenth of the object `volume` `(k, w, w)` over what is
    empty, as found and as it is without any noise.
    """
    along = np.arange(volume.shape[-1]) - (volume.shape[-1] - 1) / 2
    circle = np.hypot(along[:, None], along[None]) < 0.48 * volume.shape[-1]
    filled = volume[volume > 0]
    dense = volume >= (np.quantile(filled, 0.9) if len(filled) else np.inf)
    solid, empty = dense & circle, (volume <= 0) & circle
    return {
        "slice_error": metrics.relative_error(found, ideal),
        "contrast_to_noise": metrics.contrast_to_noise(found, solid, empty),
        "contrast_to_noise_ideal": metrics.contrast_to_noise(ideal, solid, empty),
    }


@dataclass(frozen=True)
class Planted:
    """A scene with spheres in it; slices `(k, w, w)` through them, with and without, free of error."""

    scene: Scene
    spheres: list[Sphere]
    rows: list[int]
    ideal: NDArray[np.float32]
    without: NDArray[np.float32]


@remembered()
def _planted(scene: Scene) -> Planted:
    """Spheres in the raw frames of a tomogram: made once for all methods."""
    lit, truth, theta = scene.problem.lit, scene.truth, np.asarray(scene.problem.theta)
    shape = lit.shape[0], lit.shape[1]
    spheres = plant_spheres(shape)
    rows = [round(s.centre[0] + (shape[0] - 1) / 2) for s in spheres]
    planted = expose(scene, truth.transmission * np.exp(-project_spheres(spheres, shape, theta)))
    without, ideal = (
        reconstruct(np.where(lit, t, 1)[:, rows], theta)
        for t in (truth.transmission, planted.truth.transmission)
    )
    return Planted(planted, spheres, rows, ideal, without)


@remembered()
def _ideal_slices(scene: Scene) -> NDArray[np.float32]:
    rows = some_rows(scene.problem.lit.shape[0])
    true = np.where(scene.problem.lit, scene.truth.transmission, 1)
    return reconstruct(true[:, rows], np.asarray(scene.problem.theta))


def _sphere_figures(trial: Trial) -> dict[str, float]:
    """`contrast_D` and `cnr_D` of a sphere of each diameter D in pixels."""
    problem, planted = trial.scene.problem, _planted(trial.scene)
    theta, width = np.asarray(problem.theta), trial.lit.shape[1]
    estimate = background_only(trial.method)(planted.scene.problem)
    before, after = (
        reconstruct(correct(p, e)[:, planted.rows], theta)
        for p, e in ((problem, trial.estimate), (planted.scene.problem, estimate))
    )
    figures = {}
    for k, sphere in enumerate(planted.spheres):
        inside, around = regions(sphere, width)
        gained = float((after[k] - before[k])[inside].mean())
        wanted = float((planted.ideal[k] - planted.without[k])[inside].mean())
        noise = float((after[k] - planted.ideal[k])[around].std())
        name = f"{2 * sphere.radius:.0f}"
        figures[f"contrast_{name}"] = gained / wanted
        figures[f"cnr_{name}"] = abs(gained) / noise if noise > 0 else float("inf")
    return figures


def plant_spheres(shape: tuple[int, int]) -> list[Sphere]:
    """A small, a middle and a large sphere at different heights around the axis."""
    h, w = shape
    heights = np.rint(np.linspace(-h / 4, h / 4, len(SPHERE_DIAMETERS)))
    spheres = []
    for k, (height, part) in enumerate(zip(heights, SPHERE_DIAMETERS, strict=True)):
        radius, turn = max(part * w, 4.0 * 2**k) / 2, 2 * np.pi * k / len(SPHERE_DIAMETERS)
        z = float(height) + (0.0 if h % 2 else 0.5)  # the middle of a row
        centre = z, 0.2 * w * float(np.sin(turn)), 0.2 * w * float(np.cos(turn))
        spheres.append(Sphere(centre, radius, ABSORPTION / (2 * radius)))
    return spheres


def project_spheres(spheres: list[Sphere], shape: tuple[int, int], theta: Array) -> Image:
    """Line integrals `(n, h, w)` at the angles `theta` `(n,)` in radians."""
    z = (np.arange(shape[0]) - (shape[0] - 1) / 2)[:, None]
    s = (np.arange(shape[1]) - (shape[1] - 1) / 2)[None]
    out = np.zeros((len(theta), *shape), np.float32)
    for sphere in spheres:
        cz, cy, cx = sphere.centre
        for image, angle in zip(out, theta, strict=True):
            seen = cx * np.cos(angle) + cy * np.sin(angle)
            chord2 = sphere.radius**2 - (z - cz) ** 2 - (s - seen) ** 2
            image += (2 * sphere.mu * np.sqrt(np.maximum(chord2, 0))).astype(np.float32)
    return out


def regions(sphere: Sphere, width: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Well inside a sphere's middle slice, and a shell around it, `(width, width)`."""
    along = np.arange(width) - (width - 1) / 2
    _, cy, cx = sphere.centre
    distance = np.hypot(along[:, None] - cy, along[None] - cx)
    inside = distance <= max(0.7 * sphere.radius, 1.0)
    shell = (distance > 1.3 * sphere.radius + 1) & (distance < 2 * sphere.radius + 4)
    return inside, shell


def reconstruct(transmission: Array, theta: Array) -> NDArray[np.float32]:
    """Filtered back-projection of some rows: `(n, rows, w)` -> `(rows, w, w)` per pixel."""
    line_integral = -np.log(np.maximum(transmission, 1e-3)).astype(np.float32)
    sinograms = torch.from_numpy(np.ascontiguousarray(line_integral.transpose(1, 0, 2)))
    width = sinograms.shape[-1]
    beam = ParallelBeam(torch.from_numpy(np.asarray(theta, np.float64)), width)
    return np.asarray(fbp(beam, width, sinograms).numpy(), np.float32)
