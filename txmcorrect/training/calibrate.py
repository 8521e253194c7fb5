"""What a stack network is worth, and how wide its spread is, measured once it is trained.

Where references already say nearly everything a network can only add its own noise; where they say
nothing it is worth all it says. Its few-step samples spread too little or too much. Both are
measured on simulated scans that training never draws, by what references there are, and travel
with the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from txmcorrect.background.conditions import lit_mean
from txmcorrect.background.stack import REFERENCES, references_seen
from txmcorrect.config import TrainSettings
from txmcorrect.diffusion.denoiser import NetworkDenoiser, Noise
from txmcorrect.diffusion.samplers import ddim
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.training.batches import Batches
from txmcorrect.training.validate import posterior_mean

FIRST = 1000  # validation batches before these serve to watch the training
SHARES = np.linspace(0, 1, 21).round(2)
STEPS, SAMPLES = 4, 4
NORMAL_90 = 1.645
NOISE = 0.01  # natural log: of 10,000 photons
LEAST_SPREAD, MOST_SPREAD = 0.3, 6.0


@dataclass(frozen=True)
class Calibration:
    """`worth`: share of what the network says that is taken; `spread`: factor on the deviation of
    samples; both by `REFERENCES`.
    """

    worth: dict[str, float]
    spread: dict[str, float]


@torch.no_grad()
def calibrate(
    model: NetworkDenoiser, settings: TrainSettings, sigmas: Tensor, batches: int
) -> Calibration:
    """Measure both on `batches` batches; kinds of references that none shows are left at 1.

    The worth is the share that loses the fewest decibels to photon noise of `NOISE` alone: an error
    well below it hardly counts, and one of many times as much does not outweigh all others.
    """
    data = Batches(settings, "validate")
    device = next(model.parameters()).device
    errors: dict[str, list[Tensor]] = {name: [] for name in REFERENCES}
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in REFERENCES}
    for index in range(FIRST, FIRST + batches):
        batch = data[index].to(device)
        mean = posterior_mean(model, batch.cond, sigmas[-1])
        std = _samples(model, batch.cond, sigmas).std(0)
        for k, name in enumerate(references_seen(batch.cond)):
            lit = batch.weight[k, 0] > 0.5
            if lit.sum() < 16:
                continue
            truth, guess = (_shape(x[k, 0], lit) for x in (batch.x0, mean))
            square = torch.stack([(truth - s * guess).square().mean() for s in SHARES])
            errors[name].append((1 + square * (batch.scale[k] / NOISE) ** 2).log().cpu())
            found[name].append((truth, guess, std[k, 0][lit]))
    worth, spread = dict.fromkeys(REFERENCES, 1.0), dict.fromkeys(REFERENCES, 1.0)
    for name in REFERENCES:
        if errors[name]:
            worth[name] = float(SHARES[int(torch.stack(errors[name]).mean(0).argmin())])
            spread[name] = _factor(found[name], worth[name])
    return Calibration(worth, spread)


def _samples(model: NetworkDenoiser, cond: Tensor, sigmas: Tensor) -> Tensor:
    """Samples as `correct` draws them, `(s, b, 1, h, w)`."""
    b, _, h, w = cond.shape
    levels = subsequence(sigmas, STEPS)
    drawn = []
    for sample in range(SAMPLES):
        noise = Noise(0, sample)
        x = noise.start((b, 1, h, w), float(levels[0]), like=cond)
        drawn.append(ddim(model, x, levels, cond, noise=noise, eta=1.0))
    return torch.stack(drawn)


def _shape(image: Tensor, lit: Tensor) -> Tensor:
    return (image - lit_mean(image[None], lit[None].to(image))[0])[lit]


def _factor(found: list[tuple[Tensor, Tensor, Tensor]], worth: float) -> float:
    """What the spread must be multiplied by to hold nine tenths of the errors."""
    ratios = [
        ((truth - worth * guess).abs() / std.clamp_min(1e-6))[:: 1 + len(truth) // 512]
        for truth, guess, std in found
    ]
    wide = float(torch.quantile(torch.cat(ratios).cpu(), 0.9)) / NORMAL_90
    return round(float(np.clip(wide, LEAST_SPREAD, MOST_SPREAD)), 3)


def as_metadata(calibration: Calibration) -> dict[str, dict[str, float]]:
    """As a model's specification keeps it."""
    return {"worth": calibration.worth, "spread": calibration.spread}
