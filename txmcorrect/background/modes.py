"""Ways in which a background may depart from its reference: images that a fit to frames weighs.

Components of a bank, broad cosines, a reference that moved a little, what is fine and alike in all frames.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.background.gradients import fine, from_steps

Image = NDArray[np.float32]

SHIFT = 0.01  # of the long side
# What moves is the illumination; the detector's pattern, much of what is fine, does not.
BROAD_CELLS, FINE_CELLS, BENT_CELLS = 1.5, 0.6, 1.0
COMMON_CELLS = 12.0
AGREED = 0.3  # correlation: four fresh references up to 0.16, ten of eleven stale ones from 0.37 on
COMPONENTS = 12  # of a bank
# Where recorded exposures say how bright a frame is: of the usual light there, and of the bright end.
BRIGHT, HALF = np.float32(0.9), np.float32(0.5)


def principal(bank: Image, lit: NDArray[np.bool_]) -> tuple[Image, Image]:
    """Mean `(h, w)` and components `(k, h, w)` of log references `(m, h, w)`, as large as their spread."""
    mean, shares = bank.mean(0), principal_shares(bank, lit)
    return mean, np.tensordot(shares, bank - mean, 1).astype(np.float32)


def principal_shares(bank: Image, lit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What each of the log references `(m, h, w)` adds to the components, `(k, m)`."""
    flat = ((bank - bank.mean(0)) * lit).reshape(len(bank), -1).astype(np.float64)
    vectors = np.linalg.eigh(flat @ flat.T)[1][:, ::-1]
    count = min(COMPONENTS, len(bank) - 1)
    return np.asarray(vectors[:, :count].T / math.sqrt(max(len(bank) - 1, 1)))


def cosines(shape: tuple[int, ...], most: int) -> Image:
    """Cosines of up to `most` half periods along the long side `(k, h, w)`, the slower the larger."""
    h, w = shape
    y, x = ((np.arange(n) + 0.5) * np.pi / n for n in (h, w))
    waves = []
    for i in range(h):
        for j in range(w):
            order = math.hypot(i * max(shape) / h, j * max(shape) / w)
            if 0 < order <= most:
                waves.append(np.outer(np.cos(i * y), np.cos(j * x)) / (1 + (order / 2.5) ** 2))
    return np.array(waves, np.float32).reshape(-1, h, w)


def moved(log_image: Image) -> Image:
    """Change of a log image that moves along y and x by `SHIFT` of its long side: `(7, h, w)`.

    Slopes of what is broad, slopes of what is fine (of that much may be the detector's own pattern,
    which stays), and curvatures, for moves that are not small beside the structure. Where an aperture ends
    the beam's rim moves, too: what is dark there stays as it is.
    """
    broad = gaussian_filter(log_image, BROAD_CELLS)
    fine = gaussian_filter(log_image, FINE_CELLS) - broad
    shift = SHIFT * max(log_image.shape)
    bent = _slopes(gaussian_filter(log_image, BENT_CELLS))
    curved = np.stack([*_slopes(bent[0]), _slopes(bent[1])[1]])
    images = [*shift * _slopes(broad), *shift * _slopes(fine), *shift**2 * curved]
    return np.stack(images).astype(np.float32)


def _slopes(image: Image) -> Image:
    """Along y and x `(2, h, w)`; nothing along an axis of one cell."""
    axes = enumerate(image.shape)
    return np.stack([np.gradient(image, axis=a) if n > 1 else 0 * image for a, n in axes])


def in_common(logs: Image, lit: NDArray[np.bool_]) -> Image:
    """What is fine and alike in `logs` `(n, h, w)`: `(h, w)`. What is broad cosines follow."""
    return fine(from_steps(logs, lit), lit, COMMON_CELLS)


def halves_agree(logs: Image, lit: NDArray[np.bool_]) -> bool:
    """Whether every other frame shows what the rest has in common, too: else it is noise and sample."""
    if len(logs) < 4 or np.count_nonzero(lit) < 2:
        return False
    one, other = (in_common(half, lit)[lit] for half in (logs[::2], logs[1::2]))
    if one.std() == 0 or other.std() == 0:
        return False
    return float(np.corrcoef(one, other)[0, 1]) > AGREED


def levelled(images: Image, reference: Image, lit: NDArray[np.bool_]) -> Image:
    """Images `(k, h, w)` without their mean over the bright part of a log reference `(h, w)`.

    Ring current and exposure say how bright a frame is, there; how the rim changes, where little light
    is, says nothing of that. Overlaps can't tell it: a slope that all tiles share and gains that rise from
    tile to tile look alike in them.
    """
    if not lit.any():
        return images
    well = lit & (reference >= np.quantile(reference[lit], 0.95) + np.log(HALF))
    bright = lit & (reference >= np.median(reference[well]) + np.log(BRIGHT))
    return images - images[:, bright].mean(1)[:, None, None]
