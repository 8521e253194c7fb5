"""Dynamic flat-fields: principal components of a bank of references, weights fitted per frame.

Source: Van Nieuwenhove et al. 2015, "Dynamic intensity normalization using eigen flat fields in
X-ray imaging", Optics Express 23; our own implementation, and a robust variant in the logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize

from txmcorrect.baselines.contract import (
    Estimate,
    Flats,
    Image,
    NotApplicableError,
    Problem,
    log_light,
)
from txmcorrect.memo import remembered

Array = NDArray[Any]
PERMUTATIONS = 10  # of parallel analysis
SUBSAMPLE = 65536  # pixels that parallel analysis looks at
EIGEN_SMOOTH_PX = 1.0  # the source denoises its eigen flats; a light Gaussian does here
COARSE_PX = 8  # frames are reduced by this for the fit; the source's 2 drowns in photon noise


@dataclass(frozen=True)
class EigenFlats:
    """Mean `(h, w)` and components `(k, h, w)` of a bank."""

    mean: Image
    components: Image


def decompose(
    bank: Array, lit: NDArray[np.bool_], smooth_px: float = EIGEN_SMOOTH_PX
) -> EigenFlats:
    """Principal components of `bank` `(m, h, w)` that stand out of noise by parallel analysis."""
    m = len(bank)
    mean = bank.mean(0)
    centred = (bank - mean)[:, lit].astype(np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    order = np.argsort(values)[::-1]
    count = significant_components(centred)
    components = np.zeros((count, *lit.shape), np.float32)
    for k in range(count):
        image = np.tensordot(vectors[:, order[k]], bank - mean, 1)
        components[k] = gaussian_filter(np.where(lit, image, 0), smooth_px)
        components[k] /= components[k][lit].std() + 1e-12
    assert count < m
    return EigenFlats(mean.astype(np.float32), components)


def significant_components(centred: Array, seed: int = 0) -> int:
    """How many components exceed those of the same data with each pixel shuffled over references.

    `centred` is `(m, p)` with zero mean over m. A component counts while its eigenvalue exceeds
    the shuffled ones' mean by two standard deviations.
    """
    rng = np.random.default_rng(seed)
    m, p = centred.shape
    data = centred[:, rng.choice(p, SUBSAMPLE, replace=False)] if p > SUBSAMPLE else centred
    real = np.linalg.eigvalsh(data @ data.T)[::-1]
    chance = np.empty((PERMUTATIONS, m))
    for i in range(PERMUTATIONS):
        shuffled = rng.permuted(data, axis=0)
        chance[i] = np.linalg.eigvalsh(shuffled @ shuffled.T)[::-1]
    above = real > chance.mean(0) + 2 * chance.std(0)
    return int(np.argmin(above)) if not above.all() else m - 1


def _bank(problem: Problem) -> Flats:
    if problem.bank is None or len(problem.bank.counts) < 3:
        raise NotApplicableError("expected a bank of at least 3 references, got fewer")
    return problem.bank


def _relative_current(flats: Flats) -> Array:
    """Ring current of each reference over the bank's mean, 1 where unknown: `(m, 1, 1)`."""
    if flats.current_ma is None:
        return np.ones((len(flats.counts), 1, 1))
    return np.asarray(flats.current_ma / np.mean(flats.current_ma))[:, None, None]


def _frame_current(problem: Problem, flats: Flats) -> tuple[Array, bool]:
    """Ring current of each frame over the bank's mean `(n,)`, and whether it is known."""
    if problem.current_ma is None or flats.current_ma is None:
        return np.ones(len(problem.frames)), False
    return np.asarray(problem.current_ma / np.mean(flats.current_ma)), True


@remembered()
def _linear_modes(bank: Flats, dark: Image, lit: NDArray[np.bool_]) -> EigenFlats:
    return decompose((bank.counts - dark) / _relative_current(bank), lit)


@remembered()
def _log_modes(bank: Flats, dark: Image, lit: NDArray[np.bool_]) -> EigenFlats:
    return decompose(log_light(bank.counts, dark) - np.log(_relative_current(bank)), lit)


def eigen_flats(problem: Problem) -> Estimate:
    """Eigen flats as published: weights minimise the total variation of each corrected frame."""
    bank = _bank(problem)
    flat = _linear_modes(bank, problem.dark, problem.lit)
    floor = np.float32(0.02 * np.median(flat.mean[problem.lit]))
    current, known = _frame_current(problem, bank)
    out = np.empty(problem.shape, np.float32)
    for i, frame in enumerate(problem.frames):
        light = (frame - problem.dark) / np.float32(current[i])
        weights = _least_variation(light, flat, problem.lit, floor)
        background = flat.mean + np.tensordot(weights, flat.components, 1)
        out[i] = np.log(np.maximum(background, floor)) + np.log(current[i])
    return Estimate(out, "absolute" if known else "relative")


