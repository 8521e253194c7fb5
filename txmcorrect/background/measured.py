"""The background of a scan as its flats have it: no fit, no network.

Flats of one moment are averaged, and between two moments the background is linear in the frame number (of the
logarithm); exposure and current are those that were recorded. What is finer than the working grid is the mean
of all moments, and moves only as far as it differs between them by more than photon noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.detail import flat_detail
from txmcorrect.background.moving import SLIGHT, fewest, told_by_spectrum
from txmcorrect.background.pattern import photons_of, rms
from txmcorrect.background.scale import LEAST, Reference
from txmcorrect.background.survey import Survey

Image = NDArray[np.float32]
DEAD = 0.01  # of the median flat: pixels with less cannot be divided
MOST_FINE = 16  # moments, whose fine parts are compared; of more, neighbours are averaged
ONE_MOMENT = "flats of one moment: how the beam has changed since is not corrected"


@dataclass(frozen=True)
class Burst:
    """Flats of one moment: `counts` `(h, w)` above dark, at the scan's median exposure; `place`: how many
    frames were taken before; `photons` detected per count of it.
    """

    counts: Image
    place: float
    photons: float


@dataclass(frozen=True)
class Measured:
    """What flats say of a background; names as in `course.Background`."""

    keys: NDArray[np.intp]
    fields: Image
    std: Image
    details: Image
    shares: NDArray[np.float64]
    lit: NDArray[np.bool_]
    amplitude: NDArray[np.float64]
    grain: float
    notes: tuple[str, ...]
    scale: str


def bursts_of(references: Sequence[Reference], survey: Survey) -> list[Burst]:
    """Mean flats in order of time: those whose moments are known, else all of the last of `references`, which
    are the scan's own if it has any.
    """
    placed = [r for r in references if r.before is not None]
    found = []
    for reference in placed or references[-1:]:
        count = 1 if reference.flats is None else len(reference.flats)
        single = float(photons_of(reference, survey)) / count
        flat, places = reference.flat, reference.before
        if flat is None or places is None:
            found.append(Burst(reference.counts, 0.0, single * count))
            continue
        for place in np.unique(places):
            numbers = np.flatnonzero(places == place)
            total = np.zeros(reference.counts.shape, np.float64)
            for number in numbers.tolist():
                total += flat(number)
            counts = np.asarray(total / len(numbers), np.float32)
            found.append(Burst(counts, float(place), single * len(numbers)))
    return sorted(found, key=lambda burst: burst.place)


def course_weights(places: NDArray[np.float64], frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each moment `(m,)` some frames `(k,)` have, `(k, m)`: linear between the two around each."""
    identity = np.eye(len(places))
    # Frame i is taken when i have been, and is half done when i + 0.5 have.
    return np.stack([np.interp(frames + 0.5, places, row) for row in identity], 1)


def key_frames(places: NDArray[np.float64], n: int) -> NDArray[np.intp]:
    """Frames between which the background is linear: the first, the last, and those beside each moment."""
    beside = np.concatenate([np.floor(places - 0.5), np.floor(places - 0.5) + 1])
    return np.unique(np.clip(np.append(beside, [0, n - 1]), 0, n - 1)).astype(np.intp)


def measured_background(references: Sequence[Reference], survey: Survey) -> Measured:
    """Divide by flats as they were measured. `references` : matching ones, one at least."""
    n, factor = len(survey.small), survey.factor
    bursts = bursts_of(references, survey)
    places = np.array([burst.place for burst in bursts])
    keys = key_frames(places, n) if len(bursts) > 1 else np.unique([0, n - 1]).astype(np.intp)
    weights = course_weights(places, keys.astype(np.float64))
    counts = np.stack([burst.counts for burst in bursts])
    small = np.maximum(bin_mean(torch.from_numpy(counts), factor).numpy(), LEAST)
    fields = np.tensordot(weights, np.log(small), 1).astype(np.float32)
    mean = counts.mean(0)
    lit = (counts > DEAD * np.median(counts, axis=(1, 2), keepdims=True)).all(0) & ~survey.broken
    details, shares, grain = _fine(bursts, weights, lit, factor)
    reference = references[-1]
    known = "exposure and current recorded"
    if not reference.absolute:
        known = "exposure not recorded, taken as equal"
    return Measured(
        keys=keys,
        fields=fields,
        std=_std(bursts, weights, small, mean, factor),
        details=details,
        shares=shares,
        lit=lit,
        amplitude=np.exp(reference.log_exposure),
        grain=grain,
        notes=() if len(bursts) > 1 else (ONE_MOMENT,),
        scale=f"reference ({reference.origin}, {known})",
    )


def _std(
    bursts: Sequence[Burst], weights: NDArray[np.float64], small: Image, mean: Image, factor: int
) -> Image:
    """Deviation of the shape `(k, h', w')`: photon noise, and a bridge of chance between two moments as wide as
    these differ.
    """
    photons = np.array([burst.photons for burst in bursts]) * factor**2
    logs = np.log(small)
    logs = logs - logs.mean((1, 2), keepdims=True)
    found = []
    for row in weights:
        noise = ((row**2 / photons)[:, None, None] / small).sum(0)
        centre = np.tensordot(row, logs, 1)
        apart = np.tensordot(row, (logs - centre) ** 2, 1)  # t (1 - t) d^2 between two moments
        found.append(np.sqrt(noise + apart))
    return np.stack(found).astype(np.float32)


def _fine(
    bursts: Sequence[Burst], weights: NDArray[np.float64], lit: NDArray[np.bool_], factor: int
) -> tuple[Image, NDArray[np.float64], float]:
    """Fine patterns `(c, h, w)`, how much of each key frames have `(k, c)`, and the noise they bring along."""
    groups = np.array_split(np.arange(len(bursts)), min(len(bursts), MOST_FINE))
    logs, photons, shares = [], [], []
    for group in groups:
        some = [bursts[i] for i in group.tolist()]
        each = np.array([burst.photons for burst in some])
        counts = np.tensordot(each / each.sum(), np.stack([b.counts for b in some]), 1)
        logs.append(flat_detail(counts.astype(np.float32), factor))
        photons.append(float(each.sum()))
        shares.append(weights[:, group].sum(1))
    part = np.array(photons) / sum(photons)
    pooled = np.tensordot(part, np.stack(logs), 1).astype(np.float32)
    level = np.maximum(np.mean([b.counts for b in bursts], 0), np.float32(LEAST))
    noise = 1 / (sum(photons) * level)
    grain = float(np.sqrt(noise[lit].mean())) if lit.any() and factor > 1 else 0.0
    images, kept = [], []
    for log, number, share in zip(logs, photons, shares, strict=True):
        own = np.asarray((1 / number - 1 / sum(photons)) / level, np.float32)
        if factor > 1 and len(bursts) > 1 and own[lit].size and float(own[lit].min()) > 0:
            image = told_by_spectrum(log - pooled, own, lit)
            if rms(image[lit]) > SLIGHT:
                images.append(image)
                kept.append(share)
    if not images:
        return pooled[None], np.ones((len(weights), 1)), grain
    moving, parts = fewest(np.stack(images), np.stack(kept, 1))
    return (
        np.concatenate([pooled[None], moving]).astype(np.float32),
        np.concatenate([np.ones((len(weights), 1)), parts], 1),
        grain,
    )
