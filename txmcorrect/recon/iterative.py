"""Iterative reconstruction with the matched pair: SIRT and ML-EM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Watch = Callable[[int, float], None]  # iteration, root mean square misfit before it
EPS = 1e-6


class Pair(Protocol):
    """A linear operator with non-negative weights, and its transpose."""

    def A(self, images: Tensor) -> Tensor: ...

    def A_adjoint(self, sinograms: Tensor) -> Tensor: ...


def sirt(
    pair: Pair,
    sinograms: Tensor,
    iterations: int,
    start: Tensor | None = None,
    nonnegative: bool = False,
    watch: Watch | None = None,
) -> Tensor:
    """Simultaneous iterative reconstruction: x += C A^T R (y - A x).

    R and C are the inverse sums of the rows and columns of A, so the misfit weighted by R falls
    with every iteration.

    Parameters
    ----------
    sinograms : `(..., n_theta, width)`. start : `(..., size, size)`, zero unless given.
    watch : called with each iteration's number and the misfit it starts from.

    Returns
    -------
    `(..., size, size)`, per pixel length.

    Source: Gregor and Benson 2008, "Computational analysis and improvement of SIRT", Eq. 3.
    """
    column, row = _sums(pair, sinograms)
    x = torch.zeros_like(column).expand(*sinograms.shape[:-2], -1, -1) if start is None else start
    for i in range(iterations):
        residual = sinograms - pair.A(x)
        if watch is not None:
            watch(i, float(residual.square().mean().sqrt()))
        x = x + pair.A_adjoint(residual * row) * column
        if nonnegative:
            x = x.clamp(min=0)
    return x


def mlem(
    pair: Pair,
    sinograms: Tensor,
    iterations: int,
    start: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Maximum likelihood by expectation maximisation: x *= A^T(y / A x) / A^T 1.

    The result is never negative; negative line integrals (transmission above 1) count as 0.

    Parameters and result are those of `sirt`; `start` must be positive.

    Source: Shepp and Vardi 1982, "Maximum likelihood reconstruction for emission tomography".
    """
    column, _ = _sums(pair, sinograms)
    y = sinograms.clamp(min=0)
    if start is None:
        level = y.mean((-2, -1), keepdim=True) * (y.shape[-2] * y.shape[-1]) * column.mean()
        start = level.clamp(min=EPS) / column.numel() * torch.ones_like(column)
    x = start
    for i in range(iterations):
        expected = pair.A(x)
        if watch is not None:
            watch(i, float((y - expected).square().mean().sqrt()))
        x = x * pair.A_adjoint(y / expected.clamp(min=EPS)) * column
    return x


def _sums(pair: Pair, sinograms: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse sums of A's columns `(size, size)` and rows `(n_theta, width)`; 0 where A is."""
    column = pair.A_adjoint(torch.ones_like(sinograms[(0,) * (sinograms.ndim - 2)]))
    row = pair.A(torch.ones_like(column))
    return _inverse(column), _inverse(row)


def _inverse(sums: Tensor) -> Tensor:
    return torch.where(sums > EPS, 1 / sums.clamp(min=EPS), torch.zeros_like(sums))
