"""From the working grid to pixels: what a correction finds, and what its result stores."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Image = NDArray[np.float32]


def spread_out(field: Tensor, factor: int, shape: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of a working-grid field `(n, h', w')` back to `(n, *shape)` pixels.

    Cell centres go where they were: pixel `y` lies at `(y + 0.5) / factor - 0.5` on the grid.
    """
    if factor == 1:
        return field
    h, w = field.shape[-2:]
    padded = F.pad(field[:, None], (1, 1, 1, 1), mode="replicate")
    big = F.interpolate(padded, scale_factor=float(factor), mode="bilinear", align_corners=False)
    big = big[:, 0, factor : factor + h * factor, factor : factor + w * factor]
    return big[:, : shape[0], : shape[1]]


def native(field: Image, factor: int, shape: tuple[int, int]) -> Image:
    """A field `(h', w')` of the working grid at native resolution, `shape`."""
    writable = np.require(field, np.float32, "W")  # torch warns of others
    return spread_out(torch.from_numpy(writable)[None], factor, shape)[0].numpy()


def with_detail(
    field: Image, details: Iterable[Image], shares: NDArray[np.floating], factor: int
) -> Image:
    """Log background `(h, w)`: what is broad of it, and so much of each fine pattern.

    Parameters
    ----------
    field : `(h', w')` on the working grid, of bin `factor`. details : c images `(h, w)`, at least one.
    shares : `(c,)` or more; the pattern that stays has 1.
    """
    detail: Image | None = None
    for image, share in zip(details, shares, strict=False):
        part = image if share == 1 else np.float32(share) * image
        detail = part if detail is None else detail + part
    assert detail is not None
    h, w = detail.shape
    return native(field, factor, (h, w)) + detail


def with_grain(std: Image, grain: float, factor: int, shape: tuple[int, int]) -> Image:
    """Spread `shape` of a log background whose field has `std` `(h', w')`, and its details noise `grain`."""
    return np.hypot(native(std, factor, shape), np.float32(grain))
