"""Frames -> what the network sees. The same code serves training and correction.

The network lives on a *working grid*: frames binned by an integer so that the long side is at most
`size` pixels. There the logarithm of counts is taken, relative to a common level, clipped at the
unlit end and divided by `LOG_SCALE` so that frames have about unit variance.

What the network generates is the *residual*: log background minus a base that the frames give
without any network. Where there is no sample the base is already right, so the residual is small
and its errors are small too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_SCALE = 0.3
RIM, CLEAR = 0.1, 0.4  # of the level: where the network begins to count, and counts in full
RESIDUAL_SCALE = 0.25  # natural log; brings residuals to about unit variance
LOG_FLOOR, LOG_CEILING = -3.0, 1.5  # relative to the level; darker than e**-3 is as good as unlit
CHANNELS = {"pair": 8, "stack": 22, "none": 0}


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


def residual(background: Tensor, base: Tensor, level: Tensor) -> Tensor:
    """Background `(b, h, w)` in counts -> what the network is to generate, `(b, h, w)`."""
    return (to_log(background, level) * LOG_SCALE + level[:, None, None] - base) / RESIDUAL_SCALE


def log_counts(generated: Tensor, base: Tensor, level: Tensor) -> Tensor:
    """Generated residual `(b, h, w)` -> natural logarithm of the background in counts.

    In the dim rim of the aperture, between `RIM` and `CLEAR` of the level, training gives little
    weight and the network says little of use: there the base stands, shifted as the rest is.
    """
    light = base - level[:, None, None]
    trust = ((light - math.log(RIM)) / math.log(CLEAR / RIM)).clamp(0, 1)
    shift = torch.where(trust > 0.5, generated, torch.nan).flatten(1).nanmedian(1).values
    shift = shift.nan_to_num()[:, None, None]
    return base + RESIDUAL_SCALE * (shift + trust * (generated - shift))


def pair_condition(first: Tensor, second: Tensor, photons: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two frames with nearly the same background (source 0's condition, at an honest scale).

    Parameters
    ----------
    first, second : `(b, h, w)` counts without dark on the working grid; NaN where missing.
    photons : `(b,)` detected photons per count and working pixel.

    Returns
    -------
    cond : `(b, 8, h, w)`: both logarithms, both masks of what is known, how far the logarithms are
    apart (the larger of two is nearer to the background where a sample absorbs), noise, y, x.
    base : `(b, h, w)` mean of both frames' natural log counts.
    level : `(b,)` log counts that the logarithms in `cond` are relative to.
    """
    known = [torch.isfinite(f) for f in (first, second)]
    # A pixel missing in one frame shows what the other has; its mask says so.
    a = torch.where(known[0], first, torch.where(known[1], second, 0))
    b = torch.where(known[1], second, torch.where(known[0], first, 0))
    level = common_level(a, b)
    u, v = to_log(a, level), to_log(b, level)
    noise = log_noise((a + b) / 2, photons)
    masks = [k.to(a) for k in known]
    channels = torch.stack([u, v, *masks, (u - v).abs(), noise], 1)
    base = level[:, None, None] + LOG_SCALE * (u + v) / 2
    return torch.cat([channels, coordinates(a)], 1), base, level
