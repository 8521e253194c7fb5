"""What is known about a scan on the working grid, and the window of frames around each target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.scale import LEAST, Reference
from txmcorrect.background.stack import COARSE, MODES, WINDOW, Stack, bank_modes
from txmcorrect.background.survey import Survey

Image = NDArray[np.float32]
LONG_SCAN = 64  # frames; windows of longer scans skip frames, to see as much of the sample move


ONE_MOMENT = 0.003  # flats whose shapes differ by less (rms log) were taken at one moment


@dataclass(frozen=True)
class Known:
    """Frames and references of one scan on the working grid.

    Attributes
    ----------
    frames : `(n, h, w)` counts above dark; usable : `(n,)`.
    log_exposure : `(n,)` recorded exposure x current, None where it was not.
    photons : per count and working pixel.
    before, after : `(h, w)` counts of references at log exposure 0, or None; a single one is `before`.
    place : `(n,)` from 0 at `before` to 1 at `after`.
    bank : `(1 + MODES, h, w)` of `bank_modes`, its mean at log exposure 0, or None.
    absolute : exposures of frames and references are recorded.
    """

    frames: Image
    usable: NDArray[np.bool_]
    log_exposure: NDArray[np.float64] | None
    photons: float
    before: Image | None = None
    after: Image | None = None
    place: NDArray[np.float64] | None = None
    bank: Tensor | None = None
    absolute: bool = False


def known_scan(
    survey: Survey, references: tuple[Reference, ...], exposure: NDArray[np.float64] | None
) -> Known:
    """Find what the references of a scan are: before, after, or a bank of many moments.

    The scan's own references come last in `references` and count first. `exposure` `(n,)` log of
    exposure x current, None where it was not recorded.
    """
    n = len(survey.small)
    before = after = bank = place = None
    owner, bank_owner = None, None
    for reference in reversed(references):
        flats = _single_flats(reference, survey.factor)
        early = np.ones(len(flats), bool) if reference.before is None else reference.before <= n / 2
        if early.any() and not early.all() and owner is None:
            before, after, owner = flats[early].mean(0), flats[~early].mean(0), reference
            assert reference.before is not None
            start, end = (float(reference.before[chosen].mean()) for chosen in (early, ~early))
            place = np.clip((np.arange(n) + 0.5 - start) / (end - start), 0, 1)
        elif _is_bank(flats):
            bank, bank_owner = bank_modes(torch.from_numpy(flats)), reference
        elif owner is None:
            before, owner = flats.mean(0), reference
    first = owner or bank_owner
    absolute = first is not None and first.absolute and exposure is not None
    if bank is not None and not (absolute and bank_owner is not None and bank_owner.absolute):
        bank = _level_with(bank, before)
    return Known(
        frames=survey.small,
        usable=survey.usable,
        log_exposure=first.log_exposure if absolute and first is not None else exposure,
        photons=survey.photons * survey.factor**2,
        before=before,
        after=after,
        place=place,
        bank=bank,
        absolute=absolute,
    )


def _single_flats(reference: Reference, factor: int) -> Image:
    """Flats of a reference one by one on the working grid, `(k, h, w)`."""
    if reference.flats is not None:
        return np.maximum(reference.flats, LEAST)
    small = bin_mean(torch.from_numpy(reference.counts)[None], factor).numpy()
    return np.maximum(small, LEAST)


def _is_bank(flats: Image) -> bool:
    """Whether flats differ by more than noise: they saw the beam at different times."""
    if len(flats) < 3:
        return False
    coarse = bin_mean(torch.from_numpy(flats), COARSE).numpy()
    lit = coarse.mean(0) > 0.1 * np.quantile(coarse.mean(0), 0.95)
    logs = np.log(coarse[:, lit])
    logs = logs - logs.mean(1, keepdims=True)
    return bool((logs - logs.mean(0)).std() > ONE_MOMENT)


def _level_with(bank: Tensor, reference: Image | None) -> Tensor:
    """A bank whose mean has the median level of `reference`."""
    if reference is None:
        return bank
    offset = (torch.from_numpy(reference).log() - bank[0]).median()
    return torch.cat([bank[:1] + offset, bank[1:]])


def window_of(target: int, usable: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The target first, then up to WINDOW - 1 usable frames around it, by their own order."""
    index = np.flatnonzero(usable)
    stride = max(1, len(index) // LONG_SCAN)
    at = int(np.searchsorted(index, target))
    places = np.arange(at % stride, len(index), stride)
    nearest = places[np.argsort(np.abs(places - at), kind="stable")]
    others = [int(index[p]) for p in nearest if index[p] != target]
    return np.array([target, *others[: WINDOW - 1]], np.intp)


def make_stack(known: Known, targets: NDArray[np.intp]) -> Stack:
    """Stack of one scan's `targets` `(b,)`."""
    b, (h, w) = len(targets), known.frames.shape[1:]
    frames = np.ones((b, WINDOW, h, w), np.float32)
    present = np.zeros((b, WINDOW), np.float32)
    exposure = np.zeros((b, WINDOW), np.float32)
    offset = np.zeros((b, WINDOW), np.float32)
    gain = np.zeros(b, np.float32)
    for k, target in enumerate(targets):
        chosen = window_of(int(target), known.usable)
        frames[k, : len(chosen)] = known.frames[chosen]
        present[k, : len(chosen)] = 1
        away = chosen - target
        offset[k, : len(chosen)] = away / max(np.abs(away).max(), 1)
        if known.log_exposure is not None:
            exposure[k, : len(chosen)] = known.log_exposure[chosen] - known.log_exposure[target]
            gain[k] = known.log_exposure[target] if known.absolute else 0
    shift = torch.from_numpy(gain)[:, None, None]

    def flag(value: object) -> Tensor:
        return torch.full((b,), float(bool(value)))

    def reference(counts: Image | None) -> Tensor:
        if counts is None:
            return torch.zeros(b, h, w)
        return torch.from_numpy(np.maximum(counts, 0)).expand(b, h, w) * shift.exp()

    bank = torch.zeros(b, 1 + MODES, h, w)
    if known.bank is not None:
        bank = known.bank.expand(b, -1, -1, -1).clone()
        bank[:, 0] += shift
    place = np.zeros(b) if known.place is None else known.place[targets]
    return Stack(
        frames=torch.from_numpy(frames),
        present=torch.from_numpy(present),
        offset=torch.from_numpy(offset),
        exposure=torch.from_numpy(exposure),
        exposed=flag(known.log_exposure is not None),
        photons=torch.full((b,), known.photons),
        before=reference(known.before),
        has_before=flag(known.before is not None),
        after=reference(known.after),
        has_after=flag(known.after is not None),
        absolute=flag(known.absolute),
        place=torch.from_numpy(place.astype(np.float32)),
        bank=bank,
        has_bank=flag(known.bank is not None),
    )


def joined(stacks: list[Stack]) -> Stack:
    """Several stacks of one shape as one batch."""
    parts = zip(*(vars(s).values() for s in stacks), strict=True)
    return Stack(*(torch.cat(part) for part in parts))
