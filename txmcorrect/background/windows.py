"""The window of frames around each target, relative to what a fit without a network says."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txmcorrect.background.base import Base
from txmcorrect.background.known import Known
from txmcorrect.background.light import log_counts
from txmcorrect.background.stack import WINDOW, Stack

LONG_SCAN = 64  # frames; windows of longer scans skip frames, to see as much of the sample move


def window_of(target: int, usable: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The target first, then up to WINDOW - 1 usable frames around it, by their own order."""
    index = np.flatnonzero(usable)
    stride = max(1, len(index) // LONG_SCAN)
    at = int(np.searchsorted(index, target))
    places = np.arange(at % stride, len(index), stride)
    nearest = places[np.argsort(np.abs(places - at), kind="stable")]
    others = [int(index[p]) for p in nearest if index[p] != target]
    return np.array([target, *others[: WINDOW - 1]], np.intp)


def make_stack(known: Known, base: Base, targets: NDArray[np.intp]) -> Stack:
    """Stack of one scan's `targets` `(b,)`, relative to its `base`."""
    b, (h, w) = len(targets), known.frames.shape[1:]
    frames = np.zeros((b, WINDOW, h, w), np.float32)
    present = np.zeros((b, WINDOW), np.float32)
    for k, target in enumerate(targets):
        chosen = window_of(int(target), known.usable)
        frames[k, : len(chosen)] = log_counts(known.frames[chosen], base.lit) - base.fields(chosen)
        present[k, : len(chosen)] = 1
    fields = base.fields(targets)
    gain = np.zeros(b) if known.log_exposure is None else known.log_exposure[targets]

    def flag(value: object) -> Tensor:
        return torch.full((b,), float(bool(value)))

    def reference(log_flat: NDArray[np.float32] | None) -> Tensor:
        """Over the base; brought to its level where exposures are not recorded on both sides."""
        if log_flat is None:
            return torch.zeros(b, h, w)
        apart = log_flat - fields + gain.astype(np.float32)[:, None, None]
        if not known.absolute and base.lit.any():
            apart = apart - np.median(apart[:, base.lit], 1)[:, None, None]
        return torch.from_numpy(apart)

    before, after = (
        None if flat is None else log_counts(flat, base.lit) for flat in (known.before, known.after)
    )
    mean = None if known.bank is None else log_counts(known.bank, base.lit).mean(0)
    place = np.zeros(b) if known.place is None else known.place[targets]
    return Stack(
        frames=torch.from_numpy(frames),
        present=torch.from_numpy(present),
        count=torch.full((b,), float(known.usable.sum())),
        base=torch.from_numpy(fields),
        doubt=torch.from_numpy(base.std(targets)),
        lit=torch.from_numpy(base.lit.astype(np.float32)).expand(b, h, w),
        photons=torch.full((b,), known.photons),
        before=reference(before),
        has_before=flag(before is not None),
        after=reference(after),
        has_after=flag(after is not None),
        mean=reference(mean),
        has_bank=flag(mean is not None),
        exposed=flag(known.log_exposure is not None),
        absolute=flag(known.absolute),
        place=torch.from_numpy(place.astype(np.float32)),
    )


def joined(stacks: list[Stack]) -> Stack:
    """Several stacks of one shape as one batch."""
    parts = zip(*(vars(s).values() for s in stacks), strict=True)
    return Stack(*(torch.cat(part) for part in parts))
