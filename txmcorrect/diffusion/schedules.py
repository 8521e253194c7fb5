"""Noise levels. Everything downstream works in sigma, `x = x0 + sigma * eps`.

Variance-preserving (VP) recipes, stated in beta, are converted here and nowhere else:
`sigma = sqrt((1 - alpha_bar) / alpha_bar)`, `x = x_vp / sqrt(alpha_bar)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SIGMA_LIMIT = 1e4  # a schedule that ends in pure noise has an infinite last sigma; clamp it here


def sigma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """VP signal fraction -> noise level; infinite ends are clamped to `SIGMA_LIMIT`."""
    return torch.sqrt((1 - alpha_bar) / alpha_bar.clamp_min(1e-300)).clamp_max(SIGMA_LIMIT)


def alpha_bar_from_sigma(sigma: Tensor) -> Tensor:
    """Noise level -> VP signal fraction."""
    return 1 / (1 + sigma**2)


def from_betas(betas: Sequence[float] | Tensor) -> Tensor:
    """Ascending noise levels `(T,)` of a VP chain with the given betas (Ho et al. 2020, Eq. 4)."""
    beta = torch.as_tensor(betas, dtype=torch.float64)
    if beta.ndim != 1 or len(beta) == 0 or bool(((beta < 0) | (beta > 1)).any()):
        raise ValueError("betas must be a list of numbers between 0 and 1")
    return sigma_from_alpha_bar(torch.cumprod(1 - beta, 0))


def linear(timesteps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Beta grows linearly (Ho et al. 2020). CDM4MI calls this `sqrt_linear`."""
    return from_betas(torch.linspace(start, end, timesteps, dtype=torch.float64))


def scaled_linear(timesteps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """The root of beta grows linearly; CDM4MI calls this `linear`, others `quad`."""
    return from_betas(torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2)


def sqrt(timesteps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Beta is the root of a linear ramp."""
    return from_betas(torch.linspace(start, end, timesteps, dtype=torch.float64) ** 0.5)


def cosine(timesteps: int, offset: float = 0.008) -> Tensor:
    """alpha_bar follows a squared cosine, beta at most 0.999 (Nichol and Dhariwal 2021, Eq. 17)."""
    t = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + offset) / (1 + offset) * torch.pi / 2) ** 2
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999))


def const(timesteps: int, beta: float = 0.02) -> Tensor:
    """The same beta throughout."""
    return from_betas(torch.full((timesteps,), beta, dtype=torch.float64))


def jsd(timesteps: int) -> Tensor:
    """Beta = 1/T, 1/(T-1), ..., 1 (Sohl-Dickstein et al. 2015); the last sigma is infinite, clamped."""
    return from_betas(1 / torch.linspace(timesteps, 1, timesteps, dtype=torch.float64))


def geometric(timesteps: int, low: float = 0.01, high: float = 378.0) -> Tensor:
    """Variance exploding: sigma grows by a constant factor (Song et al. 2021; TPDM's range)."""
    steps = torch.linspace(0, 1, timesteps, dtype=torch.float64)
    return low * (high / low) ** steps


def karras(timesteps: int, low: float = 0.003, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Powers of a linear ramp, ascending (Karras et al. 2022, Eq. 5)."""
    ramp = torch.linspace(0, 1, timesteps, dtype=torch.float64)
    return (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear": linear,
    "scaled-linear": scaled_linear,
    "quad": scaled_linear,
    "sqrt": sqrt,
    "cosine": cosine,
    "const": const,
    "jsd": jsd,
    "geometric": geometric,
    "karras": karras,
}


def subsequence(sigmas: Tensor, steps: int, spacing: str = "uniform") -> Tensor:
    """Descending levels `(steps + 1,)` for a sampler: a subset of `sigmas` `(T,)`, then 0.

    `uniform` and `quadratic` spacing in the index (Song et al. 2021, DDIM, App. D.2). The first
    level is always the largest, so that one step is the posterior mean; as many steps as levels
    take them all. Where levels coincide (quadratic spacing, clamped ends) there are fewer.
    """
    if not 1 <= steps <= len(sigmas):
        raise ValueError(f"steps must lie between 1 and {len(sigmas)}, got {steps}")
    ramp = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    if spacing == "quadratic":
        ramp = ramp**2
    elif spacing != "uniform":
        raise ValueError(f"spacing must be uniform or quadratic, got {spacing!r}")
    index = (torch.round(ramp * len(sigmas)).long() - 1).clamp_min(0)
    levels = torch.unique_consecutive(sigmas[index].double())
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
