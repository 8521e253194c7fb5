"""Condition a denoiser on a measurement `y = A x0 + n`, `n ~ N(0, s2)`.

Each method returns a denoiser, `x0_hat + sigma^2 grad log p(y | x)`, for any sampler. They differ
in how they approximate p(y | x):

- `dmps` ignores the prior: `y ~ N(A x, s2 + sigma^2 A A^T)`. No gradient through the network.
- `ddnm` takes `x0 | x ~ N(x0_hat, v I)` and corrects x0_hat by the exact mean of that model; with
  s2 = 0 it is DDNM's null-space projection. No gradient through the network.
- `dps` takes the same model, but follows its gradient through the network.

No weight is tuned. The variance v of x0 given x is read off the residual itself, item by item:
`E |y - A x0_hat|^2 = s2 + v tr(A A^T) / m`. It therefore carries the data's units and knows
nothing of the batch. Only what the prior cannot tell is left to the caller: s2.

How good they are, on a Gaussian prior with exact denoiser, 8x8 pixels, s = a third of the prior's
deviation, 40 levels from 20 to 0.002 (3 moves a level for `langevin`): error of the mean in units of
the posterior's deviation / deviation relative to the posterior's. Perfect is 0 / 1; 400 samples leave
0.05. Printed by `python tests/bench/guidance.py table`.

==================  ===========  ===========  ===========  ===========
smooth prior        ddim         ddpm         langevin     pc
==================  ===========  ===========  ===========  ===========
denoise, dmps       0.37 / 0.01  0.21 / 0.72  0.13 / 1.19  0.14 / 1.01
denoise, ddnm       0.16 / 1.02  0.11 / 0.99  0.09 / 1.27  0.06 / 1.14
denoise, dps        0.37 / 0.97  0.13 / 0.85  0.08 / 1.29  0.09 / 1.08
inpaint, dmps       0.56 / 1.03  0.41 / 0.99  0.30 / 1.36  0.34 / 1.20
inpaint, ddnm       0.43 / 1.16  0.30 / 1.04  0.21 / 1.35  0.24 / 1.21
inpaint, dps        0.28 / 0.96  0.15 / 0.88  0.12 / 1.27  0.13 / 1.09
blur, dmps          0.69 / 0.22  0.27 / 0.79  0.15 / 1.21  0.19 / 1.01
blur, ddnm          0.19 / 0.93  0.13 / 0.88  0.15 / 1.24  0.14 / 1.06
blur, dps           0.20 / 0.97  0.11 / 0.88  0.06 / 1.26  0.08 / 1.08
superres, dmps      0.31 / 0.86  0.21 / 0.86  0.16 / 1.25  0.17 / 1.07
superres, ddnm      0.23 / 0.98  0.15 / 0.92  0.11 / 1.27  0.11 / 1.10
superres, dps       0.17 / 0.94  0.08 / 0.87  0.07 / 1.25  0.07 / 1.07
==================  ===========  ===========  ===========  ===========

`dpmpp` behaves as `ddim`. So: **DMPS under a deterministic sampler has no spread to speak of** (its
pull, added to the prior's, halves every deviation twice as fast as sigma falls, and nothing puts
it back); use it with `ddpm`, `langevin` or `pc`, or for its mean only. `ddnm` serves every sampler
where the measurement covers the image evenly; `dps` is the one for inpainting. `langevin` is some
25 % too wide at its stride, `ddpm` 10 % too narrow at 40 steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser, Step, per_item
from txmcorrect.errors import TxmError
from txmcorrect.physics import Operator, Scalar, inner, solve


@dataclass(frozen=True)
class Measurement:
    """What was measured, how, and how noisily.

    Attributes
    ----------
    operator : see `physics.operators`.
    y : measurement, its first axis the batch (1 broadcasts).
    s2 : noise variance per real number: one, or a map shaped like `y`.
    iterations : of conjugate gradients, where there is no closed form. Few will do where many steps
        follow: what is left of the residual is met by the next.
    """

    operator: Operator
    y: Tensor
    s2: Scalar
    iterations: int = 50
    _weight: Tensor = field(init=False, repr=False)  # of each measured number; sums to 1
    _power: Tensor = field(init=False, repr=False)  # weighted mean of diag(A A^T)
    _mean_s2: Tensor = field(init=False, repr=False)  # weighted mean of s2

    def __post_init__(self) -> None:
        """Find out which numbers were measured, and how strongly A passes white noise."""
        like = self.operator.A_adjoint(self.y[:1])
        probe = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
        seen = self.operator.A(probe)
        s2 = torch.as_tensor(self.s2, dtype=like.dtype, device=like.device)
        s2 = s2 + torch.zeros_like(seen.real)
        weight = (seen.abs() > 0).to(like.dtype)
        if isinstance(self.s2, Tensor) and self.s2.numel() > 1:
            weight = weight / s2.clamp(min=1e-12 * s2.amax())  # noisy pixels tell less
        numbers = weight.sum((1, 2, 3), keepdim=True) * (2 if seen.is_complex() else 1)
        weight = weight / numbers
        object.__setattr__(self, "_weight", weight)
        object.__setattr__(self, "_power", inner(seen * weight, seen))
        object.__setattr__(self, "_mean_s2", inner(s2, weight) * (2 if seen.is_complex() else 1))

    def of(self, items: slice) -> Measurement:
        """The same measurement of some items of `y`; nothing is probed again.

        `y` may be a tensor over a memory map: only these items are read.
        """
        part = copy.copy(self)
        object.__setattr__(part, "y", self.y[items])
        if isinstance(self.s2, Tensor) and self.s2.ndim > 0 and len(self.s2) == len(self.y) > 1:
            raise TxmError("expected one noise variance for all slices, got one for each")
        return part

    def residual(self, x: Tensor) -> Tensor:
        """`y - A x`."""
        return self.y.to(x.device) - self.operator.A(x)

    def correction(self, residual: Tensor, r2: Scalar) -> Tensor:
        """`A^T (s2 + r2 A A^T)^-1 residual`, in image space."""
        return self.operator.A_adjoint(solve(self.operator, self.s2, r2, residual, self.iterations))

    def line_search(self, residual: Tensor, pull: Tensor, move: Tensor) -> Tensor:
        """Best length `(b, 1, 1, 1)` of a move `C pull`, with C the covariance of x0 given x.

        Minimises |residual - a A move|^2 / s2 + a^2 move^T C^-1 move over a: one step of
        conjugate gradients on the exact posterior mean.
        """
        seen = self.operator.A(move)
        weighted = seen * (self._mean_s2 / self.s2) if isinstance(self.s2, Tensor) else seen
        prior = self._mean_s2 * inner(move, pull).clamp(min=0)
        length: Tensor = inner(residual, weighted).clamp(min=0) / (
            inner(seen, weighted) + prior
        ).clamp(min=1e-30)
        return length

    def agree(self, x0_hat: Tensor, sigma: Tensor) -> Tensor:
        """Mean of x0 given x and y, were the error of x0_hat white; see `ddnm`."""
        residual = self.residual(x0_hat)
        v = self.variance(residual, per_item(sigma, x0_hat))
        return x0_hat + v * self.correction(residual, v)

    def variance(self, residual: Tensor, sigma: Tensor) -> Tensor:
        """Variance `(b, 1, 1, 1)` of x0 given x, told from the residual; at most sigma^2."""
        found: Tensor = (inner(residual * self._weight, residual) - self._mean_s2) / self._power
        return torch.maximum(torch.minimum(found, sigma**2), 1e-6 * sigma**2)


def dmps(denoise: Denoiser, measurement: Measurement, weight: float = 1.0) -> Denoiser:
    """Guide by the flat-prior likelihood; one linear solve and no back-propagation a step.

    Parameters
    ----------
    weight : the paper's lambda. 1 is Bayes under the flat prior; the paper takes 1.75 with an
        ancestral sampler.

    Source: Meng and Kabashima 2022, Eq. 13, in sigma.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        r2 = per_item(sigma, x) ** 2
        pull = measurement.correction(measurement.residual(x), r2)
        return denoise(x, sigma, cond, step) + weight * r2 * pull

    return guided


