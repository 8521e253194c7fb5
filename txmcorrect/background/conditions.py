"""Frames -> what the network sees. The same code serves training and correction.

The network lives on a *working grid*: frames binned by an integer so that the long side is at most
`size` pixels. There the logarithm of counts is taken, relative to a common level, clipped at the
unlit end and divided by `LOG_SCALE` so that frames have about unit variance.

What the network generates is the *residual*: log background minus a base that the frames give
without any network, in units of a *scale* that the frames suggest. Two frames that hardly differ
have a base that is hardly wrong, and the network's own errors shrink with the scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from txmcorrect.working_grid import (
    spread_out as spread_out,
)  # its counterpart, which files need too

LOG_SCALE = 0.3
RIM, CLEAR = 0.1, 0.4  # of the level: where the network begins to count, and counts in full
REACH = 4  # cells of the working grid
LEAST_SCALE = 0.03  # natural log; how far two frames may be off that do not differ at all
PAIR_SHARE = 0.3  # of a pair's level in the generated residual: shape matters, level is guesswork
LOG_FLOOR, LOG_CEILING = -3.0, 1.5  # relative to the level; darker than e**-3 is as good as unlit
CHANNELS = {"pair": 10, "stack": 22, "sample": 2}


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


@dataclass(frozen=True)
class Basis:
    """How a log background and what the network generates are turned into each other.

    `base` `(b, h, w)` natural log counts; `scale` `(b,)`; `share` `(b,)` of the level; `lit`
    `(b, h, w)` 1 or 0; `trust` `(b, h, w)` 0 to 1: how far the network counts beside the base.
    """

    base: Tensor
    scale: Tensor
    share: Tensor
    lit: Tensor
    trust: Tensor

    def residual(self, log_background: Tensor) -> Tensor:
        """Natural log counts `(b, h, w)` -> what the network is to generate."""
        difference = log_background - self.base
        unshared = (1 - self.share)[:, None, None] * lit_mean(difference, self.lit)
        return (difference - unshared) / self.scale[:, None, None]

    def log_counts(self, generated: Tensor) -> Tensor:
        """Inverse of `residual` where the network is trusted; else the base, shifted as the rest is."""
        level = lit_mean(generated, self.lit)
        shape = self.trust * (generated - level)
        return self.base + self.scale[:, None, None] * (shape + level / self.share[:, None, None])


def lit_mean(image: Tensor, lit: Tensor) -> Tensor:
    """Mean over lit pixels, `(b, h, w)` -> `(b, 1, 1)`."""
    return (image * lit).sum((-2, -1), keepdim=True) / lit.sum((-2, -1), keepdim=True).clamp_min(1)


def pair_condition(first: Tensor, second: Tensor, photons: Tensor) -> tuple[Tensor, Basis]:
    """Two frames with nearly the same background (source 0's condition, at an honest scale).

    Parameters
    ----------
    first, second : `(b, h, w)` counts without dark on the working grid; NaN where missing.
    photons : `(b,)` detected photons per count and working pixel.

    Returns
    -------
    cond : `(b, 10, h, w)`: both logarithms, both masks of what is known, their difference and how
    large it is (the larger of two is nearer to the background where a sample absorbs), noise, scale,
    y, x; difference and noise in units of the scale.
    basis : the base is the mean of both frames' natural log counts; the scale follows their
    difference. In the dim rim of an aperture, between `RIM` and `CLEAR` of the level, the network
    says little of use and the base takes over.
    """
    known = [torch.isfinite(f) for f in (first, second)]
    # A pixel missing in one frame shows what the other has; its mask says so.
    a = torch.where(known[0], first, torch.where(known[1], second, 0))
    b = torch.where(known[1], second, torch.where(known[0], first, 0))
    level = common_level(a, b)
    u, v = to_log(a, level), to_log(b, level)
    noise = log_noise((a + b) / 2, photons)
    light = LOG_SCALE * (u + v) / 2
    lit = (light > math.log(RIM)).to(a)
    apart = LOG_SCALE * (u - v)
    apart = apart - lit_mean(apart, lit)
    scale = _pair_scale(apart, LOG_SCALE * noise, lit)
    wide = scale[:, None, None]
    masks = [k.to(a) for k in known]
    difference = apart / wide
    relative_noise = (LOG_SCALE * noise / wide).clamp_max(3.0)
    strength = (wide / 0.2).log().expand_as(u)
    channels = [u, v, *masks, difference.clamp(-5, 5), difference.abs().clamp_max(5)]
    cond = torch.stack([*channels, relative_noise, strength], 1)
    share = torch.full_like(scale, PAIR_SHARE)
    basis = Basis(level[:, None, None] + light, scale, share, lit, trust_in(light))
    return torch.cat([cond, coordinates(a)], 1), basis


def trust_in(light: Tensor) -> Tensor:
    """How far the network counts beside the base, 0 to 1; `light` `(b, h, w)`: log base over level.

    Not in dim light, and not within `REACH` cells of the dark: a steep rim looks like the edge of a
    sample, and the network would take up to a tenth of the light away there.
    """
    bright = ((light - math.log(RIM)) / math.log(CLEAR / RIM)).clamp(0, 1)
    dark = (light < math.log(RIM)).to(light)[:, None]
    near = [F.max_pool2d(dark, 2 * k + 1, 1, k) for k in range(1, REACH + 1)]
    return bright * (1 - torch.stack(near).mean(0)[:, 0])


def _pair_scale(apart: Tensor, noise: Tensor, lit: Tensor) -> Tensor:
    """How far the mean of a pair may be off, `(b,)`, natural log: the rms difference, noise removed."""
    square = lit_mean(apart**2 - 2 * noise**2, lit)[:, 0, 0].clamp_min(0)
    return (square + LEAST_SCALE**2).sqrt()
