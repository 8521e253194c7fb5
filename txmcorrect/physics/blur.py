"""Point spreads: kernels, blur by FFT, separable blur by matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from txmcorrect.errors import TxmError
from txmcorrect.physics.operators import Chain, Crop, Operator, Spectral


def gaussian_kernel(
    sigma: float | tuple[float, float], taps: int | None = None, angle: float = 0.0
) -> Tensor:
    """`(taps, taps)` kernel of unit sum.

    Parameters
    ----------
    sigma : pixels; two numbers (y, x) for an anisotropic kernel.
    taps : odd width; default covers 4 sigma on each side.
    angle : radians by which the axes of an anisotropic kernel are turned.
    """
    sy, sx = (sigma, sigma) if isinstance(sigma, int | float) else sigma
    radius = (taps // 2) if taps else math.ceil(4 * max(sy, sx))
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    u = math.cos(angle) * y + math.sin(angle) * x
    v = -math.sin(angle) * y + math.cos(angle) * x
    kernel = torch.exp(-0.5 * ((u / sy) ** 2 + (v / sx) ** 2))
    return kernel / kernel.sum()


def uniform_kernel(taps: int) -> Tensor:
    """`(taps, taps)` box of unit sum."""
    return torch.full((taps, taps), 1.0 / taps**2)


def measured_kernel(image: Tensor) -> Tensor:
    """Turn a measured point spread `(h, w)` into a centred kernel of odd size and unit sum.

    Raises
    ------
    TxmError : the image is not 2D, or holds no light.
    """
    if image.ndim != 2 or not bool(image.sum() > 0):
        raise TxmError(
            f"expected a 2D point spread with light in it, got shape {tuple(image.shape)}"
        )
    h, w = (2 * ((n - 1) // 2) + 1 for n in image.shape)
    kernel = image[:h, :w].float()
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    total = kernel.sum()
    dy = round(float((kernel * y).sum() / total)) - h // 2
    dx = round(float((kernel * x).sum() / total)) - w // 2
    return torch.roll(kernel, (-dy, -dx), (0, 1)) / total


@dataclass(frozen=True)
class Blur(Spectral):
    """Periodic convolution with an odd kernel `(kh, kw)`, by FFT, on frames of `shape` (h, w)."""

    kernel: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        kh, kw = self.kernel.shape
        if kh % 2 == 0 or kw % 2 == 0 or kh > self.shape[0] or kw > self.shape[1]:
            raise TxmError(f"expected an odd kernel that fits {self.shape}, got {(kh, kw)}")

    @cached_property
    def transfer(self) -> Tensor:
        """`(h, w // 2 + 1)` Fourier transform of the kernel, its centre at the origin."""
        kh, kw = self.kernel.shape
        frame = self.kernel.new_zeros(self.shape)
        frame[:kh, :kw] = self.kernel
        return torch.fft.rfft2(torch.roll(frame, (-(kh // 2), -(kw // 2)), (0, 1)))

    def _filter(self, x: Tensor, by: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * by, s=self.shape)

    def A(self, x: Tensor) -> Tensor:
        return self._filter(x, self.transfer)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self.transfer.conj())

    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return self._filter(y, f(self.transfer.abs().square()))


def open_blur(kernel: Tensor, shape: tuple[int, int]) -> Operator:
    """Blur of a scene that goes on beyond the frame.

    The image has a margin of the kernel's radius around the measured `shape` (h, w), so nothing
    wraps round. No closed form: solved by conjugate gradients.
    """
    margin = (kernel.shape[0] // 2, kernel.shape[1] // 2)
    scene = (shape[0] + 2 * margin[0], shape[1] + 2 * margin[1])
    return Chain(Crop(margin), Blur(kernel, scene))


@dataclass(frozen=True)
class Separable(Spectral):
    """`rows x columns^T`: any operator that acts on each axis alone, solved by two small SVDs.

    `rows` is `(m_y, h)`, `columns` `(m_x, w)`.
    """

    rows: Tensor
    columns: Tensor

    @cached_property
    def _left(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left singular vectors of both axes and the eigenvalues `(m_y, m_x)` of `A A^T`."""
        (uy, sy, _), (ux, sx, _) = (
            torch.linalg.svd(m.double(), full_matrices=m.shape[0] > m.shape[1])
            for m in (self.rows, self.columns)
        )
        sy = torch.nn.functional.pad(sy, (0, uy.shape[1] - len(sy)))
        sx = torch.nn.functional.pad(sx, (0, ux.shape[1] - len(sx)))
        values = (sy.square()[:, None] * sx.square()[None, :]).to(self.rows.dtype)
        return uy.to(self.rows.dtype), ux.to(self.rows.dtype), values

    def A(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.rows.T @ y @ self.columns

    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        uy, ux, values = self._left
        return uy @ (f(values) * (uy.T @ y @ ux)) @ ux.T


def blur_matrix(n: int, profile: Tensor) -> Tensor:
    """`(n, n)` blur of one axis by an odd `profile`, mirrored at the ends."""
    taps, rows = len(profile), torch.arange(n)
    matrix = profile.new_zeros(n, n)
    for k in range(taps):
        column = torch.remainder(rows + k - taps // 2, 2 * n)
        column = torch.where(column < n, column, 2 * n - 1 - column)
        matrix.index_put_((rows, column), profile[k].expand(n), accumulate=True)
    return matrix


def separable_blur(profile_y: Tensor, profile_x: Tensor, shape: tuple[int, int]) -> Separable:
    """Blur by the product of two profiles, mirrored at the frame's edges."""
    return Separable(blur_matrix(shape[0], profile_y), blur_matrix(shape[1], profile_x))
