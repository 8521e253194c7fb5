"""A volume from two 2D priors on perpendicular planes (TPDM).

`VolumePrior` is a denoiser of volumes that fit in memory: slices are the batch, and
`ddnm(VolumePrior(...), measurement)` restores one. `VolumeSampler` does the same over arrays that
need not fit (memory maps), a few slices at a time, and can go on after an interruption.

TPDM measures on the primary plane's turns only, with a weight tuned for each problem: half of the
steps then pull away from the data. Here x0_hat meets the measurement after either turn, which
needs no network, hence no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser, Noise, Step
from txmcorrect.diffusion.langevin import corrected, predicted

Volume = NDArray[np.float32]  # (z, y, x), in memory or mapped
TURN, PLANES = 201, 1000  # purposes of a step's random numbers


def is_auxiliary(k: float, step: Step) -> bool:
    """Whose turn it is: every k-th step is the auxiliary plane's, at random for a fractional k.

    Source: Lee et al. 2023 (TPDM), Algorithm 1.
    """
    if float(k).is_integer():
        return step.index % int(k) == int(k) - 1
    return float(torch.rand(1, generator=step.generator(TURN))) < 1 / k


@dataclass(frozen=True)
class VolumePrior:
    """Denoise a volume `(z, 1, y, x)` plane by plane.

    Attributes
    ----------
    primary : denoiser of planes `(y, x)`.
    auxiliary : denoiser of planes `(z, x)`.
    k : see `is_auxiliary`; 2 takes turns.
    """

    primary: Denoiser
    auxiliary: Denoiser
    k: float = 2

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        if not is_auxiliary(self.k, step):
            return self.primary(x, sigma, cond, step)
        return self.auxiliary(x.transpose(0, 2), sigma, None, step).transpose(0, 2)


Agree = Callable[[Tensor, Tensor, slice], Tensor]
"""`agree(x0_hat, sigma, slices)`: primary planes `(n, 1, y, x)` made to agree with their data."""


def unmeasured(x0_hat: Tensor, sigma: Tensor, slices: slice) -> Tensor:
    """No measurement: volumes from the priors alone."""
    return x0_hat


@dataclass(frozen=True)
class VolumeSampler:
    """Predictor-corrector over a volume that may be larger than memory.

    Attributes
    ----------
    prior : the two priors and whose turn it is.
    sigmas : `(steps + 1,)` descending to 0.
    noise : random numbers, one stream per step and slice: micro-batches cannot change them.
    agree : measurement, on primary planes; for a `Measurement` m of all slices it is
        `lambda x0_hat, sigma, slices: m.of(slices).agree(x0_hat, sigma)`.
    micro_batch : slices a network call.
    snr : of the Langevin corrector, per slice; 0 leaves the corrector out.
    device : where the networks live.
    """

    prior: VolumePrior
    sigmas: Tensor
    noise: Noise
    agree: Agree = unmeasured
    micro_batch: int = 8
    snr: float = 0.16
    device: torch.device | str = "cpu"

    @property
    def moves(self) -> list[tuple[int, bool]]:
        """Step and whether it is the corrector's part, in order."""
        parts = (True, False) if self.snr > 0 else (False,)
        return [(index, part) for index in range(len(self.sigmas) - 1) for part in parts]

    def start(self, volume: Volume) -> None:
        """Fill with pure noise, slice by slice."""
        for z in range(len(volume)):
            volume[z] = float(self.sigmas[0]) * _normal(self.noise.step(-1), z, volume.shape[1:], 0)

    def run(
        self,
        states: tuple[Volume, Volume],
        done: int = 0,
        after_move: Callable[[int], Any] | None = None,
    ) -> Volume:
        """Make all moves from number `done` on; returns the copy that holds the result.

        Parameters
        ----------
        states : two copies `(z, y, x)`; move i reads `states[i % 2]` and writes the other, so the
            input of an interrupted move is intact.
        after_move : called with the number of moves made, once the result is written.
        """
        levels = list(pairwise(self.sigmas))
        for number, (index, correct) in list(enumerate(self.moves))[done:]:
            old, new = states[number % 2], states[1 - number % 2]
            step, (sigma, after) = self.noise.step(index), levels[index]
            self._denoise(old, new, sigma, step)
            self._move(old, new, sigma, after, step, correct)
            if after_move is not None:
                after_move(number + 1)
        return states[len(self.moves) % 2]

    def _denoise(self, x: Volume, x0_hat: Volume, sigma: Tensor, step: Step) -> None:
        """Denoise plane by plane, along the plane whose turn it is."""
        denoise = self.prior.primary
        if is_auxiliary(self.prior.k, step):
            denoise, x, x0_hat = (
                self.prior.auxiliary,
                x.transpose(1, 0, 2),
                x0_hat.transpose(1, 0, 2),
            )
        for slices in _micro_batches(len(x), self.micro_batch):
            found = denoise(self._load(x, slices), sigma.to(self.device), None, step)
            x0_hat[slices] = found[:, 0].cpu().numpy()

    def _move(
        self, old: Volume, new: Volume, sigma: Tensor, after: Tensor, step: Step, correct: bool
    ) -> None:
        """Meet the measurement, then step; `new` holds x0_hat and is overwritten."""
        for slices in _micro_batches(len(old), self.micro_batch):
            x, level = self._load(old, slices), sigma.to(self.device)
            x0_hat = self.agree(self._load(new, slices), level, slices)
            z = _planes(step, slices, x, int(correct))
            if correct:
                x = corrected(x, x0_hat, level, z, self.snr)
            else:
                x = predicted(x, x0_hat, sigma, after, z)
            new[slices] = x[:, 0].cpu().numpy()

    def _load(self, volume: Volume, slices: slice) -> Tensor:
        """Planes `(n, 1, h, w)` on the device."""
        planes = np.ascontiguousarray(volume[slices], np.float32)
        return torch.from_numpy(planes.copy())[:, None].to(self.device)


def _micro_batches(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _normal(step: Step, plane: int, shape: tuple[int, ...], part: int) -> Volume:
    """Standard normal numbers of one plane of one step."""
    generator = step.generator(PLANES + 2 * plane + part)
    return np.asarray(torch.randn(shape, generator=generator).numpy(), np.float32)


def _planes(step: Step, slices: slice, x: Tensor, part: int) -> Tensor:
    shape = tuple(x.shape[2:])
    z = np.stack([_normal(step, p, shape, part) for p in range(slices.start, slices.stop)])
    return torch.from_numpy(z)[:, None].to(x)
