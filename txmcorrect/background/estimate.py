"""Log backgrounds at key frames: samples of the model's posterior given frames and references."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.base import Base, find_base
from txmcorrect.background.conditions import RIM, lit_mean, pair_condition
from txmcorrect.background.known import Known, kind_of, situation_of
from txmcorrect.background.linear_model.fit import BackgroundFit, fit_referenced
from txmcorrect.background.quality import MISTAKABLE
from txmcorrect.background.stack import stack_condition
from txmcorrect.background.thumbnails import Small
from txmcorrect.background.windows import make_stack
from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.samplers import SAMPLERS
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.errors import ModelError
from txmcorrect.weights import Model

ToLog = Callable[[torch.Tensor], torch.Tensor]
"""What the network generated `(b, h, w)` -> natural logarithm of counts."""
Look = Callable[[NDArray[np.intp]], tuple[torch.Tensor, ToLog]]
"""Frame numbers `(b,)` -> what the network sees of them, and how to read its answer."""


# Networks err two or three times as much on beams unlike those of their training, where a fit learns each
# anew: seen on scans for choosing settings.
FOREIGN = 2.0


@dataclass(frozen=True)
class Conditions:
    """All `looks` at a frame: with each of its partners, or a single one at the window around it.

    `base`: what is known without the network, if anything is; network and base are then weighed by
    what they claim to know. `spread`: factor on the deviation of samples; it and the base's doubt were
    measured after the training (`training.calibrate`), for scans in that `situation`. `notes`: doubts about all
    frames; `remembered`: as in `Known`.
    """

    looks: tuple[Look, ...]
    base: Base | BackgroundFit | None = None
    spread: float = 1.0
    situation: str = ""
    notes: tuple[str, ...] = ()
    remembered: float = 0.0


LONG_SCAN = 64  # frames; longer scans pair frames further apart, to see more of the sample move
BATCH = 8  # fixed and padded: convolutions give other last bits at other batch sizes


@dataclass(frozen=True)
class Draw:
    """How samples are drawn: sampler, evaluations a sample, samples, seed, partners of a frame."""

    sampler: str = "ddim"
    steps: int = 4
    samples: int = 4
    seed: int = 0
    partners: int = 4


def partners(frame: int, interval: int, usable: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """The `count` usable frames nearest to `interval` away, the later first; again from the start
    where there are fewer. Long scans count the interval in 64ths of their length.
    """
    index = np.flatnonzero(usable)
    interval *= max(1, len(index) // LONG_SCAN)
    index = index[index != frame]
    order = np.lexsort((index < frame, np.abs(np.abs(index - frame) - interval)))
    return np.resize(index[order[:count]], count)


def pair_conditions(
    small: Small,
    usable: NDArray[np.bool_],
    interval: int,
    photons: float,
    count: int,
) -> Conditions:
    """Each frame with `count` partners; `small` `(n, h, w)` counts above dark on the working grid."""

    def look_with(rank: int) -> Look:
        def look(targets: NDArray[np.intp]) -> tuple[torch.Tensor, ToLog]:
            others = [int(partners(int(i), interval, usable, count)[rank]) for i in targets]
            first, second = torch.from_numpy(small[targets]), torch.from_numpy(small[others])
            cond, basis = pair_condition(first, second, torch.full((len(targets),), photons))
            return cond, basis.log_counts

        return look

    return Conditions(tuple(look_with(rank) for rank in range(count)))


def stack_conditions(known: Known, extra: Mapping[str, Any] | None = None) -> Conditions:
    """Each frame with the window around it and the scan's references.

    `extra` of the model's specification holds its calibration, where it has one.
    """
    if known.flats is not None:
        return Conditions((), fit_referenced(known))
    base = find_base(known)
    situation = situation_of(known, base.fit.told)
    doubt, spread = (
        measured((extra or {}).get(name, {}), situation, kind_of(known))
        for name in ("doubt", "spread")
    )

    def look(targets: NDArray[np.intp]) -> tuple[torch.Tensor, ToLog]:
        cond, basis = stack_condition(make_stack(known, base, targets))
        return cond, basis.log_counts

    notes = (MISTAKABLE,) if base.mistakable else ()
    standing = known.standing
    if standing is not None:  # of its shape: levels are found by themselves
        standing = standing - standing[:, base.lit].mean(1)[:, None, None]
    # The network knows nothing of either: it answers in units of what the fit itself may be off.
    claimed = replace(base, doubt=doubt, open=standing)
    return Conditions((look,), claimed, spread, situation, notes, known.remembered)


def measured(table: Mapping[str, Mapping[str, float]], situation: str, kind: str) -> float:
    """A factor of a calibration, 1 where there is none. Old ones, and those on few scans, don't know of samples
    that may cover all.
    """
    factor = table.get(situation, {}).get(kind)
    if factor is None and situation == "covering":
        return measured(table, "turning", kind)
    return 1.0 if factor is None else factor


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
    mean, std : `(k, h, w)` natural logarithm of counts; std is that of the shape, brightness left
    out. A single sample with the first partner is returned as it is, with std 0, as source 0 does.
    Several give the spread; the mean is then the posterior's own, one more evaluation at the largest
    sigma, where x0_hat depends on the condition alone, and of several partners the median: what
    leaks from one of them is not in the others. Without a network both are the fit's.
    """
    if model.is_fit_alone or isinstance(conditions.base, BackgroundFit):
        assert conditions.base is not None
        return conditions.base.fields(targets), conditions.base.std(targets)
    k = len(targets)
    mean_draw = replace(draw, sampler="ddim", steps=1, samples=1)
    means, stds = [], []
    for batch, keep in batches_of(targets):
        samples = draw_samples(model, conditions.looks, batch, draw)
        mean, std = samples[0], torch.zeros_like(samples[0])
        if draw.samples > 1:
            answers = [
                draw_samples(model, (look,), batch, mean_draw)[0] for look in conditions.looks
            ]
            mean = torch.stack(answers).quantile(0.5, 0)
            spread = shape_spread(samples, mean)
            mean, std = combined(conditions, batch, mean, spread)
        means.append(mean[:keep])
        stds.append(std[:keep])
        progress(sum(map(len, means)), k)
    return torch.cat(means).numpy(), torch.cat(stds).numpy()


