"""Coarser pixels: block means and antialiased bicubic, with a factor of its own for each axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from txmcorrect.errors import TxmError
from txmcorrect.physics.blur import Separable
from txmcorrect.physics.operators import Spectral


@dataclass(frozen=True)
class BlockMean(Spectral):
    """Means of `factor` (y, x) pixels; (f, 1) on planes `(z, x)` is a thick slice."""

    factor: tuple[int, int]

    def A(self, x: Tensor) -> Tensor:
        check_divisible((x.shape[-2], x.shape[-1]), self.factor)
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        fy, fx = self.factor
        return y.repeat_interleave(fy, -2).repeat_interleave(fx, -1) / (fy * fx)

    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return f(torch.full_like(y, 1.0 / (self.factor[0] * self.factor[1]))) * y


def bicubic_matrix(n: int, factor: int) -> Tensor:
    """`(n / factor, n)` antialiased cubic downsampling of one axis; rows sum to 1.

    Source: Keys 1981 (a = -0.5), its kernel stretched by the factor.
    """
    centre = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    d = ((centre[:, None] - torch.arange(n, dtype=torch.float64)[None, :]) / factor).abs()
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weight = torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
    return (weight / weight.sum(1, keepdim=True)).float()


def bicubic(shape: tuple[int, int], factor: tuple[int, int]) -> Separable:
    """Bicubic downsampling of frames of `shape` (h, w) by `factor` (y, x)."""
    check_divisible(shape, factor)
    return Separable(bicubic_matrix(shape[0], factor[0]), bicubic_matrix(shape[1], factor[1]))


def check_divisible(shape: tuple[int, int], factor: tuple[int, int]) -> None:
    """Refuse frames that do not divide into blocks.

    Raises
    ------
    TxmError : they do not.
    """
    if shape[0] % factor[0] or shape[1] % factor[1]:
        raise TxmError(f"expected a frame divisible by {factor}, got {shape}; crop it with --roi")
