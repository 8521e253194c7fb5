"""What is known about a scan on the working grid, and the window of frames around each target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txmcorrect.background.stack import MODES, WINDOW, Stack

Image = NDArray[np.float32]
LONG_SCAN = 64  # frames; windows of longer scans skip frames, to see as much of the sample move


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
    gain = np.zeros(b, np.float32)
    for k, target in enumerate(targets):
        chosen = window_of(int(target), known.usable)
        frames[k, : len(chosen)] = known.frames[chosen]
        present[k, : len(chosen)] = 1
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
