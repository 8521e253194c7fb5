"""What the background of a scan may do: groups of images whose weights are found together.

Sources: eigen flats, Van Nieuwenhove et al. 2015; illumination that moves before a fixed detector pattern,
Titarenko et al. 2010.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.modes import moved
from txmcorrect.background.spectrum import Bands, modes_of

Image = NDArray[np.float32]
Array = NDArray[Any]

MOST_COMPONENTS = 12
NOISE_MARGIN = (
    1.1  # times the largest eigenvalue that noise alone gives, that a component must exceed
)
BINS = 24  # of spatial frequency up to Nyquist's, in which components are freed of noise
LEAST_KEPT = 0.05  # of a component's rms that is no noise; one with less is left out
FEWEST_FLATS = 3


@dataclass(frozen=True)
class Components:
    """A group of images that the background may add to the mean flat.

    Attributes
    ----------
    name : in the field's words. images : `(k, h, w)` natural log. variance : `(k,)` of the weights.
    offset, walk, jitter : fractions of `variance` expected between references and frames, over the scan, and
    from frame to frame. strength : how many observed weights these expectations count as.
    scores : `(m, k)` weights of the scan's own flats, or None. mistakable : a sample that turns and covers
    the whole field looks like it, so that it counts only where vacuum beside the sample is known.
    """

    name: str
    images: Image
    variance: Array
    offset: float
    walk: float
    jitter: float
    strength: float
    scores: Array | None = None
    mistakable: bool = False


@dataclass(frozen=True)
class SingleFlats:
    """Flats one by one, on the working grid.

    `counts` `(m, h, w)` above dark, at the frames' usual exposure; `time` `(m,)` in scan durations, NaN
    where it is unknown or long ago; `photons` `(m,)` detected in a cell per count.
    """

    counts: Image
    time: Array
    photons: Array

    @property
    def timed(self) -> NDArray[np.bool_]:
        """Flats `(m,)` taken near the scan, at known times."""
        return np.isfinite(self.time)


@dataclass(frozen=True)
class FlatModes:
    """Principal components of flats on the working grid.

    Attributes
    ----------
    mean : `(h, w)` natural log, 0 on average over lit cells. level : `(m,)` of each flat.
    images : `(k, h, w)` of unit rms. variance : `(k,)` of flats' weights, photon noise taken off.
    scores : `(m, k)`.
    """

    mean: Image
    level: Array
    images: Image
    variance: Array
    scores: Array


def flat_modes(logs: Image, counts: Image, lit: NDArray[np.bool_]) -> FlatModes:
    """Principal components of flats that stand out of photon noise, and are freed of it.

    Parameters
    ----------
    logs : `(m, h, w)` natural log of flats. counts : `(h, w)` detected photons of a cell in one flat.
    lit : `(h, w)`.

    Cells count by their photons. Noise in a component makes weights too small (errors in variables): a
    Wiener filter takes out, band by band, what is expected of photons.
    """
    m, cells = len(logs), int(lit.sum())
    photons = np.maximum(counts[lit].astype(float), 1.0)
    weight = photons / photons.mean()
    level = (logs[:, lit] * weight).sum(1) / weight.sum()
    shapes = logs - level[:, None, None].astype(np.float32)
    mean = shapes.mean(0)
    empty = np.zeros((0, *lit.shape), np.float32)
    if m < FEWEST_FLATS:
        return FlatModes(mean, level, empty, np.zeros(0), np.zeros((m, 0)))
    spread = (shapes - mean)[:, lit].astype(float) * np.sqrt(weight)
    left, size, right = np.linalg.svd(spread, full_matrices=False)
    power = size**2 / (m - 1) / cells
    noise = 1 / photons.mean() / (m - 1)
    above = power[: m - 1] > noise * (1 + np.sqrt(m / cells)) ** 2 * NOISE_MARGIN
    images, variance, scores = [], [], []
    for k in np.flatnonzero(above)[:MOST_COMPONENTS]:
        image, chance = empty[:1].sum(0), np.ones(lit.shape, np.float32)
        image[lit] = right[k] * np.sqrt(cells / weight)
        chance[lit] = 1 / photons / ((m - 1) * power[k])
        image = without_noise(image, chance, lit)
        if np.sqrt((image[lit] ** 2 * weight).mean()) > LEAST_KEPT:
            images.append(image)
            variance.append(power[k] - noise)
            scores.append(left[:, k] * size[k] / np.sqrt(cells))
    if not images:
        return FlatModes(mean, level, empty, np.zeros(0), np.zeros((m, 0)))
    return FlatModes(mean, level, np.stack(images), np.array(variance), np.stack(scores, 1))


def without_noise(image: Image, noise: Image, lit: NDArray[np.bool_]) -> Image:
    """What is left of an image `(h, w)` after a Wiener filter against white noise of variance `noise` `(h,
    w)`.
    """
    deviation = np.sqrt(noise)
    modes = modes_of(np.where(lit, image / deviation, np.float32(0)))
    bands = Bands(image.shape, BINS)
    belief = np.clip(1 - lit.mean() / np.maximum(bands.mean(modes**2), 1e-12), 0, 1)
    return np.where(lit, bands.kept(modes, belief) * deviation, 0).astype(np.float32)


def illumination_moves(flat: Image, lit: NDArray[np.bool_], known: Image) -> Image:
    """Change `(3, h, w)` of a log flat whose illumination shifts along y, along x, and swells.

    What the images `known` `(k, h, w)` can express is taken out.
    """
    down, across = moved(flat)[:2]
    h, w = flat.shape
    y, x = np.mgrid[:h, :w]
    half = max(h, w) / 2
    zoom = down * (y - (h - 1) / 2) / half + across * (x - (w - 1) / 2) / half
    return apart_from(np.stack([down, across, zoom]), known, lit)


def apart_from(images: Image, known: Image, lit: NDArray[np.bool_]) -> Image:
    """Images `(k, h, w)` without level, and without what the images `known` express; 0 where unlit."""
    images = np.where(lit, images - images[:, lit].mean(1)[:, None, None], 0)
    if len(known):
        design = known[:, lit].astype(float).T
        weights = np.linalg.lstsq(design, images[:, lit].astype(float).T, rcond=None)[0]
        images = images - np.tensordot(weights.T, known, 1)
    return images.astype(np.float32)
