"""How noisy a frame is: Gaussian, or Poisson with a floor, told from the data alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAD = 0.6744897501960817  # median |z| of a standard normal variable


@dataclass(frozen=True)
class NoiseModel:
    """Variance of a pixel as a line in its mean: `floor + gain * mean`.

    Pure Gaussian noise has gain 0; photon noise of a transmission image has gain 1 / counts.
    """

    floor: float
    gain: float = 0.0

    def variance(self, mean: Tensor) -> Tensor:
        """Variance map, shaped like `mean`."""
        return (self.floor + self.gain * mean.clamp(min=0)).clamp(min=1e-12)


def ripple(frames: Tensor) -> Tensor:
    """Finest diagonal detail of `(..., h, w)`, scaled to the noise's standard deviation.

    Edges and ramps along an axis vanish: what is left of a smooth sample is noise.
    Source: Immerkaer 1996, Eq. 3; the weights' norm is 6.
    """
    f = frames.flatten(0, -3)[:, None] if frames.ndim > 2 else frames[None, None]
    weights = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=f.dtype)
    return torch.nn.functional.conv2d(f, weights[None, None].to(f.device) / 6)[:, 0]


def estimate_gaussian(frames: Tensor) -> NoiseModel:
    """Noise of one strength everywhere, from `(..., h, w)`; robust against edges."""
    return NoiseModel(float((ripple(frames).abs().flatten().median() / MAD) ** 2))


def estimate_poisson(frames: Tensor, levels: int = 16) -> NoiseModel:
    """Fit `variance = floor + gain * mean` over intensity levels of `(..., h, w)`.

    Each level's variance comes from the median of its ripple; levels weigh by their number of
    pixels over the squared variance, as the scatter of a variance does. Neither part may be
    negative: where one would be, the other is fitted alone.
    """
    detail = ripple(frames).flatten()
    smooth = torch.nn.functional.avg_pool2d(
        frames.reshape(-1, 1, *frames.shape[-2:]), 3, 1
    ).flatten()
    order = smooth.argsort()
    groups = [g for g in order.tensor_split(levels) if len(g) >= 50]
    if len(groups) < 2 or bool(smooth.std() < 1e-6 * smooth.abs().mean()):
        return estimate_gaussian(frames)
    mean = torch.stack([smooth[g].mean() for g in groups]).double()
    variance = torch.stack([(detail[g].abs().median() / MAD) ** 2 for g in groups]).double()
    weight = 1 / variance.clamp(min=1e-30).square()
    weight = weight / weight.sum()
    centre = (weight * mean).sum()
    spread = (weight * (mean - centre) ** 2).sum()
    gain = (weight * (mean - centre) * variance).sum() / spread.clamp(min=1e-30)
    floor = (weight * variance).sum() - gain * centre
    if gain <= 0:
        return NoiseModel(float((weight * variance).sum()))
    if floor < 0:
        return NoiseModel(0.0, float((weight * mean * variance).sum() / (weight * mean**2).sum()))
    return NoiseModel(float(floor), float(gain))
