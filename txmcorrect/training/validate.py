"""How good a network is while it trains: on simulated items that training never draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from txmcorrect.config import TrainSettings
from txmcorrect.diffusion.denoiser import NetworkDenoiser, Noise
from txmcorrect.diffusion.loss import denoising_loss
from txmcorrect.training.batches import PRIORS, Batches, TrainBatch

BATCHES = 4
SAMPLE_NOISE = 0.125  # of transmission


@dataclass(frozen=True)
class Validation:
    """Loss, and the error of what one evaluation says, mean removed: rms in percent, median over items.

    Of backgrounds: of the log background over lit pixels, at the largest sigma; `base_error` is that
    of the base, which needs no network. Of priors: of the transmission (or attenuation relative to
    the typical one) after noise of deviation `SAMPLE_NOISE`, which is `base_error`, was taken off; of
    `denoise` after the noise that it is shown.
    """

    loss: float
    error: float
    base_error: float


@torch.no_grad()
def validate(
    model: NetworkDenoiser, settings: TrainSettings, sigmas: Tensor, picture: Path
) -> Validation:
    """Score `model` on fixed batches and draw some of them."""
    data = Batches(settings, "validate")
    device = next(model.parameters()).device
    losses, errors, base_errors = [], [], []
    for index in range(BATCHES):
        batch = data[index].to(device)
        losses.append(_loss(model, batch, sigmas, index, settings))
        if settings.dataset.condition == "denoise":
            base, mean = batch.cond[:, :1], posterior_mean(model, batch.cond, sigmas[-1])
        elif settings.dataset.condition in PRIORS:
            base, mean = _denoised(model, batch, index)
        else:
            mean = posterior_mean(model, batch.cond, sigmas[-1])
            base = torch.zeros_like(mean)
        if settings.dataset.condition in PRIORS:
            wide = batch.scale[:, None, None, None]
            batch = replace(batch, views=(wide * base).expand(-1, 2, -1, -1))
        errors += _error(mean, batch)
        base_errors += _error(base, batch)
        if index == 0:
            _draw(batch, mean, picture)
    middle = [float(torch.tensor(e).median()) for e in (errors, base_errors)]
    return Validation(sum(losses) / len(losses), *middle)


def _denoised(model: NetworkDenoiser, batch: TrainBatch, index: int) -> tuple[Tensor, Tensor]:
    """Noisy samples, and one evaluation at their noise."""
    sigma = SAMPLE_NOISE / batch.scale
    noise = Noise(index, shared=False).step(1).normal_like(batch.x0)
    noisy = batch.x0 + sigma[:, None, None, None] * noise
    return noisy, model(noisy, sigma, batch.cond)


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


def _error(estimate: Tensor, batch: TrainBatch) -> list[float]:
    """Rms error in percent over lit pixels, with its mean removed, per item."""
    lit = batch.weight > 0.5
    error = (estimate - batch.x0) * batch.scale[:, None, None, None] * 100
    return [float(e[m].std(correction=0)) for e, m in zip(error, lit, strict=True)]


def _draw(batch: TrainBatch, mean: Tensor, picture: Path) -> None:
    """What the network saw, truth, answer and error of eight items."""
    count = min(8, len(mean))
    figure = Figure(figsize=(1.6 * count, 8.2), layout="constrained")
    axes = figure.subplots(5, count, squeeze=False)
    for k in range(count):
        truth, guess = (float(batch.scale[k]) * x[k, 0].cpu() for x in (batch.x0, mean))
        middle, half = float(truth.median()), max(3 * float(truth.std()), 0.01)
        images = *batch.views[k].cpu(), truth, guess
        for axis, image in zip(axes[:, k], images, strict=False):
            axis.imshow(image.numpy(), cmap="gray", vmin=middle - half, vmax=middle + half)
        error = guess - truth
        axes[4, k].imshow((error - error.mean()).numpy(), cmap="RdBu", vmin=-0.05, vmax=0.05)
        axes[0, k].set_title(f"±{100 * half:.1f} %", fontsize=8)
    for row, label in enumerate(["frame", "other", "truth", "generated", "error ±5 %"]):
        axes[row, 0].set_ylabel(label)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(picture, dpi=80)