def _reduce(image: Array, by: int) -> Array:
    """Mean over squares of `by` pixels, or over what the frame allows: `(..., h, w)`."""
    h, w = image.shape[-2:]
    by_y, by_x = (min(by, side // 2) if side < 4 * by else by for side in (h, w))
    by_y = max(by_y, 1)
    cut = image[..., : h // by_y * by_y, : w // by_x * by_x]
    return np.asarray(
        cut.reshape(*image.shape[:-2], h // by_y, by_y, w // by_x, by_x).mean((-3, -1))
    )


def _least_variation(
    light: Image, flat: EigenFlats, lit: NDArray[np.bool_], floor: np.float32
) -> NDArray[np.float32]:
    """Weights `(k,)` that minimise the (slightly rounded) total variation of light / background."""
    small = _reduce(light, COARSE_PX).astype(np.float64)
    mean, components = _reduce(flat.mean, COARSE_PX), _reduce(flat.components, COARSE_PX)
    inside = _reduce(lit.astype(np.float64), COARSE_PX) == 1
    edges = [inside[1:] & inside[:-1], inside[:, 1:] & inside[:, :-1]]
    level = float(np.mean(small[inside] / mean[inside]))
    rounding = 1e-3 * level

    def variation(weights: Array) -> tuple[float, Array]:
        background = np.maximum(mean + np.tensordot(weights, components, 1), floor)
        image = small / background
        # Dividing by its level keeps "darker everywhere" from looking smoother.
        change = -image / background
        total, gradient = 0.0, np.zeros_like(image)
        for axis, edge in enumerate(edges):
            step = np.diff(image, axis=axis)
            size = np.sqrt(step**2 + rounding**2)
            total += float(size[edge].sum())
            pull = np.where(edge, step / size, 0)
            upper, lower = ([slice(None)] * 2 for _ in range(2))
            upper[axis], lower[axis] = slice(1, None), slice(None, -1)
            gradient[tuple(upper)] += pull
            gradient[tuple(lower)] -= pull
        norm = float(image[inside].mean())
        norm_gradient = np.where(inside, change, 0) / inside.sum()
        slope = gradient * change / norm - total / norm**2 * norm_gradient
        return total / norm, np.tensordot(components, slope, 2)

    if len(components) == 0:
        return np.zeros(0, np.float32)
    unit = 0.01 * float(mean[inside].mean())  # components have unit rms; the solver likes order one

    def scaled(z: Array) -> tuple[float, Array]:
        value, gradient = variation(z * unit)
        return value, gradient * unit

    start = np.zeros(len(components))
    found = minimize(scaled, start, jac=True, method="L-BFGS-B", options={"maxiter": 60})
    return (found.x * unit).astype(np.float32)


def robust_eigen_flats(problem: Problem) -> Estimate:
    """Eigen flats in the logarithm, weights by reweighted least squares on smoothed gradients.

    In the logarithm the sample adds, so a fit of gradients with Cauchy weights is linear and
    ignores the sample's edges; smoothing first (sigma 2 and 6 pixels) beats the photon noise.
    """
    bank = _bank(problem)
    current, known = _frame_current(problem, bank)
    flat = _log_modes(bank, problem.dark, problem.lit)
    frames = log_light(problem.frames, problem.dark)
    out = np.empty(problem.shape, np.float32)
    design, edges = _log_design(flat.components, problem.lit)
    for i, frame in enumerate(frames):
        target = _gradients(frame - flat.mean, edges, problem.lit)
        weights = robust_weights(design, target)
        out[i] = flat.mean + np.tensordot(weights, flat.components, 1) + np.log(current[i])
    return Estimate(out, "absolute" if known else "relative")


SCALES_PX = (2.0, 6.0)


def _log_design(components: Image, lit: NDArray[np.bool_]) -> tuple[Array, list[Array]]:
    """Gradients of all components as columns `(p, k)`, and the pixels they are taken at."""
    edges = []
    for sigma in SCALES_PX:
        solid = gaussian_filter(lit.astype(np.float32), sigma) > 0.98
        edges.append(solid)
    columns = [_gradients(c, edges, lit) for c in components]
    rows = len(_gradients(np.zeros(lit.shape, np.float32), edges, lit))
    return np.stack(columns, 1) if columns else np.zeros((rows, 0)), edges


def _gradients(image: Image, edges: list[Array], lit: NDArray[np.bool_]) -> Array:
    """Steps of the smoothed image at every scale, sampled once per width, in units of the noise."""
    parts = []
    filled = np.where(lit, image, np.median(image[lit]))
    for sigma, solid in zip(SCALES_PX, edges, strict=True):
        smooth = gaussian_filter(filled, sigma)
        stride = max(1, int(sigma))
        for axis in (0, 1):
            reach = int(2 * sigma)
            if image.shape[axis] <= reach:
                continue
            step = np.take(smooth, np.arange(reach, image.shape[axis]), axis) - np.take(
                smooth, np.arange(image.shape[axis] - reach), axis
            )
            both = np.take(solid, np.arange(reach, image.shape[axis]), axis) & np.take(
                solid, np.arange(image.shape[axis] - reach), axis
            )
            # White noise smoothed by sigma has a standard deviation that falls as 1/sigma.
            parts.append(np.where(both, step * sigma, 0)[::stride, ::stride].ravel())
    return np.concatenate(parts).astype(np.float64)


def robust_weights(design: Array, target: Array, rounds: int = 20) -> NDArray[np.float32]:
    """Solve design @ weights = target by least squares with Cauchy weights: `(k,)`."""
    k = design.shape[1]
    weights = np.zeros(k)
    if k == 0:
        return weights.astype(np.float32)
    used = np.any(design != 0, axis=1)
    design, target = design[used], target[used]
    trust = np.ones(len(target))
    for _ in range(rounds):
        normal = design.T @ (trust[:, None] * design)
        ridge = 1e-9 * np.trace(normal) / k * np.eye(k)
        weights = np.linalg.solve(normal + ridge, design.T @ (trust * target))
        residual = target - design @ weights
        width = 1.4826 * np.median(np.abs(residual)) + 1e-9
        trust = 1 / (1 + (residual / (1.5 * width)) ** 2)
    return weights.astype(np.float32)
