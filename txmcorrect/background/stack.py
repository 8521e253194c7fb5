"""A window of frames and whatever references there are -> what the network sees (`stack`).

Everything is a natural logarithm on the working grid, at the exposure of the target frame. A
*base* answers without any network: the interpolated or stale reference, or else a quantile over
the window. The network generates what is missing from it, in units of a scale that the data
themselves suggest, so that untrained it says what the classical method says. Statistics over the
window are symmetric: the order of frames does not matter; masks say what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from txmcorrect.background.conditions import (
    LOG_CEILING,
    LOG_FLOOR,
    LOG_SCALE,
    Basis,
    coordinates,
    lit_mean,
    trust_in,
)

WINDOW = 9  # frames, the target included
MODES = 6  # of a bank
QUANTILE = 0.6  # over the window: samples absorb more often than they brighten
LEAST_SCALE, MOST_SCALE = 0.004, 0.3  # natural log
LEVEL_SHARE = 0.1  # of an unknown level in the generated residual: it is mostly guesswork
COARSE = 4  # bin of robust fits
ENOUGH = 1200  # pixels of a median; a window of 9 coarse frames (9 x 16 x 16) is taken whole
ROUNDS = 20  # of reweighting
RIDGE = (
    3e-6  # weights of modes are about 1, structure left unexplained about 1 % over tens of cells
)


@dataclass(frozen=True)
class Stack:
    """A batch of target frames with all that may help; absent parts are zero and masked.

    Attributes
    ----------
    frames : `(b, m, h, w)` counts above dark, the target first; present : `(b, m)` 1 or 0.
    offset : `(b, m)` how long after the target each was taken, the farthest at 1 or -1.
    exposure : `(b, m)` log of exposure x current relative to the target's; exposed : `(b,)` 1 where
    it was recorded.
    photons : `(b,)` detected photons per count and working pixel.
    before, after : `(b, h, w)` references in counts; has_before, has_after : `(b,)`. A single
    reference is `before`. absolute : `(b,)` 1 where references are at the target's exposure, from
    records on both sides. place : `(b,)` from 0 at `before` to 1 at `after`.
    bank : `(b, 1 + MODES, h, w)` mean log and modes of a bank; has_bank : `(b,)`.
    """

    frames: Tensor
    present: Tensor
    offset: Tensor
    exposure: Tensor
    exposed: Tensor
    photons: Tensor
    before: Tensor
    has_before: Tensor
    after: Tensor
    has_after: Tensor
    absolute: Tensor
    place: Tensor
    bank: Tensor
    has_bank: Tensor

    def to(self, device: torch.device | str) -> Stack:
        return Stack(*(getattr(self, f.name).to(device) for f in fields(self)))


def stack_condition(stack: Stack) -> tuple[Tensor, Basis]:
    """What the network sees, `(b, CHANNELS["stack"], h, w)`, and what it is relative to."""
    log_frames, level, lit = _log_frames(stack)
    target = log_frames[:, 0]
    low, middle, high, base = _quantiles(log_frames, stack.present, (0.15, 0.5, 0.85, QUANTILE))
    before = _log_reference(stack.before, stack.absolute, level, middle, lit)
    after = _log_reference(stack.after, stack.absolute, level, middle, lit)
    mean = stack.bank[:, 0] - level[:, None, None]
    mean = _matched(mean, stack.absolute, middle, lit)
    both = (stack.has_before * stack.has_after)[:, None, None]
    place = both * stack.place[:, None, None] + (stack.has_after - both[:, 0, 0])[:, None, None]
    reference = (1 - place) * before + place * after
    referenced = torch.maximum(stack.has_before, stack.has_after)
    known = torch.maximum(referenced, stack.has_bank)
    banked = stack.has_bank[:, None, None] > 0
    base = torch.where(referenced[:, None, None] > 0, reference, base)
    start = torch.where(banked, mean, base)
    modes = _modes(stack, reference - mean, referenced)
    settled = stack.absolute * known
    one = slice(0, 1)
    single = (log_frames[:, one], stack.present[:, one], stack.offset[:, one])
    window = (log_frames, stack.present, stack.offset)
    fits = [start + fit_drift(*w, start, modes, lit, settled) for w in (single, window)]
    base = torch.where(banked, fits[1], base)
    scale = _scale(known, both[:, 0, 0], base, middle, low, high, after - before, lit)

    def apart(image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Distance from the base in units of the scale, compressed where it is large."""
        distance = torch.asinh((image - base) / scale[:, None, None])
        return distance if mask is None else distance * mask[:, None, None]

    noise = torch.exp(-0.5 * (target + level[:, None, None]))
    noise = noise / stack.photons.sqrt()[:, None, None]
    images = [
        apart(target),
        apart(middle),
        apart(low),
        apart(high),
        apart(before, stack.has_before),
        apart(after, stack.has_after),
        apart(mean, stack.has_bank),
        apart(fits[0]),
        apart(fits[1]),
        (base - lit_mean(base, lit)).clamp(LOG_FLOOR, LOG_CEILING) / LOG_SCALE,
        torch.asinh(noise / scale[:, None, None]),
        lit,
    ]
    scalars = [
        stack.has_before,
        stack.has_after,
        stack.has_bank,
        stack.exposed,
        stack.absolute * known,
        place[:, 0, 0],
        stack.present.sum(1) / WINDOW,
        scale.log() + 3,
    ]
    flat = [s[:, None, None].expand_as(target) for s in scalars]
    cond = torch.cat([torch.stack(images + flat, 1), coordinates(target)], 1)
    share = torch.where(stack.absolute * known > 0, 1.0, LEVEL_SHARE)
    return cond, Basis(base + level[:, None, None], scale, share, lit, trust_in(base))


