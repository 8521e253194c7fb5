"""A window of frames, references and a fit to them -> what the network sees (`stack`).

Everything is a natural logarithm on the working grid, relative to the *base*: the background that a
robust fit to the whole scan finds without any network (`base`). Seen from there the background of
every frame is nearly nothing, whatever drifted, and what frames have in common is what the fit
missed, or a sample that stands still. The network generates it in units of a scale that follows
from how sure the fit is. Statistics over the window are symmetric; masks say what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from txmcorrect.background.conditions import (
    LOG_CEILING,
    LOG_FLOOR,
    LOG_SCALE,
    Basis,
    coordinates,
    lit_mean,
    trust_in,
)

WINDOW = 12  # frames, the target included
QUANTILES = (0.15, 0.5, 0.85)  # over the window
LEAST_SCALE, MOST_SCALE = 0.003, 0.3  # natural log
LEVEL_SHARE, LEVEL_SCALE = (
    0.1,
    0.3,
)  # an unknown level is guesswork: a small part of what is generated
ENOUGH = 1200  # pixels of a median
REFERENCES = ("none", "one", "before-after", "bank")  # by what the fit rests on
MANY = 14.0  # frames; training sees no more


@dataclass(frozen=True)
class Stack:
    """A batch of target frames with all that may help; absent parts are zero and masked.

    Attributes
    ----------
    frames : `(b, m, h, w)` log of each frame over its own base, the target first; present : `(b, m)`
    1 or 0; count : `(b,)` usable frames of the whole scan.
    base : `(b, h, w)` log counts of the target's base; doubt : `(b, h, w)` standard deviation of its
    shape; lit : `(b, h, w)` 1 or 0. photons : `(b,)` detected photons per count and working pixel.
    before, after, mean : `(b, h, w)` log of references, and of the mean of a bank, over the target's
    base; has_before, has_after, has_bank : `(b,)`. A single reference is `before`.
    exposed : `(b,)` 1 where exposure and current of frames were recorded; absolute : where those of
    references were as well. place : `(b,)` from 0 at `before` to 1 at `after`.
    """

    frames: Tensor
    present: Tensor
    count: Tensor
    base: Tensor
    doubt: Tensor
    lit: Tensor
    photons: Tensor
    before: Tensor
    has_before: Tensor
    after: Tensor
    has_after: Tensor
    mean: Tensor
    has_bank: Tensor
    exposed: Tensor
    absolute: Tensor
    place: Tensor

    def to(self, device: torch.device | str) -> Stack:
        return Stack(*(getattr(self, f.name).to(device) for f in fields(self)))


def stack_condition(stack: Stack) -> tuple[Tensor, Basis]:
    """What the network sees, `(b, CHANNELS["stack"], h, w)`, and what it is relative to."""
    target, lit, base = stack.frames[:, 0], stack.lit, stack.base
    low, middle, high = _quantiles(stack.frames, stack.present, QUANTILES)
    scale = _scale(stack, high - low)
    wide = scale[:, None, None]
    known = torch.maximum(torch.maximum(stack.has_before, stack.has_after), stack.has_bank)
    settled = stack.absolute * known

    def in_scale(image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Distance from the base in units of the scale, compressed where it is large."""
        distance = torch.asinh(image / wide)
        return distance if mask is None else distance * mask[:, None, None]

    noise = torch.exp(-0.5 * (target + base)) / stack.photons.sqrt()[:, None, None]
    images = [
        in_scale(target),
        in_scale(middle),
        in_scale(low),
        in_scale(high),
        in_scale(middle - _level(middle, lit)),
        in_scale(stack.before, stack.has_before),
        in_scale(stack.after, stack.has_after),
        in_scale(stack.mean, stack.has_bank),
        in_scale(stack.doubt),
        (base - lit_mean(base, lit)).clamp(LOG_FLOOR, LOG_CEILING) / LOG_SCALE,
        in_scale(noise),
        lit,
    ]
    scalars = [
        stack.has_before,
        stack.has_after,
        stack.has_bank,
        stack.exposed,
        settled,
        stack.place,
        stack.count.clamp(1, MANY) / MANY,
        scale.log() + 4,
    ]
    flat = [s[:, None, None].expand_as(target) for s in scalars]
    cond = torch.cat([torch.stack(images + flat, 1), coordinates(target)], 1)
    share = torch.where(settled > 0, 1.0, (scale / LEVEL_SCALE).clamp_max(LEVEL_SHARE))
    return cond, Basis(base, scale, share, lit, trust_in(base - _level(base, lit)))


def _level(image: Tensor, lit: Tensor) -> Tensor:
    return _median(image.flatten(1), lit.flatten(1))[:, None, None]


def _quantiles(logs: Tensor, present: Tensor, wanted: tuple[float, ...]) -> list[Tensor]:
    """Quantiles over the frames that are present, `(b, m, h, w)` -> `(b, h, w)` each."""
    hidden = logs.masked_fill(present[:, :, None, None] == 0, torch.inf)
    ordered = hidden.sort(1).values
    count = present.sum(1)
    found = []
    for q in wanted:
        rank = q * (count - 1)
        below = rank.floor()
        part = (rank - below)[:, None, None]
        index = torch.stack([below, torch.minimum(below + 1, count - 1)], 1).long()
        pick = index[:, :, None, None].expand(-1, -1, *logs.shape[2:])
        lower, upper = ordered.gather(1, pick).unbind(1)
        found.append((1 - part) * lower + part * upper)
    return found


def _scale(stack: Stack, spread: Tensor) -> Tensor:
    """How far the truth may be from the base, `(b,)`, natural log.

    What the fit says of itself, which does not know its own mistakes, and a share of the sample's
    `spread` over frames, in which they hide: the less, the more references there are. About the
    error's median over simulated scans of the training family.
    """
    doubt = lit_mean(stack.doubt**2, stack.lit)[:, 0, 0].sqrt()
    hidden = _median(spread.flatten(1), stack.lit.flatten(1))
    referenced = torch.maximum(stack.has_before, stack.has_after)
    several = torch.maximum(stack.has_bank, stack.has_before * stack.has_after)
    share = torch.where(several > 0, 0.05, torch.where(referenced > 0, 0.12, 0.3))
    return torch.hypot(2 * doubt, share * hidden).clamp(LEAST_SCALE, MOST_SCALE)


def _median(values: Tensor, seen: Tensor) -> Tensor:
    """Median over what is seen, `(b, p)` -> `(b,)`, from about `ENOUGH` of the pixels."""
    step = values.shape[1] // ENOUGH | 1  # odd, so that no column is preferred
    values, seen = values[:, ::step], seen[:, ::step]
    return torch.nanmedian(values.masked_fill(seen == 0, torch.nan), 1).values.nan_to_num()
