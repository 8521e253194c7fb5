"""Log backgrounds at key frames: samples of the model's posterior given pairs of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import log_counts, pair_condition
from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.samplers import SAMPLERS
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.weights import Model

BATCH = 8  # fixed and padded: convolutions give other last bits at other batch sizes


@dataclass(frozen=True)
class Draw:
    """How samples are drawn: sampler, evaluations a sample, samples, seed."""

    sampler: str = "ddim"
    steps: int = 8
    samples: int = 4
    seed: int = 0


def partner(frame: int, interval: int, usable: NDArray[np.bool_]) -> int:
    """The frame that `frame` is paired with: `interval` later, else earlier, else the nearest usable."""
    for other in (frame + interval, frame - interval):
        if 0 <= other < len(usable) and usable[other]:
            return other
    index = np.flatnonzero(usable)
    index = index[index != frame]
    return int(index[np.argmin(np.abs(np.abs(index - frame) - interval))])


def generate(
    model: Model,
    small: NDArray[np.float32],
    pairs: NDArray[np.intp],
    photons: float,
    draw: Draw,
    progress: Callable[[int, int], None],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log background of the first frame of each pair.

    Parameters
    ----------
    small : `(n, h, w)` counts above dark on the working grid. pairs : `(k, 2)` frame numbers.
    photons : per count and working pixel.

    Returns
    -------
    mean, std : `(k, h, w)` natural logarithm of counts; std is 0 for a single sample.
    """
    k = len(pairs)
    means, stds = [], []
    for start in range(0, k, BATCH):
        # The last batch is padded, so that no result depends on how many frames came before.
        batch = pairs[np.minimum(np.arange(start, start + BATCH), k - 1)]
        samples = sample_pairs(model, small[batch[:, 0]], small[batch[:, 1]], photons, draw)
        keep = min(BATCH, k - start)
        means.append(samples.mean(0)[:keep])
        stds.append(samples.std(0, correction=min(1, len(samples) - 1))[:keep])
        progress(min(start + BATCH, k), k)
    return torch.cat(means).numpy(), torch.cat(stds).numpy()


@torch.inference_mode()
def sample_pairs(
    model: Model,
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    photons: float,
    draw: Draw,
) -> torch.Tensor:
    """Samples `(s, b, h, w)` of the log background of `first` `(b, h, w)`, on the CPU."""
    device = next(model.denoiser.parameters()).device
    a, b = (torch.from_numpy(np.ascontiguousarray(f)) for f in (first, second))
    cond, base, _ = pair_condition(a, b, torch.full((len(first),), photons))
    cond = cond.to(device)
    sigmas = subsequence(model.spec.sigmas(), draw.steps)
    sampler = SAMPLERS[draw.sampler]
    if draw.sampler == "ddim" and draw.samples > 1:
        sampler = partial(sampler, eta=1.0)  # type: ignore[call-arg]
    drawn = []
    for sample in range(draw.samples):
        noise = Noise(draw.seed, sample)
        x = noise.start((len(first), 1, *first.shape[1:]), float(sigmas[0]), like=cond)
        x0 = sampler(model.denoiser, x, sigmas, cond, noise=noise)
        drawn.append(log_counts(x0[:, 0].float().cpu(), base))
    return torch.stack(drawn)
