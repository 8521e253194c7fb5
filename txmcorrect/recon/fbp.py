"""Filtered back-projection, for parallel and full-circle fan beams at any set of angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from txmcorrect.errors import GeometryError
from txmcorrect.recon.geometry import Beam, FanBeam
from txmcorrect.recon.projector import smear

# Window over the ramp as a function of x = frequency / Nyquist, 0..1.
WINDOWS = {
    "ramp": lambda x: torch.ones_like(x),
    "shepp-logan": lambda x: torch.sinc(x / 2),
    "cosine": lambda x: torch.cos(x * math.pi / 2),
    "hamming": lambda x: 0.54 + 0.46 * torch.cos(x * math.pi),
    "hann": lambda x: 0.5 + 0.5 * torch.cos(x * math.pi),
}
FILTERS = (*WINDOWS, "none")


def fbp(beam: Beam, size: int, sinograms: Tensor, filter: str = "ramp") -> Tensor:
    """Reconstruct slices from line integrals.

    Parameters
    ----------
    sinograms : `(..., n_theta, width)`. size : pixels along a side of a slice.
    filter : one of `FILTERS`; "none" gives the plain back-projection.

    Returns
    -------
    `(..., size, size)` float32, per pixel length.

    Source: Kak and Slaney 1988, "Principles of Computerized Tomographic Imaging", Ch. 3.
    """
    fan = isinstance(beam, FanBeam)
    weight = angle_weights(beam.theta, 2 * math.pi if fan else math.pi)
    if isinstance(beam, FanBeam):
        s = torch.arange(beam.width, device=sinograms.device) - beam.axis
        sinograms = sinograms * (beam.source / s.square().add(beam.source**2).sqrt())
        weight = weight / 2
    filtered = filter_sinograms(sinograms, filter) * weight.to(sinograms)[:, None]
    return smear(beam, size, filtered)


def filter_sinograms(sinograms: Tensor, filter: str = "ramp") -> Tensor:
    """Filter `(..., n_theta, width)` along the detector; beyond its ends the edge values go on."""
    if filter not in FILTERS:
        raise GeometryError(f"expected a filter among {', '.join(FILTERS)}, got {filter!r}")
    if filter == "none":
        return sinograms
    width = sinograms.shape[-1]
    length = 1 << (2 * width - 1).bit_length()
    spare = length - width
    right = sinograms[..., -1:].expand(*sinograms.shape[:-1], spare - spare // 2)
    left = sinograms[..., :1].expand(*sinograms.shape[:-1], spare // 2)
    spectrum = torch.fft.rfft(torch.cat([sinograms, right, left], -1))
    response = _ramp(length) * WINDOWS[filter](torch.linspace(0, 1, length // 2 + 1))
    filtered = torch.fft.irfft(spectrum * response.to(sinograms), length)
    return filtered[..., :width]


def _ramp(length: int) -> Tensor:
    """Response of the band-limited ramp, from its samples in space (Eq. 61): no offset at zero."""
    position = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64)
    odd = position.remainder(2) == 1
    kernel = torch.where(odd, -1 / (math.pi * position).square(), torch.zeros(()).double())
    kernel[0] = 0.25
    return torch.fft.rfft(kernel).real


def angle_weights(theta: Tensor, period: float = math.pi) -> Tensor:
    """Angle that each view stands for: half of the gaps to its neighbours, `(n_theta,)` radians.

    Views may repeat, come in any order or be spaced unevenly. A missing wedge is nobody's: no gap
    counts for more than twice the median one.
    """
    if len(theta) == 1:
        return torch.full_like(theta, period)
    order = torch.argsort(theta.remainder(period))
    at = theta.remainder(period)[order]
    gap = torch.diff(at, append=at[:1] + period)
    gap = gap.clamp(max=2 * float(gap[gap > 1e-9].median()))
    weight = torch.empty_like(gap)
    weight[order] = (gap + gap.roll(1)) / 2
    return weight
