"""Peers that need no reference: statistics of the stack or of a pair of frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.baselines.contract import (
    Estimate,
    Image,
    NotApplicableError,
    Problem,
    brightness,
    log_light,
)
from txmcorrect.baselines.smooth import wide_gaussian

QUANTILE = 0.9  # the brightest tenth: mostly empty, if a frame ever is
PAIR_SMOOTH_PX = 4.0


def _level_out(problem: Problem) -> tuple[Image, Image]:
    """Light divided by each frame's brightness `(n, h, w)`, and the log brightness `(n, 1, 1)`."""
    gain = brightness(problem).astype(np.float32)[:, None, None]
    light = np.maximum(problem.frames - problem.dark, 0.5)
    return (light / np.exp(gain)).astype(np.float32), gain


def _stack(statistic: Callable[[Image], NDArray[Any]]) -> Callable[[Problem], Estimate]:
    def method(problem: Problem) -> Estimate:
        light, gain = _level_out(problem)
        return Estimate((np.log(statistic(light)) + gain).astype(np.float32))

    return method


stack_mean = _stack(lambda light: light.mean(0))
stack_median = _stack(lambda light: np.asarray(np.median(light, axis=0)))
stack_quantile = _stack(lambda light: np.asarray(np.quantile(light, QUANTILE, axis=0)))


def partners(n: int, interval: int = 1) -> NDArray[np.intp]:
    """Frame that each frame is paired with: `interval` later, or earlier at the end of the scan."""
    if n <= interval:
        raise NotApplicableError(f"expected more than {interval} frames to pair, got {n}")
    index = np.arange(n, dtype=np.intp)
    return np.where(index + interval < n, index + interval, index - interval)


def pair_mean(problem: Problem, interval: int = 1) -> Estimate:
    """Mean of a frame and its partner: what the diffusion pair model must beat."""
    light, gain = _level_out(problem)
    paired = (light + light[partners(len(light), interval)]) / 2
    return Estimate((np.log(paired) + gain).astype(np.float32))


def pair_smoothed_mean(problem: Problem, interval: int = 1) -> Estimate:
    """Mean of a frame and its partner, smoothed by a Gaussian of sigma 4 pixels."""
    rough = pair_mean(problem, interval).log_background
    return Estimate(gaussian_filter(rough, (0, PAIR_SMOOTH_PX, PAIR_SMOOTH_PX)))


def neighbours_mean(problem: Problem) -> Estimate:
    """Deliberately bad: each frame divided by the mean of the frames around it, samples and all."""
    if len(problem.frames) < 2:
        raise NotApplicableError("expected at least two frames, got one: it has no neighbours")
    light, gain = _level_out(problem)
    first = np.concatenate([light[1:2], light[:-1]])
    last = np.concatenate([light[1:], light[-2:-1]])
    return Estimate((np.log((first + last) / 2) + gain).astype(np.float32))


def blur_division(problem: Problem) -> Estimate:
    """Deliberately bad: each frame divided by its own blur; perfectly flat, and the sample is gone."""
    sigma = max(problem.lit.shape) / 32
    own = log_light(problem.frames, problem.dark)
    return Estimate(wide_gaussian(own, sigma))


def erase_all(problem: Problem) -> Estimate:
    """Deliberately bad: each frame divided by itself; everything is 1."""
    return Estimate(log_light(problem.frames, problem.dark))
