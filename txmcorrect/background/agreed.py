"""What frames of a mosaic still have in common once the drift was fitted, cell by cell.

No sample stands still there, so that what residuals share is the fit's own mistake: the same in all frames
(what is fine in the reference), or in step with how the beam changed (structure that moves, of which modes of a
reference say too little). Every other frame and the rest do not know of each other's samples and noise: what
both halves show counts, by spatial frequency.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from txmcorrect.background.modes import principal_shares
from txmcorrect.background.pattern import HALVES
from txmcorrect.background.spectrum import Bands, modes_of

Image = NDArray[np.float32]
Array = NDArray[Any]

USUAL = 0.004  # natural log, rms: what residuals share
MOST = 0.01  # what is larger is hardly believed
AROUND = 3  # cells over which a frame is compared with the others
ROUNDS = 6  # of reweighting
BINS = 16  # of spatial frequency up to Nyquist's


def agreed(left: Image, change: Image, noise: Image, lit: NDArray[np.bool_]) -> Image:
    """What is left of frames and not their samples', `(n, h, w)`, without levels.

    Parameters
    ----------
    left : `(n, h, w)` log of frames over the background so far. change : `(n, h, w)` of the latter. noise :
    `(h, w)` deviation of a cell of one frame, natural log. lit : `(h, w)`.
    """
    if len(left) < HALVES or not lit.any():
        return np.zeros_like(left)
    shapes = left - np.median(left[:, lit], 1)[:, None, None]
    courses = np.stack([np.ones(len(left)), main_course(change, lit)], 1)
    whole, one, other = (
        shared(shapes[part], courses[part], noise)
        for part in (slice(None), slice(0, None, 2), slice(1, None, 2))
    )
    images = [confirmed(*seen, lit) for seen in zip(whole, one, other, strict=True)]
    return np.tensordot(courses, np.stack(images), 1).astype(np.float32)


def main_course(change: Image, lit: NDArray[np.bool_]) -> Array:
    """The course `(n,)`, of rms 1, of most of a change `(n, h, w)` in shape; zeros where nothing changes."""
    shapes = change - change[:, lit].mean(1)[:, None, None]
    n = len(change)
    if not np.ptp(shapes[:, lit], 0).any():
        return np.zeros(n)
    return principal_shares(shapes, lit)[0] * np.sqrt(n * (n - 1))


def shared(left: Array, courses: Array, noise: Image) -> Array:
    """Image of each of some courses `(n, q)` in frames `(n, h, w)`, `(q, h, w)`: regression cell by cell.

    A frame counts the less around a cell the further it is from the others there: it shows a sample.
    """
    expected = noise**2 + np.float32(USUAL) ** 2
    prior = np.eye(courses.shape[1]) / MOST**2
    images = np.zeros((courses.shape[1], *noise.shape))
    for _ in range(ROUNDS):
        apart = left - np.tensordot(courses, images, 1)
        power = uniform_filter(apart**2 / expected, (0, AROUND, AROUND))
        weight = 1 / (np.maximum(power, 1) * noise) ** 2
        normal = np.einsum("nyx,ni,nj->yxij", weight, courses, courses) + prior
        pull = np.einsum("nyx,ni,nyx->yxi", weight, courses, left)
        images = np.moveaxis(np.linalg.solve(normal, pull[..., None])[..., 0], -1, 0)
    return images


def confirmed(whole: Array, one: Array, other: Array, lit: NDArray[np.bool_]) -> Array:
    """What of an image `(h, w)` both halves of the frames show, by frequency; without its mean."""
    bands = Bands(lit.shape, BINS)
    every, a, b = (
        modes_of(np.where(lit, image - image[lit].mean(), 0)) for image in (whole, one, other)
    )
    common, noise = bands.mean(a * b), bands.mean((a - b) ** 2) / 4
    chance = np.sqrt(bands.mean((a * b - common[bands.band]) ** 2) / bands.count)
    certain = np.maximum(common - chance, 0)  # of what halves have in common, beyond one deviation
    return np.where(lit, bands.kept(every, certain / (certain + noise + 1e-15)), 0)
