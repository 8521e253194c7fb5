"""Log backgrounds at key frames: samples of the model's posterior given frames and references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import pair_condition
from txmcorrect.background.stack import stack_condition
from txmcorrect.background.windows import Known, make_stack
from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.samplers import SAMPLERS
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.errors import ModelError
from txmcorrect.weights import Model

ToLog = Callable[[torch.Tensor], torch.Tensor]
"""What the network generated `(b, h, w)` -> natural logarithm of counts."""
Conditions = Callable[[NDArray[np.intp]], tuple[torch.Tensor, ToLog]]
"""Frame numbers `(b,)` -> what the network sees of them, and how to read its answer."""

BATCH = 8  # fixed and padded: convolutions give other last bits at other batch sizes


@dataclass(frozen=True)
class Draw:
    """How samples are drawn: sampler, evaluations a sample, samples, seed."""

    sampler: str = "ddim"
    steps: int = 4
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


def pair_conditions(
    small: NDArray[np.float32], usable: NDArray[np.bool_], interval: int, photons: float
) -> Conditions:
    """Each frame with its partner; `small` `(n, h, w)` counts above dark on the working grid."""

    def conditions(targets: NDArray[np.intp]) -> tuple[torch.Tensor, ToLog]:
        partners = [partner(int(i), interval, usable) for i in targets]
        first, second = torch.from_numpy(small[targets]), torch.from_numpy(small[partners])
        cond, basis = pair_condition(first, second, torch.full((len(targets),), photons))
        return cond, basis.log_counts

    return conditions


def stack_conditions(known: Known) -> Conditions:
    """Each frame with the window around it and the scan's references."""

    def conditions(targets: NDArray[np.intp]) -> tuple[torch.Tensor, ToLog]:
        cond, basis = stack_condition(make_stack(known, targets))
        return cond, basis.log_counts

    return conditions


def generate(
    model: Model,
    conditions: Conditions,
    targets: NDArray[np.intp],
    draw: Draw,
    progress: Callable[[int, int], None],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log background of the frames `targets` `(k,)`.

    Returns
    -------
    mean, std : `(k, h, w)` natural logarithm of counts. A single sample is returned as it is, with
    std 0, as source 0 does. Several give the spread, and the mean is then the posterior's own: one
    more evaluation at the largest sigma, where x0_hat depends on the condition alone.
    """
    k = len(targets)
    means, stds = [], []
    for start in range(0, k, BATCH):
        # The last batch is padded, so that no result depends on how many frames came before.
        batch = targets[np.minimum(np.arange(start, start + BATCH), k - 1)]
        cond, to_log = conditions(batch)
        samples = draw_samples(model, cond, to_log, draw)
        best = draw if draw.samples == 1 else replace(draw, sampler="ddim", steps=1, samples=1)
        keep = min(BATCH, k - start)
        means.append(draw_samples(model, cond, to_log, best)[0, :keep])
        stds.append(samples.std(0, correction=min(1, len(samples) - 1))[:keep])
        progress(min(start + BATCH, k), k)
    return torch.cat(means).numpy(), torch.cat(stds).numpy()


@torch.inference_mode()
def draw_samples(model: Model, cond: torch.Tensor, to_log: ToLog, draw: Draw) -> torch.Tensor:
    """Samples `(s, b, h, w)` of the log background given `cond` `(b, c, h, w)`, on the CPU.

    Raises
    ------
    ModelError : the model was trained for another version of the condition.
    """
    wanted = model.spec.cond_channels
    if cond.shape[1] != wanted:
        raise ModelError(
            f"the model sees {wanted} channels, but condition {model.spec.condition} has "
            f"{cond.shape[1]} in this version: train it again, or use --model bundled"
        )
    cond = cond.to(next(model.denoiser.parameters()).device)
    sigmas = subsequence(model.spec.sigmas(), draw.steps)
    sampler = SAMPLERS[draw.sampler]
    if draw.sampler == "ddim" and draw.samples > 1:
        sampler = partial(sampler, eta=1.0)  # type: ignore[call-arg]
    drawn = []
    for sample in range(draw.samples):
        noise = Noise(draw.seed, sample)
        x = noise.start((len(cond), 1, *cond.shape[2:]), float(sigmas[0]), like=cond)
        x0 = sampler(model.denoiser, x, sigmas, cond, noise=noise)
        drawn.append(to_log(x0[:, 0].float().cpu()))
    return torch.stack(drawn)
