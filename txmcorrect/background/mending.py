"""Pixels that were dead or hot when a reference was taken and work in the scan.

One of them spoils its whole cell of the working grid, and what is interpolated from that. Pixels that say the
same in both cancel, and those that broke since are broken in the scan.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.scale import LEAST, Reference

Image = NDArray[np.float32]
ODD = 0.7  # natural log, from the pixels around and from the scan's own pattern
REACH = 2  # pixels around


def odd_pixels(reference: Reference, apart: Image, working: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Flat indices of pixels in which a reference is odd.

    `apart` `(h, w)`: its detail less that of the scan, natural log. `working` `(h, w)`: pixels that are lit
    and work in the scan.
    """
    candidates = np.flatnonzero((np.abs(apart) > ODD) & working)
    counts = np.maximum(reference.counts.ravel()[candidates], LEAST)
    usual = np.maximum(_around(reference.counts, candidates), LEAST)
    return candidates[np.abs(np.log(counts / usual)) > ODD]


def mended(reference: Reference, pixels: NDArray[np.intp], factor: int) -> Reference:
    """The reference with what is usual around in `pixels`, flat indices; `factor` of the working grid."""
    if len(pixels) == 0:
        return reference

    def healed(image: Image) -> Image:
        image = image.copy()
        image.ravel()[pixels] = _around(image, pixels)
        return image

    counts, flats, flat = healed(reference.counts), reference.flats, reference.flat
    if flats is not None:
        change = torch.from_numpy(counts - reference.counts)[None]
        flats = flats + bin_mean(change, factor).numpy()
    single = None if flat is None else lambda i: healed(flat(i))
    return replace(reference, counts=counts, flats=flats, flat=single)


def _around(image: Image, pixels: NDArray[np.intp]) -> Image:
    """Median of the pixels around each of some."""
    h, w = image.shape
    y, x = np.unravel_index(pixels, (h, w))
    offsets = np.arange(-REACH, REACH + 1)
    rows = np.clip(y[:, None, None] + offsets[None, :, None], 0, h - 1)
    columns = np.clip(x[:, None, None] + offsets[None, None, :], 0, w - 1)
    near = image[rows, columns].reshape(len(pixels), len(offsets) ** 2)
    return np.asarray(np.median(near, 1), np.float32)