def bank_modes(bank: Tensor, gain: Tensor | None = None) -> Tensor:
    """Mean log and leading modes of references `(k, h, w)` in counts: `(1 + MODES, h, w)`.

    `gain` `(k,)`: log exposure of each relative to what the mean is to stand for; without it all
    are brought to their common median. Modes are zero on average, their size is the bank's own
    spread; what a small bank cannot span is zero.
    """
    log_bank = bank.clamp_min(1e-3).log()
    lit = (log_bank.mean(0) > log_bank.mean(0).median() + LOG_FLOOR / 2).to(bank)
    if gain is None:
        median = log_bank[:, lit > 0].median(1).values
        gain = median - median.median()
    log_bank = log_bank - gain[:, None, None]
    mean = log_bank.mean(0)
    change = (log_bank - mean) * lit
    change = (change - lit_mean(change, lit) * lit).flatten(1).double()
    _, vectors = torch.linalg.eigh(change @ change.T)
    modes = (vectors.T @ change).flip(0)[:MODES] / max(len(bank) - 1, 1) ** 0.5
    modes = modes[: max(len(bank) - 1, 0)]
    padded = torch.zeros(MODES, modes.shape[1], dtype=torch.float64)
    padded[: len(modes)] = modes
    return torch.cat([mean[None], padded.to(bank).reshape(MODES, *bank.shape[1:])])


def fit_drift(
    logs: Tensor,
    present: Tensor,
    offset: Tensor,
    start: Tensor,
    modes: Tensor,
    lit: Tensor,
    settled: Tensor,
) -> Tensor:
    """How far the target's background is from `start`, `(b, h, w)`, by a robust fit to the window.

    All frames `logs` `(b, m, h, w)` are `start` plus `modes` `(b, k, h, w)` whose weights change
    linearly in time, plus a level, which is left out of the answer where it is `settled` `(b,)`
    (most of it is the sample then). Weights of Cauchy's loss make the sample an outlier: it differs
    between frames while the background does not.
    """
    small = [
        F.avg_pool2d(x, COARSE, ceil_mode=True, count_include_pad=False).flatten(2)
        for x in (logs - start[:, None], modes, lit[:, None])
    ]
    y, basis, seen = small
    b, m, p = y.shape
    k = basis.shape[1]
    moving = offset[:, None, :, None] * basis[:, :, None]
    design = torch.cat(
        [
            basis[:, :, None].expand(b, k, m, p),
            moving,
            torch.ones(b, 1, m, p).to(y),
        ],
        1,
    ).flatten(2)
    ridge = torch.full((2 * k + 1,), RIDGE).to(y)
    ridge[-1] = 1e-9
    y = y.flatten(1)
    seen = ((seen > 0.5) * (present[:, :, None] > 0)).to(y).flatten(1)
    weight = seen
    for _ in range(ROUNDS):
        weighted = design * weight[:, None]
        count = weight.sum(1).clamp_min(1)[:, None, None]
        normal = weighted @ design.transpose(1, 2) / count + torch.diag(ridge)
        solution = torch.linalg.solve(normal, weighted @ y[:, :, None] / count)
        left = y - (solution.transpose(1, 2) @ design)[:, 0]
        width = 1.5 * _median(left.abs(), seen)[:, None] + 1e-3
        weight = seen / (1 + (left / width) ** 2)
    now = (solution[:, :k, :, None] * modes).sum(1)
    return now + solution[:, -1:] * (1 - settled)[:, None, None]


def _modes(stack: Stack, direction: Tensor, referenced: Tensor) -> Tensor:
    """Ways in which the background may change: those of the bank, or else broad cosines.

    With a bank and a reference, `direction` `(b, h, w)` from the one to the other is a mode too.
    """
    extra = direction * referenced[:, None, None]
    banked = torch.cat([stack.bank[:, 1:], extra[:, None]], 1)
    broad = _cosines(direction, banked.shape[1])
    return torch.where(stack.has_bank[:, None, None, None] > 0, banked, broad)


