"""What is finer than the working grid and moves: the beam's own structure, as references show it.

The detector's pattern stays where it is, and fine structure of the beam goes with what is coarse in it.
References of several moments show how: their principal components on the working grid have a fine part
each, the same sum of the same references (eigen flats, Van Nieuwenhove et al. 2015). How much of each
component a frame has is known from its background on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.detail import AROUND, flat_detail
from txmcorrect.background.known import is_bank
from txmcorrect.background.modes import principal_shares
from txmcorrect.background.pattern import Own, own_pattern, photons_of, rms, told_pattern
from txmcorrect.background.scale import LEAST, Reference
from txmcorrect.background.spectrum import Bands, modes_of
from txmcorrect.background.survey import Survey
from txmcorrect.scan import Scan

Image = NDArray[np.float32]
Array = NDArray[np.float64]

MOST_MOMENTS = 64
OFF = 3e-4  # natural log, rms: what fields may be off by; components smaller than that are not told by them
BINS = 24  # of spatial frequency up to Nyquist's
CERTAIN = 3.0  # deviations of a bin's power
SLIGHT = 1e-4  # natural log, rms; less is not worth an image


@dataclass(frozen=True)
class Moment:
    """Flats `numbers` of one reference, taken at one moment: `small` `(h', w')` counts, `photons` per count."""

    reference: Reference
    numbers: tuple[int, ...]
    small: Image
    photons: float


@dataclass(frozen=True)
class Moving:
    """`detail`: the fixed pattern `(h, w)` at the scan's mean background; `images` `(c, h, w)` that come on
    top of it, and how much of them key frames have, `shares` `(k, c)`. Natural log.
    """

    detail: Image
    images: Image
    shares: Array


def moments_of(references: Sequence[Reference], survey: Survey) -> list[Moment]:
    """Flats of a bank stand for themselves, others by when they were taken."""
    found = []
    for reference in references:
        if reference.flats is None or reference.flat is None:
            continue
        count = len(reference.flats)
        single = float(photons_of(reference, survey)) / count
        places = reference.before
        if places is None:
            places = np.arange(count) if is_bank(reference.flats) else np.zeros(count, np.intp)
        for place in np.unique(places):
            numbers = np.flatnonzero(places == place)
            small = reference.flats[numbers].mean(0)
            found.append(Moment(reference, tuple(numbers.tolist()), small, single * len(numbers)))
    if len(found) > MOST_MOMENTS:
        found = [found[i] for i in np.linspace(0, len(found) - 1, MOST_MOMENTS).round().astype(int)]
    return found


def moving_pattern(
    scan: Scan,
    survey: Survey,
    references: Sequence[Reference],
    fields: Image,
    cells: NDArray[np.bool_],
    lit: NDArray[np.bool_],
    memory: int,
) -> Moving | None:
    """What moves with the background `fields` `(k, h', w')` of key frames, natural log; None if nothing does.

    Parameters
    ----------
    references : those that fit, without their odd pixels. cells `(h', w')`, lit `(h, w)` : with light.
    memory : bytes.
    """
    moments = moments_of(references, survey)
    if survey.factor == 1 or len(moments) < 2 or not cells.any():
        return None
    logs = _shapes(np.log(np.maximum(np.stack([m.small for m in moments]), LEAST)), cells)
    shares = principal_shares(logs, cells)
    mean = logs.mean(0)
    components = np.tensordot(shares, logs - mean, 1)
    parts = _parts(components, _shapes(fields, cells) - mean, cells)
    ours = [r for r in references if any(m.reference is r for m in moments)]
    weights = np.array([[m.photons * (m.reference is r) for m in moments] for r in ours])
    weights /= weights.sum(1, keepdims=True)
    sums = _fine_sums(moments, np.concatenate([shares, weights]), survey)
    found, kept = [], []
    for k, image in enumerate(sums[: len(shares)]):
        image = told_by_spectrum(image, _noise(moments, shares[k]), lit)
        if rms(image[lit]) * rms(parts[:, k]) > SLIGHT:
            found.append(image)
            kept.append(k)
    if not found:
        return None
    images, parts = np.stack(found), parts[:, kept]
    usual = parts.mean(0)
    theirs = _parts(components, logs - mean, cells)[:, kept]
    apart = (usual - weights @ theirs) @ images.reshape(len(kept), -1)
    moved = apart.reshape(-1, *lit.shape).astype(np.float32)
    shown = sums[len(shares) :] + moved
    own = own_pattern(scan, survey, memory)
    if not all(_is_seen(own, s, m, lit) for s, m in zip(shown, moved, strict=True)):
        return None
    detail, _ = told_pattern(scan, survey, own, list(zip(ours, shown, strict=True)))
    return Moving(detail, *fewest(images, parts - usual))


def fewest(images: Image, shares: Array) -> tuple[Image, Array]:
    """As few images `(c, h, w)`, of rms 1, with `shares` `(k, c)` in key frames, as say nearly the same."""
    flat = images.reshape(len(images), -1)
    power, axes = np.linalg.eigh((flat @ flat.T).astype(np.float64) / flat.shape[1])
    axes, size = axes[:, power > 0], np.sqrt(power[power > 0])
    left, values, right = np.linalg.svd(shares @ axes * size, full_matrices=False)
    count = int((values > SLIGHT * np.sqrt(len(shares))).sum())
    combined = (right[:count] @ (axes / size).T).astype(np.float32) @ flat
    return combined.reshape(-1, *images.shape[1:]), left[:, :count] * values[:count]


def _is_seen(own: Own, shown: Image, moved: Image, lit: NDArray[np.bool_]) -> bool:
    """Whether frames do not contradict that what a reference showed has `moved` to `shown`, `(h, w)` each:
    theirs may be a beam that references know nothing of.
    """
    power = float((moved[lit] ** 2).sum())
    if power == 0:
        return True
    share = float((moved * (own.pattern - shown + moved))[lit].sum()) / power
    doubt = AROUND * float((moved**2 * own.noise)[lit].sum()) ** 0.5 / power
    return share > 0.5 - CERTAIN * doubt


def _shapes(logs: Image, cells: NDArray[np.bool_]) -> Image:
    """Less their level where there is light, and nothing elsewhere."""
    level = logs[:, cells].mean(1)[:, None, None]
    return np.where(cells, logs - level, np.float32(0))


def _parts(components: Array, shapes: Image, cells: NDArray[np.bool_]) -> Array:
    """How much of each component `(k, h', w')` is in each of some shapes `(m, h', w')`: `(m, k)`."""
    flat = components.reshape(len(components), -1)
    power = (flat**2).sum(1) + OFF**2 * cells.sum()
    return np.asarray(shapes.reshape(len(shapes), -1) @ flat.T / power)


def _fine_sums(moments: Sequence[Moment], shares: Array, survey: Survey) -> Image:
    """Sums of the fine parts of moments, `(k, h, w)`, with `shares` `(k, m)` of each."""
    images = np.zeros((len(shares), *moments[0].reference.counts.shape), np.float32)
    for moment, share in zip(moments, shares.T, strict=True):
        flat = moment.reference.flat
        assert flat is not None
        counts = np.zeros_like(moment.reference.counts)
        for number in moment.numbers:
            counts += flat(number) / np.float32(len(moment.numbers))
        fine = flat_detail(counts, survey.factor)
        for image, part in zip(images, share, strict=True):
            if part:
                image += np.float32(part) * fine
    return images


def _noise(moments: Sequence[Moment], share: Array) -> Image:
    """Variance `(h, w)` of the photon noise in a sum of moments, `share` `(m,)` of each."""
    noise = np.zeros_like(moments[0].reference.counts)
    for reference in {id(m.reference): m.reference for m in moments}.values():
        pairs = zip(moments, share, strict=True)
        each = sum(part**2 / m.photons for m, part in pairs if m.reference is reference)
        noise += np.float32(each) / np.maximum(reference.counts, LEAST)
    return noise


def told_by_spectrum(image: Image, noise: Image, lit: NDArray[np.bool_]) -> Image:
    """What stands out of white noise of variance `noise` in an image, by frequency; `(h, w)`."""
    deviation = np.sqrt(noise)
    modes = modes_of(np.where(lit, image / deviation, np.float32(0)))
    bands = Bands(image.shape, BINS)
    chance = lit.mean() * (1 + CERTAIN * np.sqrt(2 / bands.count))
    belief = np.clip(1 - chance / np.maximum(bands.mean(modes**2), 1e-12), 0, 1)
    return np.where(lit, bands.kept(modes, belief) * deviation, np.float32(0)).astype(np.float32)
