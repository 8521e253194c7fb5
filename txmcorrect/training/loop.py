"""The optimiser steps: one Accelerate loop for any number of processes and any precision."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from txmcorrect.config import TrainSettings
from txmcorrect.diffusion.denoiser import Noise, Preconditioning
from txmcorrect.diffusion.loss import denoising_loss
from txmcorrect.errors import TxmError
from txmcorrect.training.batches import Batches, TrainBatch

PATIENCE = 20  # steps in a row without a finite gradient before training is given up


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth at `steps`."""
    ramp = min(1.0, (step + 1) / max(settings.warmup, 1))
    progress = min(1.0, step / settings.steps)
    cosine = 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))
    return settings.lr * ramp * (0.01 + 0.99 * cosine)


def draw_levels(
    settings: TrainSettings, sigmas: Tensor, batch: TrainBatch, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise levels `(b,)`, noise `(b, 1, h, w)` and condition dropout `(b,)` of one global batch.

    Functions of (seed, step) only. Levels are stratified over the schedule: less variance for free.
    """
    noise = Noise(settings.seed, shared=False).step(step)
    count = len(batch.x0)
    place = torch.rand(1, generator=noise.generator(1)) + torch.arange(count) / count
    place = place[torch.randperm(count, generator=noise.generator(2))] % 1
    if settings.diffusion.levels == "lognormal":  # Karras et al. 2022, table 1; width 1.2
        middle = place.clamp(1e-3, 1 - 1e-3)
        sigma = torch.exp(1.2 * torch.special.ndtri(middle) - 0.5).clamp(sigmas[0], sigmas[-1])
    else:
        sigma = sigmas[(place * len(sigmas)).long()]
    top = (
        place * 7919
    ) % 1 < settings.diffusion.top_share  # the digits that even levels leave free
    sigma = torch.where(top, sigmas[-1], sigma).float()
    dropped = torch.rand(count, generator=noise.generator(3)) < settings.diffusion.uncon_ratio
    return sigma, noise.normal_like(batch.x0), (~dropped).float()


@dataclass
class Loop:
    """Takes optimiser steps on `model` (already wrapped by `accelerator`)."""

    settings: TrainSettings
    accelerator: Accelerator
    model: nn.Module
    precondition: Preconditioning
    optimizer: Any
    sigmas: Tensor
    skipped: int = 0

    def batches(self, first: int, last: int) -> Iterator[TrainBatch]:
        """Global batches number `first` up to `last`, made ahead by worker processes."""
        data = Batches(self.settings)
        workers = self.settings.dataset.workers
        loader: DataLoader[TrainBatch] = DataLoader(
            data,
            batch_size=None,
            sampler=range(first, last),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            collate_fn=None,
        )
        yield from loader

    def step(self, batch: TrainBatch, step: int) -> float:
        """One optimiser step on a global batch; returns its mean loss over all processes.

        Raises
        ------
        TxmError : no finite gradient for `PATIENCE` steps.
        """
        settings, accelerator = self.settings, self.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        sigma, eps, keep = draw_levels(settings, self.sigmas, batch, step)
        torch.manual_seed(settings.seed * 1_000_003 + step * 101 + rank)  # dropout
        mine = batch.part(rank, world).split(settings.accumulate)
        shares = [t[rank::world].chunk(settings.accumulate) for t in (sigma, eps, keep)]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        total = torch.zeros((), device=accelerator.device)
        for k, part in enumerate(mine):
            last = k == len(mine) - 1
            waiting = contextlib.nullcontext() if last else accelerator.no_sync(self.model)
            with waiting, accelerator.autocast():
                loss = self._loss(part.to(accelerator.device), *(s[k] for s in shares))
                accelerator.backward(loss / len(mine))
            total += loss.detach() / len(mine)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), settings.clip)
        self._guard(norm, step)
        self.optimizer.zero_grad(set_to_none=True)
        mean = accelerator.reduce(total, "mean")
        return float(mean)

    def _loss(self, batch: TrainBatch, sigma: Tensor, eps: Tensor, keep: Tensor) -> Tensor:
        device, diffusion = self.accelerator.device, self.settings.diffusion
        return denoising_loss(
            self.model,
            self.precondition,
            batch.x0,
            batch.cond,
            sigma.to(device),
            eps.to(device),
            keep.to(device),
            batch.weight,
            diffusion.loss,
            diffusion.snr_weight,
        )

    def _guard(self, norm: Tensor | None, step: int) -> None:
        """Step only where the gradient is finite; give up when it stays otherwise."""
        finite = norm is None or bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:  # a scaler skips and adapts by itself
            self.optimizer.step()
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped >= PATIENCE:
            raise TxmError(
                f"training diverged: {PATIENCE} steps without a finite gradient before step {step}; "
                "the last checkpoint is kept; lower --lr or use --precision no"
            )


class Clock:
    """When to stop by --max-minutes; all processes stop together."""

    def __init__(self, accelerator: Accelerator, minutes: float | None):
        self.accelerator, self.minutes = accelerator, minutes
        self.start = time.monotonic()

    def over(self, step: int) -> bool:
        if self.minutes is None:
            return False
        late = time.monotonic() - self.start > 60 * self.minutes
        if self.accelerator.num_processes == 1:
            return late
        if step % 10:  # asking the others costs a message
            return False
        flag = torch.tensor(float(late), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)
