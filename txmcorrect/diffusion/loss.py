"""Training losses of a denoiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txmcorrect.diffusion.denoiser import Preconditioning

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda a, b: (a - b).abs(),
    "l2": lambda a, b: (a - b) ** 2,
    "huber": lambda a, b: F.smooth_l1_loss(a, b, reduction="none", beta=0.1),
}


def snr_weight(kind: str, sigma: Tensor, target: str) -> Tensor:
    """Weight of a noise level `(b,)` for a loss taken on the network's target.

    `min-snr` is Hang et al. 2023 (gamma 5), `sigmoid` is Kingma and Gao 2023 (bias 2); both are
    stated for the loss on x0 and converted to the target in use.
    """
    snr = 1 / sigma**2
    if target == "mean":  # noise levels mean nothing to a regression
        return torch.ones_like(snr)
    to_target = {"x0": torch.ones_like(snr), "eps": 1 / snr, "v": 1 / (snr + 1)}[target]
    if kind == "min-snr":
        return snr.clamp_max(5.0) * to_target
    if kind == "sigmoid":
        return torch.sigmoid(2.0 - snr.log()) * snr * to_target
    return torch.ones_like(snr)


def denoising_loss(
    model: nn.Module,
    precondition: Preconditioning,
    x0: Tensor,
    cond: Tensor | None,
    sigma: Tensor,
    eps: Tensor,
    keep: Tensor,
    weight: Tensor,
    kind: str = "l2",
    snr: str = "none",
) -> Tensor:
    """Mean over items of the weighted mean loss on the network's target.

    `model` is a `NetworkDenoiser`, wrapped or not, and `precondition` its scaling. Each item counts
    the same however many pixels it has lit, so that a batch may be split over micro-batches and
    processes without changing its loss.

    `x0`, `eps` `(b, c, h, w)`; `sigma` `(b,)`; `keep` `(b,)` 1 where the condition is shown and 0
    where it is dropped; `weight` `(b, 1, h, w)` counts pixels (0: unlit).
    """
    level = sigma[:, None, None, None]
    x = x0 + level * eps
    shown = None if cond is None else cond * keep[:, None, None, None]
    error = LOSSES[kind](model(x, level, shown, raw=True), precondition.wanted(x0, x, level))
    per_item = (error * weight).flatten(1).sum(1) / weight.expand_as(error).flatten(1).sum(
        1
    ).clamp_min(1)
    return (per_item * snr_weight(snr, sigma, precondition.target)).mean()
