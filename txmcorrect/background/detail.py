"""The fixed detector pattern: what is finer than the working grid and does not move.

Counts factor exactly into a coarse part and detail: `log b = spread(log bin(b)) + detail`. The
network generates the coarse part, which drifts; detail sits on the detector and is the same in all
frames, so it is estimated once, from references where there are any, or else from all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.stats import spearmanr

from txmcorrect.background.conditions import bin_mean, spread_out
from txmcorrect.background.mending import mended, odd_pixels
from txmcorrect.background.scale import LEAST, Reference
from txmcorrect.background.survey import Survey
from txmcorrect.scan import Array, Frames, Scan

Image = NDArray[np.float32]
LARGEST = 0.7  # log; a pixel further from its surroundings than a factor of two is broken
MOST_FRAMES = 64
BAND_BYTES = 128 * 2**20  # of ratios that are sorted at a time
LIKE = 0.15  # rank correlation with the scan's own pattern; less is another detector or optic
RANKED = 500_000  # pixels
WINDOW = 5  # pixels over which signal and noise are compared
AROUND = 7  # pixels over which a frame is compared with the others
CALMEST = 0.5  # of the usual variance: no frame is believed to have less
REGION = 15  # pixels over which halves of a mosaic are compared
SURE = 4.0  # deviations of their mean: what is common beyond is no chance, nor a few broken pixels
HALVES = 8  # usable frames, at least, of a mosaic that is halved


def choose_frames(usable: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Up to 64 usable frames, spread over the scan."""
    index = np.flatnonzero(usable)
    if len(index) <= MOST_FRAMES:
        return index
    return index[np.linspace(0, len(index) - 1, MOST_FRAMES).round().astype(int)]


def frame_ratio(counts: Image, factor: int) -> Image:
    """Counts over their own coarse part, `(n, h, w)`; 0 where there is no light to compare with."""
    frames = torch.from_numpy(np.nan_to_num(counts))
    small = bin_mean(frames, factor).clamp_min(1e-3)
    coarse = spread_out(small.log(), factor, counts.shape[1:]).exp()
    return (frames / coarse).clamp(0, 10).numpy()


def detail_of(
    frames: Frames,
    index: NDArray[np.intp],
    dark: Image,
    factor: int,
    memory: int = 2 * 1024**3,
) -> tuple[Image, Image]:
    """Log detail `(h, w)`, zero on average over every coarse cell, and the variance of its noise.

    Samples in some of the frames do not show. Parameters: see `details_of`.
    """
    return details_of(frames, index, dark, factor, memory, (slice(None),))[0]


def details_of(
    frames: Frames,
    index: NDArray[np.intp],
    dark: Image,
    factor: int,
    memory: int,
    parts: Sequence[slice],
) -> list[tuple[Image, Image]]:
    """`detail_of` each of several parts of the same frames, in one pass.

    Parameters
    ----------
    frames : raw. index : those to use. dark : `(h, w)`. parts : of `index`.
    memory : bytes; a quarter of it may hold raw frames, what does not fit is read again for every
    band of rows. The result does not depend on it.
    """
    h, w = frames.shape[1:]
    if factor == 1:  # nothing is finer than the grid
        return [(np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)) for _ in parts]
    common, variance = np.empty((2, len(parts), h, w), np.float32)
    fitting = memory // 4 // (h * w * frames.dtype.itemsize)
    held = {int(i): frames.read(int(i), int(i) + 1)[0] for i in index[:fitting]}
    for top, stop in bands(h, w, factor):
        ratios = np.empty((len(index), stop - top, w), np.float32)
        for ratio, i in zip(ratios, index.tolist(), strict=True):
            raw = held[i] if i in held else frames.read(i, i + 1)[0]
            ratio[:] = _band_ratio(raw, dark, factor, top, stop)
        for k, part in enumerate(parts):
            common[k, top:stop], variance[k, top:stop] = _robust(ratios[part])
    return [_log_detail(*found) for found in zip(common, variance, strict=True)]


def _log_detail(common: Image, variance: Image) -> tuple[Image, Image]:
    """Log of what frames have in common over their coarse parts, and the variance of its noise."""
    detail = np.log(np.clip(common, np.exp(-2 * LARGEST), np.exp(2 * LARGEST)))
    noise = uniform_filter(variance / np.maximum(common, 0.1) ** 2, WINDOW)
    return detail.astype(np.float32), noise.astype(np.float32)


def shrunk(detail: Image, noise: Image) -> Image:
    """Keep of a detail `(h, w)` what frames have in common, not photon noise or samples.

    An adaptive Wiener filter (Lee 1980): locally, the share of variance that is not `noise`.
    """
    # Power of what is seen, with no mean removed: a lone scratch is signal, not an outlier.
    power = uniform_filter(detail**2, WINDOW)
    return np.asarray(detail * np.clip(1 - noise / np.maximum(power, 1e-12), 0, 1), np.float32)


