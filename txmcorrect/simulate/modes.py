"""Shapes by which an empty frame changes: broad ones, and those with the scales of measured references.

Each family draws them its own way (the table in `worlds`). The scale of structure is its period, as a
fraction of the frame's long side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.fields import Image, Shape, frequencies, grid_px

BROAD = 8  # periods above 1/8 of the frame are broad
# Rms of the log ratio of two references of a real TXM taken a second apart, by band: periods between
# these fractions of the frame. The broad band's is drawn; the last is a bound.
BANDS = ((16, 8, 0.01), (32, 16, 0.005), (64, 32, 0.002), (np.inf, 64, 0.0012))
BAND_SPREAD = 0.3  # of the logarithm of these
FIRST_SHARE = (0.92, 0.95)  # of the variance, in the first component
MAIN_SHARE = 0.99  # in the first three
FEW = 6  # components that share the rest
BUMPS = 10
ZERNIKE = [(n, m) for n in range(1, 6) for m in range(-n, n + 1, 2)]


def _smooth(rng: np.random.Generator, shape: Shape) -> Image:
    """Gaussian random field, redder than white, of broad periods."""
    size = scipy.fft.next_fast_len(max(shape) * 5 // 4, True)
    fy, fx = frequencies((size, size))
    f = np.sqrt(fy**2 + fx**2) * max(shape)
    weight = np.where((f > 0) & (f <= BROAD), (f + 1) ** -1.5, 0).astype(np.float32)
    white = scipy.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    field = scipy.fft.irfft2(white * weight, s=(size, size))
    return np.asarray(field[: shape[0], : shape[1]], np.float32)


def _zernike(rng: np.random.Generator, shape: Shape) -> Image:
    """Sum of Zernike-like polynomials up to the fifth order, on the circle around the frame."""
    y, x = grid_px(shape)
    r, turn = np.hypot(y, x) / (0.5 * np.hypot(*shape)), np.arctan2(y, x + 0 * y)
    total = np.zeros(shape, np.float32)
    for n, m in ZERNIKE:
        radial = np.polynomial.Polynomial(_radial(n, abs(m)))(r)
        angle = np.cos(m * turn) if m >= 0 else np.sin(-m * turn)
        total += np.float32(rng.standard_normal() / n) * (radial * angle).astype(np.float32)
    return total


def _radial(n: int, m: int) -> list[float]:
    """Coefficients of Zernike's radial polynomial, lowest power first."""
    factorial = [1.0]
    for i in range(1, n + 1):
        factorial.append(factorial[-1] * i)
    found = [0.0] * (n + 1)
    for k in range((n - m) // 2 + 1):
        below = factorial[k] * factorial[(n + m) // 2 - k] * factorial[(n - m) // 2 - k]
        found[n - 2 * k] = (-1) ** k * factorial[n - k] / below
    return found


def _gabor(rng: np.random.Generator, shape: Shape) -> Image:
    """Sum of waves under round windows, of periods above a quarter of the frame."""
    y, x = grid_px(shape)
    long = max(shape)
    total = np.zeros(shape, np.float32)
    for _ in range(BUMPS):
        cy, cx = rng.uniform(-0.5, 0.5, 2) * shape
        width = long * rng.uniform(0.15, 0.35)
        wave = 2 * np.pi / (long * rng.uniform(0.3, 2))
        turn, phase = rng.uniform(0, 2 * np.pi, 2)
        window = np.exp(-((y - cy) ** 2) / (2 * width**2)) * np.exp(
            -((x - cx) ** 2) / (2 * width**2)
        )
        along = (y * np.sin(turn) + x * np.cos(turn)) * wave + phase
        total += (rng.standard_normal() * window * np.cos(along)).astype(np.float32)
    return total


BROAD_SHAPES: dict[Family, Callable[[np.random.Generator, Shape], Image]] = {
    "train": _smooth,
    "develop": _zernike,
    "benchmark": _gabor,
}


def _grain(rng: np.random.Generator, shape: Shape, family: Family) -> NDArray[Any]:
    """Half spectrum that finer bands are cut from: Gaussian, streaked, or of scattered points."""
    if family == "benchmark":
        points = rng.standard_normal(shape, dtype=np.float32) * (rng.random(shape) < 0.03)
        return np.asarray(scipy.fft.rfft2(points.astype(np.float32)))
    white = scipy.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    if family == "develop":
        fy, fx = frequencies(shape)
        white = white * ((0.1 + np.abs(fy)) / (0.1 + np.abs(fy) + 2 * np.abs(fx)))
    return np.asarray(white, np.complex64)


def _unit(image: Image, lit: NDArray[np.bool_]) -> Image:
    """Mean 0 and rms 1 over lit pixels."""
    inside = image[lit]
    return np.asarray((image - inside.mean()) / (inside.std() + 1e-9), np.float32)


def broad_modes(
    rng: np.random.Generator, shape: Shape, lit: NDArray[np.bool_], family: Family, k: int
) -> Image:
    """`(k, h, w)` broad shapes of unit rms over lit pixels."""
    return np.stack([_unit(BROAD_SHAPES[family](rng, shape), lit) for _ in range(k)])


def shares_of_variance(rng: np.random.Generator, rank: int) -> NDArray[np.float64]:
    """Of each component `(rank + FEW,)`: the first holds 92-95 % unless it is alone, all main ones 99 %."""
    first = rng.uniform(*FIRST_SHARE)
    main = {1: [MAIN_SHARE], 2: [first, MAIN_SHARE - first]}
    two = 0.8 * (MAIN_SHARE - first)
    shares = main.get(rank, [first, two, MAIN_SHARE - first - two])
    return np.array([*shares, *[(1 - MAIN_SHARE) / FEW] * FEW])


def measured_modes(
    rng: np.random.Generator,
    shape: Shape,
    lit: NDArray[np.bool_],
    family: Family,
    rank: int,
    broad: float,
) -> Image:
    """Shapes of jitter `(rank + FEW, h, w)` whose scores are independent and of unit variance.

    The log ratio of two exposures then has an rms of `broad` above 1/8 of the frame and of `BANDS` below,
    and components with `shares_of_variance`.
    """
    shares = shares_of_variance(rng, rank)
    amounts = [a * np.exp(BAND_SPREAD * rng.standard_normal()) for *_, a in BANDS[:-1]]
    amounts.append(BANDS[-1][-1] * rng.uniform(0, 1))
    one = [
        broad * _unit(BROAD_SHAPES[family](rng, shape), lit) + _fine(rng, shape, family, amounts)
        for _ in shares
    ]
    images = np.stack(one) / np.sqrt(2)  # two exposures differ by both their jitters
    images -= images[:, lit].mean(1)[:, None, None]
    # Orthogonal over lit pixels, so that the components found again are these.
    size = np.linalg.norm(images[:, lit], axis=1)
    images = np.tensordot(_orthogonal(images[:, lit]), images, 1)
    size = np.sqrt(shares) * size[0] / (np.linalg.norm(images[:, lit], axis=1) + 1e-12)
    return np.asarray(images * size[:, None, None], np.float32)


def _orthogonal(rows: Image) -> NDArray[np.float64]:
    """Lower triangular mixing `(k, k)` that makes rows orthogonal, first to last (Cholesky)."""
    gram = rows.astype(np.float64) @ rows.T.astype(np.float64)
    gram += 1e-9 * np.trace(gram) * np.eye(len(gram))
    return np.asarray(np.linalg.inv(np.linalg.cholesky(gram)))


def _fine(rng: np.random.Generator, shape: Shape, family: Family, amounts: list[float]) -> Image:
    """Field `(h, w)` with these rms in `BANDS`; bands finer than the pixels are left out."""
    long = max(shape)
    h, w = (scipy.fft.next_fast_len(s * 5 // 4, True) for s in shape)
    fy, fx = frequencies((h, w))
    f = np.sqrt(fy**2 + fx**2) * long
    spectrum = _grain(rng, (h, w), family)
    power = np.abs(spectrum) ** 2
    power[:, 1 : (w + 1) // 2] *= 2  # the half that real fields leave out
    gain = np.zeros(f.shape, np.float32)
    for (finest, broadest, _), amount in zip(BANDS, amounts, strict=True):
        inside = (f > broadest) & (f <= finest)
        total = float(power[inside].sum())
        if total > 0:
            gain[inside] = amount * h * w / np.sqrt(total)
    return np.asarray(
        scipy.fft.irfft2(spectrum * gain, s=(h, w))[: shape[0], : shape[1]], np.float32
    )
