"""Frames -> what the network sees. The same code serves training and correction.

The network lives on a *working grid*: frames binned by an integer so that the long side is at most
`size` pixels. There the logarithm of counts is taken, relative to a common level, clipped at the
unlit end and divided by `LOG_SCALE` so that backgrounds have about unit variance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_SCALE = 0.3
LOG_FLOOR, LOG_CEILING = -3.0, 1.5  # relative to the level; darker than e**-3 is as good as unlit
CHANNELS = {"pair": 7, "none": 0}


def working_bin(shape: tuple[int, int], size: int) -> int:
    """The integer that brings the long side of `shape` down to at most `size` pixels."""
    return max(1, math.ceil(max(shape) / size))


def bin_mean(frames: Tensor, factor: int) -> Tensor:
    """Means over `factor` x `factor` pixels: `(n, h, w)` -> `(n, ceil(h/f), ceil(w/f))`.

    Cells that hang over the border average the pixels they have.
    """
    if factor == 1:
        return frames
    return F.avg_pool2d(frames[:, None], factor, ceil_mode=True, count_include_pad=False)[:, 0]


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


def common_level(first: Tensor, second: Tensor) -> Tensor:
    """Log of the median of both frames' mean over what is lit: `(b, h, w)` x 2 -> `(b,)`.

    A median of what exceeds a tenth of the bright end: bright specks cannot pull it, dark corners
    do not enter.
    """
    mean = ((first + second) / 2).flatten(1)
    bright = torch.quantile(mean, 0.95, 1, keepdim=True)
    lit = torch.where(mean > 0.1 * bright, mean, torch.nan)
    return torch.nanmedian(lit, 1).values.clamp_min(1e-3).log()


def to_log(counts: Tensor, level: Tensor) -> Tensor:
    """Counts `(b, h, w)` and log level `(b,)` -> normalised logarithm, clipped at both ends."""
    relative = counts * torch.exp(-level)[:, None, None]
    return relative.clamp(math.exp(LOG_FLOOR), math.exp(LOG_CEILING)).log() / LOG_SCALE


def log_noise(counts: Tensor, photons: Tensor) -> Tensor:
    """Standard deviation of the normalised logarithm: `1 / sqrt(N)`; `photons` `(b,)` per count."""
    n = counts.clamp_min(0) * photons[:, None, None]
    return (1 / (n + 1).sqrt() / LOG_SCALE).clamp_max(3.0)


def coordinates(like: Tensor) -> Tensor:
    """Position channels `(b, 2, h, w)`, y and x; the long side runs from -1 to 1."""
    b, h, w = like.shape
    long = max(h, w)
    y = (torch.arange(h, device=like.device) - (h - 1) / 2) * 2 / long
    x = (torch.arange(w, device=like.device) - (w - 1) / 2) * 2 / long
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")).to(like)
    return grid[None].expand(b, 2, h, w)


def pair_condition(first: Tensor, second: Tensor, photons: Tensor) -> tuple[Tensor, Tensor]:
    """Two frames with nearly the same background (source 0's condition, at an honest scale).

    Parameters
    ----------
    first, second : `(b, h, w)` counts without dark on the working grid; NaN where missing.
    photons : `(b,)` detected photons per count and working pixel.

    Returns
    -------
    cond : `(b, 7, h, w)`: both logarithms, both masks of what is known, noise, y, x.
    level : `(b,)` log counts that the logarithms are relative to.
    """
    known = [torch.isfinite(f) for f in (first, second)]
    # A pixel missing in one frame shows what the other has; its mask says so.
    a = torch.where(known[0], first, torch.where(known[1], second, 0))
    b = torch.where(known[1], second, torch.where(known[0], first, 0))
    level = common_level(a, b)
    channels = [to_log(a, level), to_log(b, level), *(k.to(a) for k in known)]
    noise = log_noise((a + b) / 2, photons)
    cond = torch.cat([torch.stack([*channels, noise], 1), coordinates(a)], 1)
    return cond, level
