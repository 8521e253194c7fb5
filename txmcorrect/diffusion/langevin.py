"""Samplers that stir: annealed Langevin dynamics, and predictor-corrector."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser, Noise
from txmcorrect.diffusion.samplers import AfterStep
from txmcorrect.physics import inner


def langevin(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: Tensor | None = None,
    *,
    noise: Noise,
    after_step: AfterStep | None = None,
    inner_steps: int = 10,
    stride: float = 0.5,
) -> Tensor:
    """Annealed Langevin dynamics: `inner_steps` moves of size `stride * sigma^2` at each level.

    Source: Song and Ermon 2019, Algorithm 1, with the numbers of PaDIS. The last move goes to
    x0_hat.
    """
    for index, (sigma, after) in enumerate(pairwise(sigmas)):
        step = noise.step(index)
        level = sigma.to(x.device)
        for k in range(inner_steps):
            x0_hat = denoise(x, level, cond, step)
            kick = float(stride**0.5 * sigma) * step.normal_like(x, k)
            x = x + 0.5 * stride * (x0_hat - x) + kick
        if after == 0:
            x = denoise(x, level, cond, step)
        if after_step is not None:
            x = after_step(x, after, step)
    return x


def predictor_corrector(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    cond: Tensor | None = None,
    *,
    noise: Noise,
    after_step: AfterStep | None = None,
    snr: float = 0.16,
) -> Tensor:
    """One Langevin move at a fixed signal-to-noise ratio, then one step of reverse diffusion.

    The ratio is taken item by item, so a result does not depend on its neighbours in the batch.
    Source: Song et al. 2021 (score SDE), Algorithms 2 and 4.
    """
    for index, (sigma, after) in enumerate(pairwise(sigmas)):
        step = noise.step(index)
        level = sigma.to(x.device)
        x = corrected(x, denoise(x, level, cond, step), level, step.normal_like(x, 1), snr)
        x = predicted(x, denoise(x, level, cond, step), level, after, step.normal_like(x))
        if after_step is not None:
            x = after_step(x, after, step)
    return x


def corrected(x: Tensor, x0_hat: Tensor, sigma: Tensor, z: Tensor, snr: float) -> Tensor:
    """Langevin move along the score with kick `z`, sized so that |kick's pull| / |score| = snr."""
    score = (x0_hat - x) / sigma.to(x) ** 2
    stride = 2 * snr**2 * inner(z, z) / inner(score, score).clamp(min=1e-30)
    return x + stride * score + torch.sqrt(2 * stride) * z


def predicted(x: Tensor, x0_hat: Tensor, sigma: Tensor, after: Tensor, z: Tensor) -> Tensor:
    """Reverse diffusion from `sigma` to `after`; to x0_hat itself at the end."""
    if after == 0:
        return x0_hat
    gone = float(sigma**2 - after**2)
    return x + gone / float(sigma) ** 2 * (x0_hat - x) + gone**0.5 * z
