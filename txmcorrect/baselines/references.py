"""Peers that divide by a reference: as it is, interpolated, moved, or bent to the frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.ndimage import shift as spline_shift

from txmcorrect.baselines.contract import (
    Estimate,
    Image,
    NotApplicableError,
    Problem,
    Scale,
    brightness,
    log_flat,
    log_light,
    scale_to_current,
)
from txmcorrect.baselines.smooth import wide_gaussian

SMOOTH_FRACTION = (
    1 / 4
)  # of the frame's long side: wider than most objects, as narrow as the drift needs
DETECTOR_PX = 6.0  # what is finer than this belongs to the detector and does not move


def no_correction(problem: Problem) -> Estimate:
    """Divide by one number, the mean light of the stack: changes nothing but the unit."""
    level = (problem.frames - problem.dark)[:, problem.lit].mean(dtype=np.float64)
    return Estimate(np.full(problem.shape, np.log(max(level, 0.5)), np.float32))


def stale(problem: Problem) -> Estimate:
    """The scan's own reference, scaled by ring current."""
    return scale_to_current(problem, *log_flat(problem.nearest, problem.dark))


def bank_mean(problem: Problem) -> Estimate:
    """Mean of a bank of references, each scaled by its ring current."""
    if problem.bank is None:
        raise NotApplicableError("expected a bank of references, got none")
    return scale_to_current(problem, *log_flat(problem.bank, problem.dark))


def interpolated(problem: Problem) -> Estimate:
    """References before and after, interpolated in the logarithm along the scan."""
    if problem.before is None or problem.after is None:
        raise NotApplicableError("expected references before and after the scan, got one or none")
    first, last = (
        scale_to_current(problem, *log_flat(f, problem.dark))
        for f in (problem.before, problem.after)
    )
    n = len(problem.frames)
    t = np.linspace(0, 1, n, dtype=np.float32)[:, None, None]
    scale: Scale = "absolute" if first.scale == last.scale == "absolute" else "relative"
    return Estimate((1 - t) * first.log_background + t * last.log_background, scale)


def shift_registered(problem: Problem) -> Estimate:
    """The reference with its illumination moved to fit each frame, detector pattern left in place.

    The shift solves log frame - log reference = -shift . gradient + constant by reweighted least
    squares (Cauchy weights), so that the sample counts as outlier.
    """
    estimate = stale(problem)
    out = estimate.log_background.copy()
    frames = log_light(problem.frames, problem.dark)
    for i, reference in enumerate(estimate.log_background):
        moving = gaussian_filter(reference, DETECTOR_PX)
        ratio = gaussian_filter(frames[i] - reference, DETECTOR_PX)
        offset = _robust_shift(ratio, moving, problem.lit)
        out[i] += spline_shift(moving, offset, order=3, mode="nearest") - moving
    return Estimate(out, estimate.scale)


def _robust_shift(ratio: Image, moving: Image, lit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shift (y, x) in pixels that turns `moving` into `moving + ratio`, up to a constant."""
    shape = ratio.shape
    gradients = [
        np.gradient(moving, axis=axis) if shape[axis] > 2 else 0 * moving for axis in (0, 1)
    ]
    design = np.stack([-g[lit] for g in gradients] + [np.ones(int(lit.sum()))], 1).astype(
        np.float64
    )
    target = ratio[lit].astype(np.float64)
    weight: NDArray[Any] = np.ones_like(target)
    solution: NDArray[Any] = np.zeros(3)
    for _ in range(10):
        normal = design.T @ (weight[:, None] * design) + 1e-9 * np.eye(3)
        solution = np.linalg.solve(normal, design.T @ (weight * target))
        residual = target - design @ solution
        width = 1.4826 * np.median(np.abs(residual)) + 1e-6
        weight = 1 / (1 + (residual / (2 * width)) ** 2)
    limit = 0.05 * max(shape)  # a beam that wandered farther is not this beam
    return np.asarray(np.clip(solution[:2], -limit, limit))


def smoothed_ratio(problem: Problem) -> Estimate:
    """The reference times the smoothed log-ratio of frame and reference: follows the beam, and the sample."""
    reference = stale(problem)
    ratio = log_light(problem.frames, problem.dark) - reference.log_background
    return Estimate(reference.log_background + _smooth_lit(ratio, problem.lit), "relative")


def _smooth_lit(images: Image, lit: NDArray[np.bool_]) -> Image:
    """Normalised Gaussian smoothing that ignores unlit pixels."""
    sigma = SMOOTH_FRACTION * max(lit.shape)
    weight = wide_gaussian(lit, sigma)
    smooth = wide_gaussian(np.where(lit, images, np.float32(0)), sigma)
    return np.asarray(smooth / np.maximum(weight, 1e-6), np.float32)


def double_flat_field(problem: Problem) -> Estimate:
    """Reference first, then the fine structure that all corrected frames share.

    The mean of the corrected frames, divided by its own blur (sigma 5 pixels), holds what is fixed
    on the detector and was missed; the blur spares the sample. Works without a reference too.

    Source: the double flat-field of tomography, Boin and Haibel 2006, as nabu offers it.
    """
    try:
        first = stale(problem)
    except NotApplicableError:
        gain = brightness(problem).astype(np.float32)[:, None, None]
        first = Estimate(np.broadcast_to(gain, problem.shape).copy(), "relative")
    light = np.maximum(problem.frames - problem.dark, 0.5)
    shared = np.log((light / np.exp(first.log_background)).mean(0))
    fine = np.where(problem.lit, shared - gaussian_filter(shared, 5.0), 0)
    return Estimate((first.log_background + fine).astype(np.float32), first.scale)
