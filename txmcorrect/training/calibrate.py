"""How far a stack network, and the fit it starts from, are from what they claim; once it is trained.

A fit does not know its own mistakes, and few-step samples spread too little or too much. By how much
either errs more than it says is measured on simulated scans that training never draws, by what
references there are, and travels with the weights: `correct` weighs one against the other by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from txmcorrect.background.conditions import lit_mean
from txmcorrect.background.stack import REFERENCES, doubt_seen, references_seen
from txmcorrect.config import TrainSettings
from txmcorrect.diffusion.denoiser import NetworkDenoiser, Noise
from txmcorrect.diffusion.samplers import ddim
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.training.batches import Batches
from txmcorrect.training.validate import posterior_mean

FIRST = 1000  # validation batches before these serve to watch the training
STEPS, SAMPLES = 4, 4
LEAST, MOST = 0.3, 20.0


@dataclass(frozen=True)
class Calibration:
    """Error over what was claimed, of the usual scan, by `REFERENCES`: `doubt` of the fit, `spread` of
    the network's samples.
    """

    doubt: dict[str, float]
    spread: dict[str, float]


@torch.no_grad()
def calibrate(
    model: NetworkDenoiser, settings: TrainSettings, sigmas: Tensor, batches: int
) -> Calibration:
    """Measure both on `batches` batches; kinds of references that none shows are left at 1."""
    data = Batches(settings, "validate")
    device = next(model.parameters()).device
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in REFERENCES}
    for index in range(FIRST, FIRST + batches):
        batch = data[index].to(device)
        mean = posterior_mean(model, batch.cond, sigmas[-1])
        samples = _samples(model, batch.cond, sigmas)
        doubt = doubt_seen(batch.cond)  # in units of the scale, as is all that is generated
        for k, name in enumerate(references_seen(batch.cond)):
            lit = batch.weight[k, 0] > 0.5
            if lit.sum() < 16:
                continue
            truth, guess = (_shape(x[k, 0], lit) for x in (batch.x0, mean))
            std = torch.stack([_shape(sample[k, 0], lit) for sample in samples]).std(0)
            fit, network = _rms(truth) / _rms(doubt[k][lit]), _rms(truth - guess) / _rms(std)
            found[name].append((fit, network))
    factors = {
        name: np.clip(np.median(ratios, 0), LEAST, MOST).round(3).tolist() if ratios else (1.0, 1.0)
        for name, ratios in found.items()
    }
    return Calibration(
        {name: doubt for name, (doubt, _) in factors.items()},
        {name: spread for name, (_, spread) in factors.items()},
    )


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


def _rms(values: Tensor) -> float:
    return max(float(values.square().mean().sqrt()), 1e-6)


def as_metadata(calibration: Calibration) -> dict[str, dict[str, float]]:
    """As a model's specification keeps it."""
    return {"doubt": calibration.doubt, "spread": calibration.spread}
