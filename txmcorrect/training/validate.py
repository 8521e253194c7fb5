"""How good a network is while it trains: on simulated pairs that training never draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from txmcorrect.background.conditions import LOG_SCALE, RESIDUAL_SCALE
from txmcorrect.config import TrainSettings
from txmcorrect.diffusion.denoiser import NetworkDenoiser, Noise
from txmcorrect.diffusion.loss import denoising_loss
from txmcorrect.training.batches import Batches, TrainBatch

BATCHES = 4


@dataclass(frozen=True)
class Validation:
    """Loss, and the posterior mean's error of the log background over lit pixels, mean removed.

    `error` is the network's (one evaluation at the largest sigma), `pair_error` that of the plain
    mean of both frames, both rms in percent, medians over items.
    """

    loss: float
    error: float
    pair_error: float


@torch.no_grad()
def validate(
    model: NetworkDenoiser, settings: TrainSettings, sigmas: Tensor, picture: Path
) -> Validation:
    """Score `model` on fixed batches and draw some of them."""
    data = Batches(settings, "validate")
    device = next(model.parameters()).device
    losses, errors, pair_errors = [], [], []
    for index in range(BATCHES):
        batch = data[index].to(device)
        losses.append(_loss(model, batch, sigmas, index, settings))
        mean = posterior_mean(model, batch.cond, sigmas[-1])
        errors += _log_error(mean, batch)
        pair_errors += _log_error(torch.zeros_like(mean), batch)  # the base: the pair's mean
        if index == 0:
            _draw(batch, mean, picture)
    middle = [float(torch.tensor(e).median()) for e in (errors, pair_errors)]
    return Validation(sum(losses) / len(losses), *middle)


def posterior_mean(model: NetworkDenoiser, cond: Tensor, sigma_max: Tensor) -> Tensor:
    """One evaluation at the largest sigma: x0_hat is the mean of the posterior given `cond`."""
    b, _, h, w = cond.shape
    x = Noise(0).start((b, 1, h, w), float(sigma_max), like=cond)
    return model(x, sigma_max.to(cond.device), cond)


def _loss(
    model: NetworkDenoiser, batch: TrainBatch, sigmas: Tensor, index: int, settings: TrainSettings
) -> float:
    """Loss at evenly spaced noise levels."""
    count = len(batch.x0)
    sigma = sigmas[torch.linspace(0, len(sigmas) - 1, count).long()].float().to(batch.x0)
    eps = Noise(index, shared=False).step(0).normal_like(batch.x0)
    keep = torch.ones_like(sigma)
    arguments = (model, model.preconditioning, batch.x0, batch.cond, sigma, eps, keep, batch.weight)
    return float(denoising_loss(*arguments, settings.diffusion.loss, settings.diffusion.snr_weight))


def _log_error(estimate: Tensor, batch: TrainBatch) -> list[float]:
    """Rms log error in percent over lit pixels, with its mean removed, per item."""
    lit = batch.weight > 0.5
    error = (estimate - batch.x0) * RESIDUAL_SCALE * 100
    return [float(e[m].std(correction=0)) for e, m in zip(error, lit, strict=True)]


def _draw(batch: TrainBatch, mean: Tensor, picture: Path) -> None:
    """First frame, second frame, truth, posterior mean, error (+-5 %) of eight items."""
    count = min(8, len(mean))
    figure = Figure(figsize=(1.6 * count, 8.2), layout="constrained")
    axes = figure.subplots(5, count, squeeze=False)
    for k in range(count):
        frames = batch.cond[k, :2].cpu()
        base = frames.mean(0) * LOG_SCALE
        truth, guess = (base + RESIDUAL_SCALE * r[k, 0].cpu() for r in (batch.x0, mean))
        low, high = truth.quantile(0.01), truth.quantile(0.99)
        error = guess - truth
        for axis, image in zip(axes[:, k], (*(frames * LOG_SCALE), truth, guess), strict=False):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        axes[4, k].imshow(error - error.mean(), cmap="RdBu", vmin=-0.05, vmax=0.05)
    for row, label in enumerate(["first", "second", "truth", "generated", "error ±5 %"]):
        axes[row, 0].set_ylabel(label)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(picture, dpi=80)