def ddnm(denoise: Denoiser, measurement: Measurement) -> Denoiser:
    """Replace x0_hat by the mean of x0 given x and y, were the error of x0_hat white.

    Exact for a white Gaussian prior. Source: Wang et al. 2023 (DDNM), with noise by the linear
    Gaussian update instead of their hand-made scaling.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        return measurement.agree(denoise(x, sigma, cond, step), sigma)

    return guided


def dps(denoise: Denoiser, measurement: Measurement) -> Denoiser:
    """Follow the likelihood's gradient through the network: one backward pass a step.

    The likelihood is `N(y; A x0_hat(x), s2 + v A A^T)`; Chung et al. 2023 have the identity times a
    hand-tuned constant in its place. The length of the move is then searched exactly, since
    `sigma^2 d x0_hat / d x` is the covariance of x0 given x: without it, too small a v (and v
    shrinks as the fit improves) would pull too hard and eat the spread.

    Source: their Eq. 10; Song et al. 2023 (PiGDM), Eq. 8.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0_hat = denoise(x, sigma, cond, step)
            fixed = x0_hat.detach()
            residual = measurement.residual(fixed)
            level = per_item(sigma, fixed)
            v = measurement.variance(residual, level)
            pull = measurement.correction(residual, v)
            (gradient,) = torch.autograd.grad(x0_hat, x, pull)
        move = level**2 * gradient
        return fixed + measurement.line_search(residual, pull, move) * move

    return guided


Guidance = Callable[[Denoiser, Measurement], Denoiser]

GUIDANCE: dict[str, Guidance] = {"dmps": dmps, "ddnm": ddnm, "dps": dps}
