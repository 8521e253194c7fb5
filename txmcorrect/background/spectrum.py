"""Cosine modes of an image, sorted by spatial frequency: what of it is kept, band by band (Wiener 1949)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[Any]


class Bands:
    """Modes of images `(h, w)` in bands of spatial frequency, `many` up to Nyquist's; `count` `(b,)`."""

    def __init__(self, shape: tuple[int, ...], many: int) -> None:
        rows, columns = (np.arange(size) / size for size in shape)
        self.band = (np.hypot(rows[:, None], columns) * many).astype(np.intp)
        self.count = np.maximum(np.bincount(self.band.ravel()), 1)

    def mean(self, power: Array) -> Array:
        """Mean `(b,)` over the modes of each band of something about them, `(h, w)`."""
        return np.asarray(np.bincount(self.band.ravel(), power.ravel()) / self.count)

    def kept(self, modes: Array, belief: Array) -> Array:
        """The image `(h, w)` of some modes, as far as each band is believed, `(b,)`."""
        return np.asarray(
            scipy.fft.idctn(modes * belief.astype(modes.dtype)[self.band], norm="ortho")
        )


def modes_of(image: Array) -> Array:
    """Cosine modes `(h, w)` of an image, as large in all as it is."""
    return np.asarray(scipy.fft.dctn(image, norm="ortho"))


def images_of(modes: Array) -> Array:
    """The image `(h, w)` that has these cosine modes."""
    return np.asarray(scipy.fft.idctn(modes, norm="ortho"))