def _cosines(like: Tensor, count: int) -> Tensor:
    """The `count` broadest cosines over the frame, a few per cent high: `(b, count, h, w)`."""
    b, h, w = like.shape
    y, x = ((torch.arange(n) + 0.5) * (torch.pi / n) for n in (h, w))
    orders = [(i, j) for i in range(4) for j in range(4) if i + j > 0]
    orders.sort(key=lambda o: (o[0] ** 2 + o[1] ** 2, o))
    waves = [
        0.03 / (i * i + j * j) ** 0.5 * torch.outer(torch.cos(i * y), torch.cos(j * x))
        for i, j in orders[:count]
    ]
    return torch.stack(waves).to(like).expand(b, -1, -1, -1)


def _log_frames(stack: Stack) -> tuple[Tensor, Tensor, Tensor]:
    """Log counts `(b, m, h, w)` at the target's exposure, relative to a level `(b,)`; lit `(b, h, w)`."""
    frames, present = stack.frames, stack.present[:, :, None, None]
    mean = (frames * present).sum(1) / present.sum(1).clamp_min(1)
    bright = torch.quantile(mean.flatten(1), 0.95, 1)
    lit = (mean > 0.1 * bright[:, None, None]).to(mean)
    level = _median(mean.flatten(1), lit.flatten(1)).clamp_min(1e-3).log()
    low, high = torch.exp(level + LOG_FLOOR), torch.exp(level + LOG_CEILING)
    clipped = torch.minimum(torch.maximum(frames, _wide(low)), _wide(high))
    logs = clipped.log() - _wide(level)
    known = stack.exposed[:, None] > 0
    if bool(known.all()):
        return logs - stack.exposure[:, :, None, None], level, lit
    exposure = torch.where(known, stack.exposure, _levels(logs, lit))
    for _ in range(2):  # what most frames show, then how far each is above it
        typical = _quantiles(logs - exposure[:, :, None, None], stack.present, (0.5,))[0]
        guess = _levels(logs - typical[:, None], lit)
        exposure = torch.where(known, exposure, guess - guess[:, :1])
    return logs - exposure[:, :, None, None], level, lit


def _levels(logs: Tensor, lit: Tensor) -> Tensor:
    """Median over lit pixels of each frame relative to the first: `(b, m, h, w)` -> `(b, m)`."""
    b, m = logs.shape[:2]
    wide = lit[:, None].expand_as(logs).reshape(b * m, -1)
    medians = _median(logs.reshape(b * m, -1), wide).reshape(b, m)
    return medians - medians[:, :1]


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


def _log_reference(
    counts: Tensor, absolute: Tensor, level: Tensor, middle: Tensor, lit: Tensor
) -> Tensor:
    """Log of a reference relative to the level; its own level is kept only where it is known."""
    log_counts = (counts.clamp_min(1e-3).log() - level[:, None, None]).clamp(LOG_FLOOR - 1, 3.0)
    return _matched(log_counts, absolute, middle, lit)


def _matched(reference: Tensor, absolute: Tensor, middle: Tensor, lit: Tensor) -> Tensor:
    """Bring a reference of unknown exposure to the median level of the frames."""
    offset = _median((middle - reference).flatten(1), lit.flatten(1))
    return reference + torch.where(absolute > 0, 0, offset)[:, None, None]


def _scale(
    known: Tensor,
    both: Tensor,
    base: Tensor,
    middle: Tensor,
    low: Tensor,
    high: Tensor,
    change: Tensor,
    lit: Tensor,
) -> Tensor:
    """How far the truth may be from the base, `(b,)`, natural log.

    With references: how far frames depart from them, by the statistic that departs least; half of
    the change from before to after at least. Without: a guess that grows with the window's spread.
    """
    seen = lit.flatten(1)
    apart = [_spread((x - base).flatten(1), seen) for x in (middle, high)]
    referenced = torch.minimum(apart[0], apart[1])
    referenced = torch.maximum(referenced, 0.3 * both * _spread(change.flatten(1), seen))
    referenced = referenced * (1 - 0.4 * both)  # what lies between two is known better
    free = 0.05 + 0.4 * _median((high - low).flatten(1), seen)
    return torch.where(known > 0, referenced, free).clamp(LEAST_SCALE, MOST_SCALE)


def _spread(values: Tensor, seen: Tensor) -> Tensor:
    """Robust standard deviation over what is seen, `(b, p)` -> `(b,)`."""
    middle = _median(values, seen)[:, None]
    return 1.4826 * _median((values - middle).abs(), seen)


def _median(values: Tensor, seen: Tensor) -> Tensor:
    """Median over what is seen, `(b, p)` -> `(b,)`, from about `ENOUGH` of the pixels."""
    step = values.shape[1] // ENOUGH | 1  # odd, so that no column is preferred
    values, seen = values[:, ::step], seen[:, ::step]
    return torch.nanmedian(values.masked_fill(seen == 0, torch.nan), 1).values.nan_to_num()


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
