"""What is known about a scan on the working grid: its frames, and references in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.linear_model.components import SingleFlats
from txmcorrect.background.overlaps import Shared
from txmcorrect.background.scale import LEAST, Reference
from txmcorrect.background.survey import Survey
from txmcorrect.background.thumbnails import Small

Image = NDArray[np.float32]
COARSE = 4  # bin in which flats are compared
# What the sample does, by what is known of it; one that turns leaves cells free for certain, may cover all of
# them, or had something that stood in all frames and was found.
SITUATIONS = ("passing", "turning", "covering", "standing", "overlapping")
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
    bank : `(k, h, w)` counts of references of other moments, at log exposure 0, or None.
    absolute : exposures of frames and references are recorded.
    overlaps : of a mosaic's frames, where it is known where they lie.
    turning : the sample turns, so that parts of it may never leave their place. standing : what stands of
    it was found, and is no longer in `frames`: `(k, h, w)` natural log, what that may be off by, independent
    images of deviation 1.
    flats : all of them one by one, at the frames' usual exposure; time : `(n,)` of frames in scan
    durations; record : `(n,)` log of recorded exposure that counts; exposed : exposures of both sides are
    recorded; current : what is said of recorded currents.
    remembered : likeness of the scan's pattern and that of a bank which the model remembers of its
    training; 0 where the bank is the scan's own, or none.
    """

    frames: Small
    usable: NDArray[np.bool_]
    log_exposure: NDArray[np.float64] | None
    photons: float
    before: Image | None = None
    after: Image | None = None
    place: NDArray[np.float64] | None = None
    bank: Image | None = None
    absolute: bool = False
    overlaps: tuple[Shared, ...] = ()
    turning: bool = False
    standing: Image | None = None
    remembered: float = 0.0
    flats: SingleFlats | None = None
    time: NDArray[np.float64] | None = None
    record: NDArray[np.float64] | None = None
    exposed: bool = False
    current: str = ""


def known_scan(
    survey: Survey,
    references: tuple[Reference, ...],
    exposure: NDArray[np.float64] | None = None,
    overlaps: tuple[Shared, ...] = (),
    turning: bool = False,
    standing: Image | None = None,
    time_s: NDArray[np.float64] | None = None,
) -> Known:
    """Find what the references of a scan are: before, after, or a bank of many moments.

    The scan's own references come last in `references` and count first. `exposure` `(n,)` log of
    exposure x current, None where it was not recorded. `overlaps` :
    of a mosaic. `turning` : the sample turns; `standing` : as in `Known`. `time_s` `(n,)` POSIX seconds of
    the frames.
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
        elif is_bank(flats):
            bank, bank_owner = flats, reference
        elif owner is None:
            before, owner = flats.mean(0), reference
    first = owner or bank_owner
    absolute = first is not None and first.absolute and exposure is not None
    if bank is not None and not (absolute and bank_owner is not None and bank_owner.absolute):
        bank = level_with(bank, before)
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
        overlaps=overlaps,
        turning=turning,
        standing=standing,
        flats=single_flats(references, survey, time_s),
        time=frame_times(n, time_s),
        record=_record(references, exposure, n),
        exposed=all(r.exposed for r in references),
        current="; ".join(dict.fromkeys(r.current for r in references if r.current)),
    )


FAR_SCANS = 3.0  # scan durations; flats further away are draws of another day
# scan durations: how long before or after a scan its flats are taken, where no times are recorded
OUTSIDE = 0.02


def frame_times(n: int, time_s: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Times `(n,)` of frames in scan durations, by their order where none are recorded."""
    if time_s is None or not np.isfinite(time_s).all() or np.ptp(time_s) <= 0:
        return (np.arange(n) + 0.5) / n
    return np.asarray((time_s - time_s.min()) / np.ptp(time_s), np.float64)


def single_flats(
    references: Sequence[Reference], survey: Survey, time_s: NDArray[np.float64] | None = None
) -> SingleFlats | None:
    """All flats of all references one by one; None where there are none."""
    if not references:
        return None
    n, cells = len(survey.small), survey.factor**2
    counts, times, photons = [], [], []
    for reference in references:
        flats = _single_flats(reference, survey.factor)
        m = len(flats)
        counts.append(flats)
        times.append(_flat_times(reference, m, n, time_s))
        each = survey.photons if reference.photons is None else reference.photons / m
        photons.append(np.full(m, each * cells))
    time = np.concatenate(times)
    return SingleFlats(np.concatenate(counts), time, np.concatenate(photons))


def _flat_times(
    reference: Reference, m: int, n: int, time_s: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """When flats were taken `(m,)`, in scan durations; NaN where that is unknown or long ago."""
    unknown = np.full(m, np.nan)
    if reference.time_s is not None and time_s is not None and np.ptp(time_s) > 0:
        found = (reference.time_s - time_s.min()) / np.ptp(time_s)
    elif (
        reference.before is not None and 0 < reference.before.mean() < n
    ):  # one side alone: of unknown age
        found = np.interp(reference.before / n, [0, 1], [0, 1])
        found = np.where(found <= 0, -OUTSIDE, np.where(found >= 1, 1 + OUTSIDE, found))
    else:
        return unknown
    if len(found) != m:
        return unknown
    return np.where(np.abs(found - 0.5) < FAR_SCANS, found, np.nan)


def _record(
    references: Sequence[Reference], exposure: NDArray[np.float64] | None, n: int
) -> NDArray[np.float64]:
    """Log of the recorded exposure of frames `(n,)`: as the references prove it, else as it is; 0: none."""
    for reference in reversed(references):
        if reference.exposed or reference.current:
            return np.asarray(reference.log_exposure, np.float64)
    return np.zeros(n) if exposure is None else exposure


def _single_flats(reference: Reference, factor: int) -> Image:
    """Flats of a reference one by one on the working grid, `(k, h, w)`."""
    if reference.flats is not None:
        return np.maximum(reference.flats, LEAST)
    small = bin_mean(torch.from_numpy(reference.counts)[None], factor).numpy()
    return np.maximum(small, LEAST)


def is_bank(flats: Image) -> bool:
    """Whether flats differ by more than noise: they saw the beam at different times."""
    if len(flats) < 3:
        return False
    coarse = bin_mean(torch.from_numpy(flats), COARSE).numpy()
    lit = coarse.mean(0) > 0.1 * np.quantile(coarse.mean(0), 0.95)
    logs = np.log(coarse[:, lit])
    logs = logs - logs.mean(1, keepdims=True)
    return bool((logs - logs.mean(0)).std() > ONE_MOMENT)


def level_with(bank: Image, reference: Image | None) -> Image:
    """A bank whose members have the median level of `reference`, or of each other."""
    logs = np.log(np.maximum(bank, LEAST))
    level = np.median(logs, axis=(1, 2), keepdims=True)
    wanted = (
        np.median(level) if reference is None else np.median(np.log(np.maximum(reference, LEAST)))
    )
    return np.exp(logs - level + wanted).astype(np.float32)


def kind_of(known: Known) -> str:
    """Which of `stack.REFERENCES` a scan has: by what its fit rests on."""
    if known.bank is not None:
        return "bank"
    return ("none", "one", "before-after")[(known.before is not None) + (known.after is not None)]


def situation_of(known: Known, told: bool) -> str:
    """Which of `SITUATIONS` a scan is in; `told`: of a sample that turns, where it ends is known."""
    if known.overlaps:
        return "overlapping"
    if known.standing is not None:
        return "standing"
    if known.turning:
        return "turning" if told else "covering"
    return "passing"
