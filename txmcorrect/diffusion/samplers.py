"""From noise to a sample: loops over a denoiser. Levels descend and end at 0.

In sigma, DDPM and DDIM are one step rule with different noise (Song et al. 2021, Eq. 12 and 16):

    x_next = x0_hat + sqrt(s_next^2 - up^2) * eps_hat + up * z,   up = eta * s_next sqrt(1 - s_next^2/s^2)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser, Noise, Step

AfterStep = Callable[[Tensor, Tensor, Step], Tensor]
"""Called as hook(x, sigma_next, step) -> x after every step; measurement guidance lives there."""


class Sampler(Protocol):
    """Draw a sample.

    `x` `(b, c, h, w)` starts at the level `sigmas[0]`; `sigmas` `(k + 1,)` descends to 0.
    """

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        cond: Tensor | None = None,
        *,
        noise: Noise,
        after_step: AfterStep | None = None,
    ) -> Tensor: ...


def ddim(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: Tensor | None = None,
    *,
    noise: Noise,
    after_step: AfterStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM: deterministic for `eta` 0, ancestral for 1."""
    for index, (sigma, after) in enumerate(pairwise(sigmas)):
        step = noise.step(index)
        x0_hat = denoise(x, sigma.to(x.device), cond, step)
        up = float(eta * after * torch.sqrt(1 - (after / sigma) ** 2))
        keep = float(torch.sqrt(after**2 - up**2)) / float(sigma)
        x = x0_hat + keep * (x - x0_hat)
        if up > 0:
            x = x + up * step.normal_like(x)
        if after_step is not None:
            x = after_step(x, after, step)
    return x


def ddpm(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: Tensor | None = None,
    *,
    noise: Noise,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Ancestral sampling with the posterior variance (Ho et al. 2020, Eq. 7)."""
    return ddim(denoise, x, sigmas, cond, noise=noise, after_step=after_step, eta=1.0)


def dpmpp_2m(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: Tensor | None = None,
    *,
    noise: Noise,
    after_step: AfterStep | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), in `t = -ln sigma`; first order to reach 0."""
    before: Tensor | None = None
    last_h = 0.0
    for index, (sigma, after) in enumerate(pairwise(sigmas)):
        step = noise.step(index)
        x0_hat = denoise(x, sigma.to(x.device), cond, step)
        if after == 0:
            x = x0_hat
        else:
            h = float(torch.log(sigma / after))
            ahead = x0_hat
            if before is not None:
                ahead = x0_hat + (x0_hat - before) * h / (2 * last_h)
            ratio = float(after / sigma)
            x, before, last_h = ratio * x + (1 - ratio) * ahead, x0_hat, h
        if after_step is not None:
            x = after_step(x, after, step)
    return x


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp_2m}
