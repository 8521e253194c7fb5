"""Samples of one frame given its measurement: mean, spread, and how it came about."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from txmcorrect.config import RestoreSettings
from txmcorrect.diffusion.denoiser import Denoiser, Noise, Step, with_guidance, within
from txmcorrect.diffusion.guidance import GUIDANCE
from txmcorrect.diffusion.langevin import langevin, predictor_corrector
from txmcorrect.diffusion.samplers import SAMPLERS, Sampler
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.errors import TxmError
from txmcorrect.physics import Identity
from txmcorrect.restoring.prior import from_prior
from txmcorrect.restoring.problem import Problem
from txmcorrect.weights import Model

log = logging.getLogger(__name__)
STIRRED = ("ddpm", "langevin", "pc")  # samplers that add noise on their way
# Range of the noise variance over its mean up to which the prior's own chain, at the mean, does better
# than guidance by each pixel's noise (photons, objects of the benchmark family: by up to 6 dB).
UNEVEN = 5.0
ALL_SAMPLERS = {
    **SAMPLERS,
    "langevin": cast(Sampler, langevin),
    "pc": cast(Sampler, predictor_corrector),
}


@dataclass
class Recorder:
    """A denoiser that keeps what it answered, for `--record`."""

    denoise: Denoiser
    seen: list[tuple[float, Tensor]] = field(default_factory=list)
    active: bool = True

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        x0_hat = self.denoise(x, sigma, cond, step)
        if self.active:
            self.seen.append((float(sigma), x0_hat[0, 0].detach().cpu()))
        return x0_hat


@dataclass(frozen=True)
class Restored:
    """`mean` and, with two samples or more, `std` `(h, w)` in transmission; the trajectory."""

    mean: Tensor
    std: Tensor | None
    trajectory: list[tuple[float, Tensor]]


def restore_frame(
    settings: RestoreSettings,
    prior: Denoiser,
    model: Model,
    problem: Problem,
    tell: Callable[[], None] = lambda: None,
) -> Restored:
    """Draw `samples` of the scene behind a frame; `tell` is called after each."""
    if settings.sampler == "mean":
        return _posterior_mean(settings, prior, model, problem)
    name = settings.guidance
    like = problem.measurement.operator.A_adjoint(problem.measurement.y)
    if name == "auto" and (level := _white_level(settings, problem)) is not None:
        # The frame is itself what the prior's own chain passes through: its end is the posterior.
        free = Recorder(prior, active=settings.record)
        return _summarise(settings, free, model, like, problem.margin, tell, begin=level)
    if name == "auto":
        name = "dps" if settings.task == "inpaint" else "ddnm"
    guided = Recorder(GUIDANCE[name](prior, problem.measurement), active=settings.record)
    return _summarise(settings, guided, model, like, problem.margin, tell)


def _white_level(settings: RestoreSettings, problem: Problem) -> float | None:
    """Noise level of a whole frame whose noise is much the same everywhere, and nothing else is wrong.

    A deterministic sampler would draw the same sample again and again.
    """
    if settings.sampler not in STIRRED or not isinstance(problem.measurement.operator, Identity):
        return None
    s2 = torch.as_tensor(problem.measurement.s2)
    even = float(s2.amax() - s2.amin()) < UNEVEN * float(s2.mean())
    return float(s2.mean().sqrt()) if even else None


def denoise_frame(
    settings: RestoreSettings,
    prior: Denoiser,
    model: Model,
    problem: Problem,
    tell: Callable[[], None] = lambda: None,
) -> Restored:
    """Draw what a denoiser that sees the noisy frame says (source: CDM4MI); `mean` asks it once.

    Raises
    ------
    TxmError : pixels are missing, which such a network was never shown.
    """
    if not bool(torch.isfinite(problem.frame).all()):
        raise TxmError(
            "expected whole frames for a model of --task denoise that sees them, got some with missing "
            "pixels; use a prior (--model bundled)"
        )
    y = problem.measurement.y
    noise = torch.as_tensor(problem.measurement.s2).sqrt().to(y).expand_as(y)
    _warn_of_noise(float(noise.mean()) * float(model.spec.extra["scale"]), model)
    seen = torch.cat([y, noise], 1)
    # Noise only widens the range of a frame.
    guided = within(with_guidance(prior, settings.scale), float(y.amin()), float(y.amax()))

    def denoise(x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        return guided(x, sigma, seen if cond is None else cond, step)

    if settings.sampler != "mean" and model.spec.target != "mean":
        recorder = Recorder(denoise, active=settings.record)
        return _summarise(settings, recorder, model, y, problem.margin, tell)
    step, largest = Noise(settings.seed), model.spec.sigmas()[-1]
    x0_hat = denoise(step.start(tuple(y.shape), float(largest), y), largest, seen, step.step(0))
    return Restored(_cut(from_prior(x0_hat, model), problem.margin), None, [])


def _warn_of_noise(deviation: float, model: Model) -> None:
    """Say where a denoiser is asked for what it never learned."""
    low, high = model.spec.extra["noise"]
    if not low / 1.5 <= deviation <= high * 1.5:
        log.warning(
            "the noise of %.3g lies outside of %.3g-%.3g, which the model was trained on",
            deviation,
            low,
            high,
        )


def generate_frame(
    settings: RestoreSettings, prior: Denoiser, model: Model, number: int, device: torch.device
) -> Restored:
    """One frame from the prior alone."""
    free = Recorder(prior, active=settings.record)
    like = torch.empty(1, 1, settings.size, settings.size, device=device)
    chosen = settings.model_copy(update={"samples": 1})
    return _summarise(chosen, free, model, like, (0, 0), lambda: None, number)


def _summarise(
    settings: RestoreSettings,
    denoise: Recorder,
    model: Model,
    like: Tensor,
    margin: tuple[int, int],
    tell: Callable[[], None],
    first: int = 0,
    begin: float | None = None,
) -> Restored:
    """Running mean and spread over samples: only one is held at a time.

    Each starts from noise, or from `like` where that is an image at the noise level `begin`.
    """
    levels = _levels(model, settings.steps, begin)
    mean, scatter = torch.zeros_like(like), torch.zeros_like(like)
    for k in range(settings.samples):
        noise = Noise(settings.seed, first + k)
        x = noise.start(tuple(like.shape), float(levels[0]), like) if begin is None else like
        found = ALL_SAMPLERS[settings.sampler](denoise, x, levels, noise=noise)
        away = found - mean
        mean = mean + away / (k + 1)
        scatter = scatter + away * (found - mean)
        denoise.active = False  # the first sample is shown
        tell()
    std = None
    if settings.samples > 1:
        std = (scatter / (settings.samples - 1)).sqrt() * float(model.spec.extra["scale"])
    trajectory = [(s, from_prior(x, model)) for s, x in denoise.seen]
    return Restored(
        _cut(from_prior(mean, model), margin),
        None if std is None else _cut(std, margin),
        trajectory,
    )


def _levels(model: Model, steps: int, begin: float | None) -> Tensor:
    """Descending levels of a sample, from the largest or from `begin`, to 0."""
    known = model.spec.sigmas()
    if begin is None:
        return subsequence(known, steps)
    below = known[known < begin]
    first = torch.tensor([begin], dtype=torch.float64)
    if steps == 1 or not len(below):
        return torch.cat([first, torch.zeros(1, dtype=torch.float64)])
    return torch.cat([first, subsequence(below, min(steps - 1, len(below)))])


def _posterior_mean(
    settings: RestoreSettings, prior: Denoiser, model: Model, problem: Problem
) -> Restored:
    """Denoising is what the prior does: one evaluation at the noise's own level is the mean."""
    measurement = problem.measurement
    if settings.task != "denoise" or not bool(torch.isfinite(problem.frame).all()):
        raise TxmError("--sampler mean serves --task denoise of whole frames; use ddpm")
    sigma = torch.as_tensor(measurement.s2).mean().sqrt()
    x0_hat = prior(measurement.y, sigma, None, Noise(settings.seed).step(0))
    return Restored(_cut(from_prior(x0_hat, model), problem.margin), None, [])


def _cut(image: Tensor, margin: tuple[int, int]) -> Tensor:
    """`(1, 1, h, w)` to `(h, w)` on the CPU, without the margin."""
    (my, mx), (h, w) = margin, image.shape[-2:]
    return image[0, 0, my : h - my, mx : w - mx].cpu()