def combined(
    conditions: Conditions, targets: NDArray[np.intp], mean: torch.Tensor, spread: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Network and base together, for frames `(b,)`: mean and deviation, `(b, h, w)`.

    `mean`, `spread` `(b, h, w)`: what the network says, and how its samples deviate.
    """
    if conditions.base is None:
        return mean, conditions.spread * spread
    fields = torch.from_numpy(conditions.base.fields(targets))
    share, doubt, std = _shared(conditions, conditions.base, targets, mean, spread)
    mixed = ((1 - share) * doubt.square() + share * std.square()).sqrt()
    return fields + share * (mean - fields), mixed


def _shared(
    conditions: Conditions,
    base: Base | BackgroundFit,
    targets: NDArray[np.intp],
    mean: torch.Tensor,
    spread: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The network's share `(b, 1, 1)`, and how far off base and network may be, `(b, h, w)` each."""
    doubt = torch.from_numpy(base.std(targets))
    std = FOREIGN * conditions.spread * spread
    return network_share(doubt, std, _lit(mean)), doubt, std


def network_share(doubt: torch.Tensor, std: torch.Tensor, lit: torch.Tensor) -> torch.Tensor:
    """The network's part in the mean of frames, `(b, 1, 1)`, by precision; all images are `(b, h, w)`.

    All where the base is in `doubt`, nothing where the base is surer than the network, whose deviation
    may be `std`, could be. What is left is uncertain as if the one were right in that share of cases, and
    else the other: neither knows of the other's mistakes.
    """
    own, other = (lit_mean(x.square(), lit) for x in (doubt, std))
    return own / (own + other + 1e-12)


def deviations(
    conditions: Conditions, targets: NDArray[np.intp], samples: torch.Tensor, seed: int
) -> torch.Tensor:
    """Draws `(s, b, h, w)` of what `combined` states the deviation of, from the network's `samples`.

    Levels do not count. Draws of one number belong together, whichever frames are asked.
    """
    middle = samples.mean(0)
    own = conditions.spread * (samples - middle)
    if conditions.base is None:
        return own
    spread = shape_spread(samples, middle)
    share = _shared(conditions, conditions.base, targets, middle, spread)[0]
    fits = _fit_deviations(conditions.base, targets, len(samples), seed)
    return (1 - share).sqrt() * fits + share.sqrt() * FOREIGN * own


def _fit_deviations(
    base: Base | BackgroundFit, targets: NDArray[np.intp], count: int, seed: int
) -> torch.Tensor:
    """Draws `(count, b, h, w)` of what `base.std` is the deviation of."""
    draws = (base.deviation(targets, np.random.default_rng([seed, k])) for k in range(count))
    return torch.stack([torch.from_numpy(draw) for draw in draws])


def draw_deviations(
    model: Model, conditions: Conditions, targets: NDArray[np.intp], draw: Draw
) -> torch.Tensor:
    """Draws `(s, b, h, w)` of what the deviation of `generate` describes."""
    if model.is_fit_alone or isinstance(conditions.base, BackgroundFit):
        assert conditions.base is not None
        return _fit_deviations(conditions.base, targets, draw.samples, draw.seed)
    samples = draw_samples(model, conditions.looks, targets, draw)
    return deviations(conditions, targets, samples, draw.seed)


def shape_spread(samples: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Spread `(b, h, w)` of samples `(s, b, h, w)` whose brightness is made alike: that is found later."""
    lit = _lit(mean)
    shapes = samples - torch.stack([lit_mean(sample, lit) for sample in samples])
    return shapes.std(0, correction=min(1, len(samples) - 1))


def _lit(log_background: torch.Tensor) -> torch.Tensor:
    """1 where frames `(b, h, w)` have light, else 0."""
    middle = log_background.flatten(1).median(1).values[:, None, None]
    return (log_background > middle + math.log(RIM)).to(log_background)


def batches_of(targets: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Batches of equal size and how many of each count.

    The last is padded, so that no result depends on how many frames came before.
    """
    for start in range(0, len(targets), BATCH):
        places = np.minimum(np.arange(start, start + BATCH), len(targets) - 1)
        yield targets[places], min(BATCH, len(targets) - start)


@torch.inference_mode()
def draw_samples(
    model: Model,
    looks: tuple[Look, ...],
    targets: NDArray[np.intp],
    draw: Draw,
) -> torch.Tensor:
    """Samples `(s, b, h, w)` of the log background of frames `targets` `(b,)`, on the CPU.

    Partners take turns, so that the spread holds what depends on them.

    Raises
    ------
    ModelError : the model was trained for another version of the condition.
    """
    sigmas = subsequence(model.spec.sigmas(), draw.steps)
    sampler = SAMPLERS[draw.sampler]
    if draw.sampler == "ddim" and draw.samples > 1:
        sampler = partial(sampler, eta=1.0)  # type: ignore[call-arg]
    seen = [look(targets) for look in looks[: draw.samples]]
    drawn = []
    for sample in range(draw.samples):
        cond, to_log = seen[sample % len(seen)]
        cond = _fitting(cond, model)
        noise = Noise(draw.seed, sample)
        x = noise.start((len(cond), 1, *cond.shape[2:]), float(sigmas[0]), like=cond)
        x0 = sampler(model.denoiser, x, sigmas, cond, noise=noise)
        drawn.append(to_log(x0[:, 0].float().cpu()))
    return torch.stack(drawn)


def _fitting(cond: torch.Tensor, model: Model) -> torch.Tensor:
    """The condition on the model's device, where they go together at all."""
    wanted = model.spec.cond_channels
    if cond.shape[1] != wanted:
        raise ModelError(
            f"the model sees {wanted} channels, but condition {model.spec.condition} has "
            f"{cond.shape[1]} in this version: train it again, or use --model bundled"
        )
    return cond.to(next(model.denoiser.parameters()).device)