def bands(h: int, w: int, factor: int) -> list[tuple[int, int]]:
    """Rows that are compared over all frames at a time: whole cells, by the frame's size alone."""
    cells = max(BAND_BYTES // (4 * MOST_FRAMES * w * factor), 1)
    return [(top, min(top + cells * factor, h)) for top in range(0, h, cells * factor)]


def _band_ratio(raw: Array, dark: Image, factor: int, top: int, stop: int) -> Image:
    """Rows `top:stop` of `frame_ratio`; a cell above and below is all that they depend on."""
    low, high = max(top - factor, 0), min(stop + factor, len(raw))
    counts = raw[low:high].astype(np.float32) - dark[low:high]
    return frame_ratio(counts[None], factor)[0, top - low : stop - low]


@dataclass(frozen=True)
class Pattern:
    """The fixed pattern of a scan.

    Attributes
    ----------
    detail : `(h, w)` log. fit : which of the references show it. grain : photon noise it brings along,
    rms of the log. odd : `(m, 2)` number of a reference and flat index of a pixel that it had dead or hot.
    """

    detail: Image
    fit: NDArray[np.intp]
    grain: float
    odd: NDArray[np.intp]


def fixed_pattern(
    scan: Scan,
    survey: Survey,
    references: tuple[Reference, ...],
    memory: int,
    freed: bool = False,
) -> Pattern:
    """The fixed pattern of a scan: from references that show it, else from all its frames.

    `freed` : what stood in all frames was taken out of them; `memory` in bytes.

    Where the sample moves before the detector, frames and references are averaged: they are as many
    more exposures of the same pattern. In a mosaic, where no sample stands still, what either half of the
    frames shows is the beam's, however it has moved since the references were taken.
    """
    own = own_pattern(scan, survey, memory, freed)
    lit = survey_light(survey, own.pattern.shape)
    fitting, fit, odd = [], [], [np.empty((0, 2), np.intp)]
    kept = shrunk(own.pattern, own.noise)
    for i, reference in enumerate(references):
        theirs = reference_detail(reference, survey.factor)
        if survey.factor > 1:
            pixels = odd_pixels(reference, theirs - own.pattern, lit)
            if len(pixels):
                reference = mended(reference, pixels, survey.factor)
                theirs = reference_detail(reference, survey.factor)
                odd.append(np.stack([np.full_like(pixels, i), pixels], 1))
        if survey.factor == 1 or float(kept.std()) < 1e-4 or likeness(kept, theirs) > LIKE:
            fitting.append((reference, theirs))
            fit.append(i)
    found, strange = np.array(fit, np.intp), np.concatenate(odd)
    if not fit:
        return Pattern(kept, found, min(_rms(own.noise**0.5, lit), _rms(kept, lit)), strange)
    detail, noise = told_pattern(scan, survey, own, fitting)
    return Pattern(detail, found, _rms(noise**0.5, lit), strange)


@dataclass(frozen=True)
class Own:
    """What the frames of a scan show of its fixed pattern: `pattern` `(h, w)` log, variance of its `noise`, and
    where nothing stands in all frames what either half of them shows.
    """

    pattern: Image
    noise: Image
    halves: tuple[Image, Image] | None = None


def own_pattern(scan: Scan, survey: Survey, memory: int, freed: bool = False) -> Own:
    """Look at up to 64 frames; `memory` in bytes. freed : what stood in all frames was taken out."""
    index = choose_frames(survey.usable)
    halved = (freed or scan.corner_px is not None) and len(index) >= HALVES and survey.factor > 1
    middle = len(index) // 2  # halves of a turn see the sample from different sides
    sides = (
        [slice(middle), slice(middle, None)] if freed else [slice(0, None, 2), slice(1, None, 2)]
    )
    parts = [slice(None), *(sides if halved else [])]
    (seen, noise), *halves = details_of(
        scan.projections, index, survey.dark, survey.factor, memory, parts
    )
    if not halved:
        return Own(seen, noise)
    (one, _), (other, _) = halves
    return Own(seen, np.maximum(noise, half_noise(one, other)), (one, other))


def told_pattern(
    scan: Scan, survey: Survey, own: Own, fitting: Sequence[tuple[Reference, Image]]
) -> tuple[Image, Image]:
    """Fixed pattern and variance of its noise, `(h, w)`: by references and what each shows, and by `own`."""
    total, photons = np.zeros_like(own.pattern), np.zeros_like(own.pattern)
    for reference, theirs in fitting:
        detected = photons_of(reference, survey) * np.maximum(reference.counts, LEAST)
        total, photons = total + detected * theirs, photons + detected
    told = total / photons
    doubt = np.asarray(1 / np.maximum(photons, np.float32(1)), np.float32)
    if survey.factor == 1:  # nothing is finer than the grid
        return told, np.zeros_like(told)
    if not moves(scan):
        return told, doubt
    moved = None
    if own.halves is not None:
        moved = in_both(own.halves[0] - told, own.halves[1] - told)
    noise = own.noise
    detail = averaged(told, doubt, own.pattern, noise, moved)
    return detail, doubt * noise / (doubt + noise)


def photons_of(reference: Reference, survey: Survey) -> np.float32:
    """Detected photons per count of a mean reference; if its flats don't tell, as of the scan's frames."""
    frames = 1 if reference.flats is None else len(reference.flats)
    told = reference.photons
    return np.float32(survey.photons * frames if told is None else told)


def moves(scan: Scan) -> bool:
    """Whether the sample stands elsewhere in every frame: a mosaic, or a turn of some size."""
    return scan.turns or scan.corner_px is not None


def averaged(
    told: Image, doubt: Image, seen: Image, noise: Image, moved: Image | None = None
) -> Image:
    """Details of references `told` and of frames `seen` by their variances `doubt` and `noise`.

    Only as far as they differ by no more than by chance: where they do, a sample stood still; unless it is
    known to have `moved`, the variance of what the references do not know.
    """
    apart = seen - told
    expected = np.maximum(doubt + noise, np.float32(1e-12))
    excess = uniform_filter(apart**2, WINDOW) / uniform_filter(expected, WINDOW)
    share = doubt / expected * np.clip(2 - excess, 0, 1)
    if moved is not None:
        share = np.maximum(share, moved / np.maximum(moved + noise, np.float32(1e-12)))
    return np.asarray(told + share * apart, np.float32)


def half_noise(one: Image, other: Image) -> Image:
    """Variance `(h, w)` of the mean of two halves, from how they differ: samples count as well."""
    return np.asarray(uniform_filter((one - other) ** 2, REGION) / 4, np.float32)


def in_both(one: Image, other: Image) -> Image:
    """Variance `(h, w)` of what two halves have in common for certain."""
    product = one * other
    mean = uniform_filter(product, REGION)
    spread = np.sqrt(np.maximum(uniform_filter(product**2, REGION) - mean**2, 0)) / REGION
    return np.asarray(np.maximum(mean - SURE * spread, 0), np.float32)


def survey_light(survey: Survey, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels `(h, w)` that work and have half of the usual light or more."""
    small = torch.from_numpy(np.median(survey.small[choose_frames(survey.usable)], 0))[None]
    light = spread_out(small, survey.factor, (shape[0], shape[1]))[0].numpy()
    return np.asarray((light > np.median(light) / 2) & ~survey.broken)


def _rms(image: NDArray[np.floating], lit: NDArray[np.bool_]) -> float:
    return float(np.sqrt((image[lit] ** 2).mean())) if lit.any() else 0.0


def likeness(own: Image, theirs: Image) -> float:
    """Rank correlation of two patterns: edges of a sample that stands still are few, and cannot rule it.

    192 references of simulated scans have 0.18 or more with their own scan (half 0.82), and 0.14 or
    less turned by 180 degrees.
    """
    if float(theirs.std()) == 0:
        return 0.0
    step = max(1, own.size // RANKED)
    return float(spearmanr(own.ravel()[::step], theirs.ravel()[::step]).statistic)


def reference_detail(reference: Reference, factor: int) -> Image:
    """Log detail `(h, w)` of a mean reference."""
    return flat_detail(reference.counts, factor)


def flat_detail(flat: Image, factor: int) -> Image:
    """Log detail `(h, w)` of counts above dark without any sample."""
    counts = torch.from_numpy(np.maximum(flat, LEAST))[None]
    shape = (counts.shape[1], counts.shape[2])
    # Logarithms are interpolated, here as where detail is put back: exact for this reference.
    coarse = spread_out(bin_mean(counts, factor).log(), factor, shape)
    return (counts.log() - coarse).clamp(-1.4, 1.4)[0].numpy()


def _robust(ratios: Image) -> tuple[Image, Image]:
    """Centre over frames `(m, h, w)` and the variance of that centre, blind to samples in a minority of them.

    An interquartile mean first; then each frame counts by how far it is from that around a pixel: where it
    shows a sample it says little, and elsewhere all of it counts.
    """
    m = len(ratios)
    if m == 2:  # the value nearer to 1: a sample's edge moves a ratio away from it
        a, b = ratios
        nearer = np.where(np.abs(a - 1) < np.abs(b - 1), a, b)
        agree = (a + b) / 2
        spread = (a - b) ** 2 / 4
        apart = spread > 9 * np.median(spread)
        return np.where(apart, nearer, agree), spread
    cut = m // 4
    ordered = np.partition(ratios, (cut, m - 1 - cut), axis=0)  # as good as sorted for what follows
    centre = ordered[cut : m - cut].mean(0)
    # The inner half of a normal sample; 1.35 is its interquartile range in standard deviations.
    width = (ordered[m - 1 - cut] - ordered[cut]) / 1.35
    least = CALMEST * uniform_filter(width**2, AROUND)
    weights, weighted = np.zeros_like(centre), np.zeros_like(centre)
    for ratio in ratios:
        power = uniform_filter((ratio - centre) ** 2, AROUND)
        weight = 1 / np.maximum(np.maximum(power, least), np.float32(1e-12))
        weights += weight
        weighted += weight * ratio
    return weighted / weights, 1 / weights
