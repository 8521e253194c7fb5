"""The one contract, `denoise(x, sigma, cond, step) -> x0_hat`, and the network behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Target = Literal["eps", "x0", "v", "mean"]


@dataclass(frozen=True)
class Noise:
    """All random numbers of one sample: a function of (seed, sample, step) only.

    Drawn on the CPU, so that every device sees the same. With `shared`, every frame of a batch
    gets the same numbers: independent noise would make the key frames of a scan flicker.
    """

    seed: int = 0
    sample: int = 0
    shared: bool = True

    def step(self, index: int) -> Step:
        """The random numbers of evaluation `index`; -1 is the start."""
        return Step(index, self)

    def start(self, shape: tuple[int, ...], sigma: float, like: Tensor | None = None) -> Tensor:
        """Pure noise `(b, c, h, w)` at the level `sigma`, on the device of `like`."""
        template = torch.empty(shape) if like is None else like.new_empty(shape)
        return sigma * self.step(-1).normal_like(template)


@dataclass(frozen=True)
class Step:
    """Which evaluation this is, and where its random numbers come from."""

    index: int
    noise: Noise

    def generator(self, purpose: int = 0) -> torch.Generator:
        """A CPU generator of this step; `purpose` separates independent uses within it."""
        key = (self.noise.seed, self.noise.sample, self.index + 1, purpose)
        mixed = 0
        for part in key:  # a fixed hash: Python's own differs between runs
            mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
        return torch.Generator().manual_seed(mixed)

    def normal_like(self, x: Tensor, purpose: int = 0) -> Tensor:
        """Standard normal numbers in the shape of `x` `(b, c, h, w)`."""
        shape = (1, *x.shape[1:]) if self.noise.shared else x.shape
        z = torch.randn(shape, generator=self.generator(purpose))
        return z.to(x).expand_as(x)


class Denoiser(Protocol):
    """Posterior mean of a clean image given a noisy one: `x = x0 + sigma * eps` -> x0_hat.

    `x` `(b, c, h, w)`; `sigma` scalar or `(b,)`; `cond` `(b, c', h, w)` or None; the result has
    the shape of `x`.
    """

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor: ...


def per_item(sigma: Tensor, x: Tensor) -> Tensor:
    """Broadcast a scalar or `(b,)` noise level over `(b, c, h, w)`."""
    return sigma.to(x).reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class Preconditioning:
    """What the network is asked for, and how its input and output are scaled.

    `eps` the noise, `x0` the image, `v` the EDM mixture (Karras et al. 2022, Table 1), which for
    `sigma_data = 1` is the v-prediction of VP models (Salimans and Ho 2022) up to sign. `mean` is the
    image given the condition alone: `x` is hidden from the network, which makes it a regression.
    """

    target: Target = "v"
    sigma_data: float = 1.0

    def scale_in(self, sigma: Tensor) -> Tensor:
        if self.target == "mean":
            return torch.zeros_like(sigma)
        return 1 / torch.sqrt(sigma**2 + self.sigma_data**2)

    def x0_hat(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        """Network output -> estimate of x0; `sigma` broadcasts over `x`."""
        if self.target == "eps":
            return x - sigma * output
        if self.target in ("x0", "mean"):
            return output
        total = sigma**2 + self.sigma_data**2
        return x * self.sigma_data**2 / total + output * sigma * self.sigma_data / total.sqrt()

    def wanted(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """What the output should have been; the inverse of `x0_hat`."""
        if self.target == "eps":
            return (x - x0) / sigma
        if self.target in ("x0", "mean"):
            return x0
        total = sigma**2 + self.sigma_data**2
        skip = x * self.sigma_data**2 / total
        return (x0 - skip) * total.sqrt() / (sigma * self.sigma_data)


class NetworkDenoiser(nn.Module):
    """A bare network with its scaling: a `Denoiser`.

    The network is called as `network(inputs, c_noise)` with `[c_in * x, cond]` `(b, c + c', h, w)`
    and `c_noise = ln(sigma) / 4` `(b,)`. Without a condition its channels are zero, as in training
    with condition dropout.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning, cond_channels: int):
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.cond_channels = cond_channels

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Tensor | None = None,
        step: Step | None = None,
        raw: bool = False,
    ) -> Tensor:
        """x0_hat, or with `raw` the bare output (training goes through here, for wrapped modules)."""
        level = per_item(sigma, x)
        output = self._output(x, level, cond)
        return output if raw else self.preconditioning.x0_hat(x, level, output)

    def _output(self, x: Tensor, level: Tensor, cond: Tensor | None) -> Tensor:
        if cond is None and self.cond_channels:
            cond = x.new_zeros(len(x), self.cond_channels, *x.shape[2:])
        parts = [self.preconditioning.scale_in(level) * x, *([] if cond is None else [cond])]
        c_noise = (level.flatten().clamp_min(1e-6).log() / 4).expand(len(x))
        output: Tensor = self.network(torch.cat(parts, 1), c_noise)
        return output


def with_guidance(denoise: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, Eq. 6): 1 is the plain conditional model."""
    if scale == 1:
        return denoise

    def guided(x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        free = denoise(x, sigma, None, step)
        return free + scale * (denoise(x, sigma, cond, step) - free)

    return guided


def within(denoise: Denoiser, low: float, high: float) -> Denoiser:
    """Estimates kept to the values that an image can have, as the authors' code of DDPM does.

    At the largest sigma `x - sigma eps` multiplies the error of a network that says eps.
    Source: Ho et al. 2020, `clip_denoised`.
    """

    def kept(x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        return denoise(x, sigma, cond, step).clamp(low, high)

    return kept
