"""Wide Gaussian smoothing, quick at any width."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray


def wide_gaussian(images: NDArray[Any], sigma: float) -> NDArray[np.float32]:
    """Smooth `(..., h, w)` by a Gaussian of `sigma` pixels, reflected at the borders.

    By cosine modes, each damped by exp(-(sigma k)^2 / 2): what `gaussian_filter` does with a kernel
    that is not cut off, at a cost that does not grow with its width.
    """
    h, w = images.shape[-2:]
    ky, kx = np.pi * np.arange(h) / h, np.pi * np.arange(w) / w
    damping = np.exp(-(sigma**2) * (ky[:, None] ** 2 + kx[None] ** 2) / 2)
    modes = scipy.fft.dctn(np.asarray(images, np.float32), axes=(-2, -1), norm="ortho")
    smooth = scipy.fft.idctn(modes * damping.astype(np.float32), axes=(-2, -1), norm="ortho")
    return np.asarray(smooth, np.float32)
