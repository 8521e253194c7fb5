"""What a measurement does to an image: linear operators, and how to invert what DMPS must invert.

An operator is any object with `A` and `A_adjoint`. Where `A A^T` is diagonal in a basis that can
be reached cheaply, it also offers `gram`, from which `solve` and `A_pinv` follow in closed form;
everything else is solved by conjugate gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from txmcorrect.errors import TxmError

Scalar = float | Tensor  # a number, or a tensor that broadcasts against the measurement
RCOND = 1e-6  # eigenvalues below this fraction of the largest are taken for zero


class Operator(Protocol):
    """`A` maps images `(b, c, h, w)` to measurements, `A_adjoint` back."""

    def A(self, x: Tensor) -> Tensor: ...

    def A_adjoint(self, y: Tensor) -> Tensor: ...


class Spectral(ABC):
    """An operator whose `A A^T = U diag(lambda) U^T` is known.

    `pixelwise` says that U is the identity, so that a noise variance may differ per pixel.
    """

    pixelwise = False

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """Measure an image."""

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:
        """Carry a measurement back."""

    @abstractmethod
    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        """`U f(lambda) U^T y`."""

    def solve(self, s2: Scalar, r2: Scalar, rhs: Tensor) -> Tensor:
        """`(s2 I + r2 A A^T)^-1 rhs`; directions that neither noise nor operator fills give 0."""

        def inverse(eigenvalue: Tensor) -> Tensor:
            total = s2 + r2 * eigenvalue
            return torch.where(total > 0, 1 / total.clamp(min=1e-30), 0)

        return self.gram(inverse, rhs)

    def A_pinv(self, y: Tensor) -> Tensor:
        """Smallest image that explains `y` best (Moore-Penrose)."""

        def inverse(eigenvalue: Tensor) -> Tensor:
            kept = eigenvalue > RCOND * eigenvalue.amax()
            return torch.where(kept, 1 / eigenvalue.clamp(min=1e-30), 0)

        return self.A_adjoint(self.gram(inverse, y))


class Identity(Spectral):
    """Denoising: the image itself."""

    pixelwise = True

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y

    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return f(torch.ones_like(y)) * y


@dataclass(frozen=True)
class Inpainting(Spectral):
    """Dead pixels, a beam stop: `mask` is 1 where a pixel was measured, and broadcasts."""

    mask: Tensor
    pixelwise = True

    def A(self, x: Tensor) -> Tensor:
        return x * self.mask

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask

    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return f((self.mask * self.mask).expand_as(y)) * y


@dataclass(frozen=True)
class ChannelMix(Spectral):
    """`(k, c)` weights that mix c channels into k: colours to grey, energies to a sum."""

    weights: Tensor

    def A(self, x: Tensor) -> Tensor:
        return torch.einsum("kc,bchw->bkhw", self.weights, x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.einsum("kc,bkhw->bchw", self.weights, y)

    def gram(self, f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        eigenvalue, u = torch.linalg.eigh(self.weights @ self.weights.T)
        scaled = f(eigenvalue.clamp(min=0)[:, None, None]) * torch.einsum("ki,bkhw->bihw", u, y)
        return torch.einsum("ki,bihw->bkhw", u, scaled)


@dataclass(frozen=True)
class Crop:
    """The middle of a larger image: what lies outside the field of view is unknown, not periodic."""

    margin: tuple[int, int]  # (y, x) pixels on each side

    def A(self, x: Tensor) -> Tensor:
        (my, mx), (h, w) = self.margin, x.shape[-2:]
        return x[..., my : h - my, mx : w - mx]

    def A_adjoint(self, y: Tensor) -> Tensor:
        my, mx = self.margin
        return torch.nn.functional.pad(y, (mx, mx, my, my))


@dataclass(frozen=True)
class Chain:
    """`outer` after `inner`."""

    outer: Operator
    inner: Operator

    def A(self, x: Tensor) -> Tensor:
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint(y))


def solve(
    operator: Operator,
    s2: Scalar,
    r2: Scalar,
    rhs: Tensor,
    iterations: int = 50,
    rtol: float = 1e-4,
) -> Tensor:
    """`(s2 I + r2 A A^T)^-1 rhs`, in closed form where there is one.

    Parameters
    ----------
    operator : see `Operator`.
    s2, r2 : variances: numbers, `(b, 1, 1, 1)`, or for `s2` a map shaped like the measurement.
    rhs : measurement.
    iterations, rtol : limits of the conjugate gradients, where those are needed.
    """
    per_pixel = isinstance(s2, Tensor) and s2.ndim > 1 and max(s2.shape[1:]) > 1
    if isinstance(operator, Spectral) and (operator.pixelwise or not per_pixel):
        return operator.solve(s2, r2, rhs)

    def matrix(z: Tensor) -> Tensor:
        return s2 * z + r2 * operator.A(operator.A_adjoint(z))

    return conjugate_gradients(matrix, rhs, iterations, rtol)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], rhs: Tensor, iterations: int = 50, rtol: float = 1e-4
) -> Tensor:
    """Solve `matrix(z) = rhs` per item for a symmetric positive matrix; stops when all items have."""
    z, r = torch.zeros_like(rhs), rhs
    p, rr = r, inner(r, r)
    goal = rtol**2 * rr
    for _ in range(iterations):
        if bool((rr <= goal).all()):
            break
        q = matrix(p)
        step = rr / inner(p, q).clamp(min=1e-30)
        z, r = z + step * p, r - step * q
        rr, previous = inner(r, r), rr
        p = r + rr / previous.clamp(min=1e-30) * p
    return z


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real scalar product per item, `(b, 1, 1, 1)`."""
    product = (a * b.conj()).real if a.is_complex() else a * b
    return product.sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def pseudo_inverse(operator: Operator, y: Tensor) -> Tensor:
    """`A^+ y`; without a closed form a slightly damped `A^T (A A^T)^-1 y`.

    Raises
    ------
    TxmError : the operator maps everything to zero.
    """
    if isinstance(operator, Spectral):
        return operator.A_pinv(y)
    back = operator.A_adjoint(y)
    power = inner(back, back) / inner(y, y).clamp(min=1e-30)
    if not bool((power > 0).any()):
        raise TxmError("expected a measurement that the image can explain, got one it cannot reach")
    return operator.A_adjoint(solve(operator, 1e-3 * power, 1.0, y))
