"""How steps between neighbouring cells of a sample are distributed: a mixture of Gaussians of many widths.

A sample's steps are mostly small and sometimes large, and every sample has its own mixture of both. Its
shares are found together with the fit: reweighted least squares by expected precisions is then exact EM.

Source: Gaussian scale mixtures, Wainwright and Simoncelli 2000; EM as reweighting, Dempster et al. 1980.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Array = NDArray[Any]

WIDTHS = 10  # each twice the one before: 512 times the least, from noise to the edge of a wire
LEAST_WIDTH = 2e-4  # natural log, added to what is least: steps of no frame are exactly zero
LEAST_QUANTILE = 0.05  # of the sizes of steps, where the widths begin
FIRST_UPDATES = 4  # of the shares, from equal ones
FEWEST = 20  # steps that tell the shares of a frame; with fewer all steps do


@dataclass
class ScaleMixture:
    """Mixture of one kind of steps, of `n` frames each its own.

    `variances` `(j,)`; `shares` `(n, j)`, which sum to 1.
    """

    variances: Image = field(default_factory=lambda: np.zeros(0, np.float32))
    shares: Image = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def precisions(self, residual: Image, telling: NDArray[np.bool_]) -> Image:
        """Expected precision `(n, p)` of residual steps `(n, p)`; shares are updated first.

        `telling` `(n, p)`: the steps that the shares are learnt from.
        """
        square = residual**2
        updates = 1
        if self.shares.shape[0] != len(residual):
            self._begin(residual, telling)
            updates = FIRST_UPDATES
        count = telling.sum(1)[:, None]
        for _ in range(updates):
            share = self._posterior(square)
            told = (share * telling[..., None]).sum(1) / np.maximum(count, 1)
            self.shares = np.where(count >= FEWEST, told, share.mean(1)).astype(np.float32)
        return np.asarray((share / self.variances).sum(-1), np.float32)

    def _begin(self, residual: Image, telling: NDArray[np.bool_]) -> None:
        size = np.abs(residual[telling]) if telling.any() else np.abs(residual)
        least = float(np.quantile(size, LEAST_QUANTILE)) + LEAST_WIDTH
        self.variances = ((least * 2.0 ** np.arange(-1, WIDTHS - 1)) ** 2).astype(np.float32)
        self.shares = np.full((len(residual), WIDTHS), 1 / WIDTHS, np.float32)

    def _posterior(self, square: Image) -> Image:
        """Share `(n, p, j)` of each width in each step."""
        log_prior = np.log(self.shares + np.float32(1e-12)) - np.log(self.variances) / 2
        chance = log_prior[:, None] - square[..., None] / (2 * self.variances)
        chance -= chance.max(-1, keepdims=True)
        np.exp(chance, out=chance)
        chance /= chance.sum(-1, keepdims=True)
        return np.asarray(chance, np.float32)
