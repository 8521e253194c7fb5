"""From transmission to line integrals, with few photons and with more light than came in."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 8  # pixels along a side over which noise is averaged
PHASE_EXCESS, PHASE_SHARE = 0.05, 0.01


def absorption(transmission: Tensor, least: float) -> Tensor:
    """Negative logarithm, continued by its tangent below `least`.

    Nothing is clipped: transmission above 1 (phase contrast, noise) gives negative values, and
    noise at or below zero counts stays finite and keeps its order.

    Parameters
    ----------
    transmission : any shape. least : transmission of about one photon.
    """
    safe = transmission.clamp(min=least)
    return -safe.log() + (safe - transmission) / least


def is_phase_contrast(frames: NDArray[np.float32]) -> bool:
    """Tell whether more light leaves parts of the sample than entered: edges of phase, or a halo.

    Absorption cannot do that beyond the noise. Blocks of 8 x 8 pixels are averaged first; it takes
    one in a hundred of them above 1.05.

    Parameters
    ----------
    frames : `(n, h, w)` transmission.
    """
    n, h, w = frames.shape
    b, c = min(BLOCK, h), min(BLOCK, w)
    blocks = frames[:, : h // b * b, : w // c * c].reshape(n, h // b, b, w // c, c).mean((2, 4))
    return bool((blocks > 1 + PHASE_EXCESS).mean() > PHASE_SHARE)


def photon_floor(counts: float | None) -> float:
    """Transmission of one photon where the beam gives `counts`; a thousandth if that is unknown."""
    if counts is None or not math.isfinite(counts) or counts <= 0:
        return 1e-3
    return float(min(max(1 / counts, 1e-4), 0.05))


def slices_of(frames: NDArray[np.float32]) -> Tensor:
    """Turn projections `(n, h, w)` into sinograms `(h, n, w)`."""
    return torch.from_numpy(np.ascontiguousarray(frames.swapaxes(0, 1)))
