"""Failures planted into a scan: what a method must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.baselines.contract import Image
from txmcorrect.judge.scenes import Scene

LEAST_FRAMES = 12


def failure_places(frames: int) -> dict[str, int]:
    """The frame, or the first frame, that each failure hits in a scan of so many frames."""
    places = np.linspace(1, frames - 3, len(FAILURES)).astype(int)
    return dict(zip(FAILURES, places.tolist(), strict=True))


def plant_failures(scene: Scene, seed: int = 0) -> tuple[Scene, NDArray[np.bool_]]:
    """Plant one of each failure into a scan of at least 12 frames.

    Returns
    -------
    The scene, and `(n,)` frames that are spoilt whatever background is found for them. A covered
    frame, a moved stage and a jump of the illumination (it stays) only count where they harm.
    """
    n = len(scene.problem.frames)
    assert n >= LEAST_FRAMES, n
    rng = np.random.default_rng(seed)
    light = scene.problem.frames - scene.problem.dark
    log_background = scene.truth.log_background.copy()
    transmission = scene.truth.transmission.copy()
    spoilt = np.zeros(n, np.bool_)
    for name, place in failure_places(n).items():
        damage = FAILURES[name]
        where = slice(place, n) if name == "jump" else slice(place, place + 1)
        light[where], change = damage(light[where], transmission[where], rng)
        spoilt[where] = name in SPOILT
        if name in ("jump", "half-lit"):
            log_background[where] += change
        else:
            transmission[where] *= np.exp(change)
    frames = (scene.problem.dark + light).astype(np.float32)
    truth = replace(scene.truth, log_background=log_background, transmission=transmission)
    return replace(scene, problem=replace(scene.problem, frames=frames), truth=truth), spoilt


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Image:
    """Smooth random field of unit rms, a quarter of the frame wide."""
    field = gaussian_filter(rng.standard_normal(shape), max(shape) / 4, mode="wrap")
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _scaled(light: Image, log_change: Image) -> Image:
    """Light that changes by a factor, its photon noise redrawn by scaling."""
    factor = np.exp(log_change)
    blurred = np.maximum(gaussian_filter(light, (0, 2, 2)), 0)
    noise = light - blurred
    return np.asarray(factor * blurred + np.sqrt(factor) * noise, np.float32)


def _covered(light: Image, seen: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    change = -1.5 + 0.3 * _smooth(rng, light.shape[1:])
    return _scaled(light, change), change


def _beam_dump(light: Image, seen: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    return np.asarray(rng.normal(0, 2, light.shape), np.float32), np.zeros_like(light[0])


def _half_lit(light: Image, seen: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    change = np.zeros_like(light[0])
    change[:, : light.shape[-1] // 2] = np.log(0.05)
    return _scaled(light, change), change


def _saturated(light: Image, seen: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    return np.minimum(light, np.quantile(light, 0.4)), np.zeros_like(light[0])


def _moved_stage(light: Image, seen: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    """Half of the exposure with the sample seven pixels aside."""
    change = np.log((seen + np.roll(seen, 7, axis=-1)) / 2 / seen)[0]
    return _scaled(light, change), change


def _jump(light: Image, seen: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    change = 0.15 * _smooth(rng, light.shape[1:])
    return _scaled(light, change), change


# (light, transmission) of the frames concerned -> damaged light, change of the log `(h, w)`
Damage = Callable[[Image, Image, np.random.Generator], tuple[Image, Image]]
FAILURES: dict[str, Damage] = {
    "covered": _covered,
    "beam-dump": _beam_dump,
    "half-lit": _half_lit,
    "saturated": _saturated,
    "moved-stage": _moved_stage,
    "jump": _jump,
}
SPOILT = ("beam-dump", "half-lit", "saturated")
