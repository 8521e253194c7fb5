"""Detail: what is finer than the working grid and does not move, the detector's fixed pattern.

Counts factor exactly into a coarse part and detail: `log b = spread(log bin(b)) + detail`. The
network generates the coarse part, which drifts; detail sits on the detector and is the same in all
frames, so it is estimated once, from references where there are any, or else from all frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from txmcorrect.background.conditions import bin_mean, spread_out
from txmcorrect.background.scale import LEAST, Reference
from txmcorrect.scan import Array, Frames

Image = NDArray[np.float32]
LARGEST = 0.7  # log; a pixel further from its surroundings than a factor of two is broken
MOST_FRAMES = 64
BAND_BYTES = 128 * 2**20  # of ratios that are sorted at a time
WINDOW = 5  # pixels over which signal and noise are compared
AROUND = 7  # pixels over which a frame is compared with the others
CALMEST = 0.5  # of the usual variance: no frame is believed to have less


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
