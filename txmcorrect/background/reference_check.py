"""The one check of flats and darks: what is none is left out and named, single bad pixels are interpolated.

Flats of one scan may differ by an honest drift, all alike or in groups before and after it. What is no flat,
a shutter that was shut or a frame with a sample in it, has none like itself among those of its moment: each is
compared with its *nearest* neighbour, never with a mean.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from txmcorrect.background.quality import Flag
from txmcorrect.background.survey import DARK_FRAMES, judge_frame, mean_frame
from txmcorrect.errors import FlatFieldError
from txmcorrect.matching import MatchedReferences
from txmcorrect.scan import Array, Frames, FrameView, Scan

log = logging.getLogger(__name__)
Image = NDArray[np.float32]
Pixels = Mapping[int, tuple[NDArray[np.intp], NDArray[np.float32]]]
"""Number of a frame -> flat indices of pixels, and what they should hold."""

BLOCKS = 32  # of the longer side, in which flats are compared
LARGEST = 1e15  # counts; more is no detector's, and squares of it overflow
BAD_SHARE = 0.05  # of the pixels: a frame with more bad ones is left out
SHUT = 0.05  # of the other flats' brightness
SHUT_FRAMES = 0.02  # of the frames' own, which an exposure that is not recorded may be off from
NEIGHBOURS = 6.0  # times the usual distance to the nearest other flat
# Natural log, however alike the others are. Flats of one moment jitter by some per cent, most of it broad; one
# level among many that is off by a factor of two is another exposure.
BROAD, FINE, LEVEL = 0.3, 0.04, 0.7
COMPARED = 64  # flats, with each
SMOOTH = 5  # blocks, over which what is fine is told from what is broad
FEWEST = 3  # flats, of which one may be told to be unlike the others
LIT = 0.2  # of the usual light; darker blocks are not compared
# A dark shows light where it is the beam's image: by so much of it, so alike.
LIGHT_SHARE, LIGHT_ALIKE = 0.1, 0.9
AS_BRIGHT = 0.01  # of the light; flats with less above the dark show nothing
ONE_DARK = 0.05  # of the light, by which a single dark may differ from the others
DARK_SPREAD = 8.0  # robust deviations of the darks' levels


@dataclass(frozen=True)
class Interpolated:
    """Frames with some pixels replaced, as float32; reads `source` piece by piece."""

    source: Frames = field(repr=False)
    pixels: Pixels = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self, start: int, stop: int) -> Array:
        """Frames `(stop - start, h, w)` with their bad pixels replaced."""
        frames = self.source.read(start, stop).astype(np.float32)
        for number, frame in enumerate(frames, start):
            where, values = self.pixels.get(number, (None, None))
            if where is not None:
                frame.ravel()[where] = values
        return frames


@dataclass(frozen=True)
class Dark:
    """Mean dark `(h, w)`, None where there is none that is dark; `notes`: what was left out, `doubt`: why all
    were.
    """

    image: Image | None
    notes: tuple[str, ...] = ()
    doubt: str = ""


@dataclass(frozen=True)
class _Look:
    """What one frame shows: why it is none (`reason`), block means `(b, c)`, number of bad pixels."""

    reason: str
    blocks: NDArray[np.float64]
    bad: int = 0


# ---- flats ---------------------------------------------------------------------------------------
def check_flats(
    match: MatchedReferences, dark: Image, light: float
) -> tuple[MatchedReferences, tuple[str, ...]]:
    """Leave out flats that are none, and interpolate single bad pixels.

    Parameters
    ----------
    match : references of a scan. dark : `(h, w)` counts. light : usual counts above dark of the scan's frames,
    0 where not known.

    Returns
    -------
    The references that are left, and what is to be said of the others.

    Raises
    ------
    FlatFieldError : none is left.
    """
    group = match.references
    darks = usable_dark(group.darks, "dark", mean_light(group.frames))
    own = dark if darks.image is None else darks.image
    frames, count = group.frames, group.frames.shape[0]
    looks = [_look(frames.read(i, i + 1)[0], own, match.scale[i]) for i in range(count)]
    reasons = unlike_others(
        [x.blocks for x in looks], [x.reason for x in looks], light, group.before
    )
    name = f"flat{f' of {group.origin}' if group.origin else ''}"
    kept = np.array([i for i in range(count) if not reasons[i]], np.intp)
    notes = left_out(reasons, name)
    if len(kept) == 0:
        raise FlatFieldError(
            f"{group.origin or 'flats'}: expected flats with light, but all {count} are bad "
            f"({'; '.join(notes)}); check shutter, exposure and dark, or give others by --refs"
        )
    source: Frames = frames if len(kept) == count else FrameView(frames, kept)
    bad = [k for k, i in enumerate(kept.tolist()) if looks[i].bad]
    if bad or source.dtype == np.float16:
        levels = np.array([level_of(looks[i].blocks) for i in kept])
        source = Interpolated(source, _replacements(source, own, bad, levels))
    if bad:
        pixels = sum(looks[kept[k]].bad for k in bad)
        notes = (*notes, f"{pixels} bad pixels in {len(bad)} of {count} flats interpolated")
    for note in notes:
        log.warning("%s", note)
    if darks.doubt:
        notes = (*notes, f"darks of {group.origin or 'the flats'} not used: {darks.doubt}")
    notes = (*darks.notes, *notes)
    known = {
        name: None if values is None else values[kept]
        for name, values in (
            ("before", group.before),
            ("time_s", group.time_s),
            ("exposure_s", group.exposure_s),
            ("current_ma", group.current_ma),
        )
    }
    fresh = None if darks.image is None else _Single(darks.image)
    group = replace(group, frames=source, darks=fresh, **known)  # type: ignore[arg-type]
    age = None if match.age_s is None else match.age_s[kept]
    return replace(match, references=group, scale=match.scale[kept], age_s=age), notes


def unlike_others(
    blocks: Sequence[NDArray[np.float64]],
    reasons: Sequence[str],
    light: float = 0.0,
    moments: NDArray[np.intp] | None = None,
) -> list[str]:
    """Why each flat is left out, "" where it is not.

    Parameters
    ----------
    blocks : means above dark `(b, c)` of each flat. reasons : why some are none already.
    light : counts above dark of the scan's frames.
    moments : `(k,)` equal for flats taken at one; None: not known.
    """
    found = list(reasons)
    bright = np.array([np.quantile(b, 0.9) if b.size else 0.0 for b in blocks])
    for i in _good(found):
        if bright[i] <= SHUT_FRAMES * light:
            found[i] = "no light"
    usual = 0.0
    if left := _good(found):  # most may be shut, and one too bright
        usual = max(np.median(bright[left]), np.quantile(bright[left], 0.9) * SHUT**0.5)
    for i in left:
        if bright[i] < SHUT * usual:
            found[i] = "no light"
    good: NDArray[np.intp] = np.array(_good(found), np.intp)
    if len(good) < FEWEST:
        return found
    level, shapes, lit = _shapes_of([blocks[i] for i in good.tolist()])
    if lit.sum() < FEWEST:
        return found
    odd: dict[int, str] = {}
    moments = np.zeros(len(blocks), np.intp) if moments is None else moments
    for moment in np.unique(moments[good]):
        same = moments[good] == moment
        if same.sum() < FEWEST:  # what the beam was like then they alone tell
            continue
        broad, fine = shapes[same][:, lit], _finer(shapes[same], lit)
        odd |= {int(i): "unlike the other flats" for i in good[same][_alone(broad, BROAD)]}
        structure = "structure that no other flat shows (a sample?)"
        odd |= {int(i): structure for i in good[same][_alone(fine, FINE, 4)]}
    level_unlike = "brightness unlike the other flats'"
    odd |= {int(i): level_unlike for i in good[_alone(level[:, None], LEVEL)]}
    return [odd.get(i, reason) for i, reason in enumerate(found)]


def _shapes_of(
    blocks: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Log level `(k,)`, log shape `(k, b, c)` and which blocks `(b, c)` have light."""
    stack = np.stack(blocks)
    mean = np.median(stack, 0)
    lit = mean > LIT * np.quantile(mean, 0.9)
    logs = np.log(np.maximum(stack, 1e-3 * max(float(np.median(mean[lit])), 1e-9)))
    level = np.median(logs[:, lit], 1)
    return level, np.where(lit, logs - level[:, None, None], 0), lit


def _alone(values: NDArray[np.float64], least: float, power: int = 2) -> NDArray[np.bool_]:
    """Which of some vectors `(k, m)` have none like themselves."""
    nearest = nearest_distance(values, power)
    return np.asarray(nearest > max(least, NEIGHBOURS * float(np.median(nearest))))


def _finer(shapes: NDArray[np.float64], lit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What is finer in shapes `(k, b, c)` than a few blocks, where there is light, `(k, m)`."""
    weight = np.maximum(uniform_filter(lit.astype(np.float64), SMOOTH, mode="constant"), 1e-9)
    broad = [uniform_filter(s, SMOOTH, mode="constant") / weight for s in shapes]
    return np.asarray((shapes - np.stack(broad))[:, lit])


def nearest_distance(values: NDArray[np.float64], power: int = 2) -> NDArray[np.float64]:
    """By how much each of some vectors `(k, m)` differs from the one most like it, `(k,)`.

    The mean of the `power`: the higher, the more what is strong in a few places counts. Of many, those before
    and after are compared.
    """
    found = np.full(len(values), np.inf)
    for i, own in enumerate(values):
        start = min(max(i - COMPARED // 2, 0), max(len(values) - COMPARED - 1, 0))
        others = np.delete(values[start : start + COMPARED + 1], i - start, axis=0)
        found[i] = (np.abs(others - own) ** power).mean(1).min() ** (1 / power)
    return found


def left_out(reasons: Sequence[str], name: str) -> tuple[str, ...]:
    """One note a reason: which frames were left out, counted from 1."""
    notes = []
    for reason in dict.fromkeys(r for r in reasons if r):
        which = [i + 1 for i, r in enumerate(reasons) if r == reason]
        some = ", ".join(map(str, which[:8])) + (" ..." if len(which) > 8 else "")
        plural = "s" if len(which) > 1 else ""
        head, _, rest = name.partition(" ")
        where = f" ({rest.removeprefix('of ')})" if rest else ""
        notes.append(f"{head}{plural} {some} of {len(reasons)} left out{where}: {reason}")
    return tuple(notes)


def level_of(blocks: NDArray[np.float64]) -> float:
    """Usual counts of a frame, positive."""
    return max(float(np.median(blocks)), 1e-3)


def _good(reasons: Sequence[str]) -> list[int]:
    return [i for i, reason in enumerate(reasons) if not reason]


def _look(raw: Array, dark: Image, scale: float | np.float64) -> _Look:
    """Look at one flat by itself."""
    counts = raw.astype(np.float64)
    bad = ~(np.abs(counts) < LARGEST)
    share = bad.mean()
    counts = np.asarray((np.where(bad, np.nan, counts) - dark) * scale, np.float64)
    if share > BAD_SHARE:
        return _Look(f"{100 * share:.0f} % of it not finite", np.zeros((0, 0)))
    blocks = block_means(counts)
    above = np.nan_to_num(counts).astype(np.float32)
    if judge_frame(raw, above) & Flag.SATURATED and np.ptp(counts[~bad]) > 0:
        return _Look("saturated", blocks, int(bad.sum()))  # flats may be ones
    return _Look("", blocks, int(bad.sum()))


def block_means(image: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Means of about 32 x 32 blocks, blind to what is not finite."""
    size = max(1, -(-max(image.shape) // BLOCKS))
    h, w = (-(-side // size) * size for side in image.shape)
    padded: NDArray[np.float64] = np.full((h, w), np.nan)
    padded[: image.shape[0], : image.shape[1]] = image
    parts = padded.reshape(h // size, size, w // size, size)
    known = np.isfinite(parts)
    count = known.sum((1, 3))
    total = np.where(known, parts, 0).sum((1, 3))
    middle = float(total.sum()) / max(int(count.sum()), 1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), middle))


def _replacements(
    source: Frames, dark: Image, bad: Sequence[int], levels: NDArray[np.float64]
) -> Pixels:
    """What the bad pixels of some flats should hold: the mean of the others there, at this one's level; what is
    bad in all, the median of the pixels around.
    """
    found = {}
    for k in bad:
        frame = source.read(k, k + 1)[0].astype(np.float32)
        where = np.flatnonzero(~(np.abs(frame.ravel()) < LARGEST))
        total, count = np.zeros(len(where)), np.zeros(len(where))
        for other in range(source.shape[0]):
            theirs = source.read(other, other + 1)[0].astype(np.float64).ravel()[where]
            good = np.abs(theirs) < LARGEST
            share = levels[k] / levels[other]
            total += np.where(good, (theirs - dark.ravel()[where]) * share, 0)
            count += good
        mean = total / np.maximum(count, 1) + dark.ravel()[where]
        values = np.where(count > 0, mean, around(frame, where)).astype(np.float32)
        found[k] = where, values
    return found


def around(image: Image, where: NDArray[np.intp], reach: int = 2) -> Image:
    """Median of what is finite around some pixels, flat indices; of the whole image where nothing is."""
    good = np.where(np.abs(image) < LARGEST, image, np.nan)
    h, w = image.shape
    out = np.full(len(where), np.nanmedian(good) if np.isfinite(good).any() else 0.0)
    for k, (y, x) in enumerate(zip(*np.unravel_index(where, (h, w)), strict=True)):
        near = good[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
        if np.isfinite(near).any():
            out[k] = np.nanmedian(near)
    return out.astype(np.float32)


# ---- darks ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Single:
    """One image as a stack of one frame."""

    image: Image = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.image.shape[0], self.image.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.image.dtype

    def read(self, start: int, stop: int) -> Array:
        return self.image[None][start:stop]


def usable_dark(frames: Frames | None, name: str, lit: Image | None) -> Dark:
    """Mean of those darks that are dark.

    Parameters
    ----------
    frames : up to 50 count. lit : `(h, w)` raw counts with light, None where there are none.
    name : of the darks.
    """
    if frames is None or frames.shape[0] == 0:
        return Dark(None)
    count = min(frames.shape[0], DARK_FRAMES)
    zero = np.zeros(frames.shape[1:], np.float32)
    looks = [_look(frames.read(i, i + 1)[0], zero, 1.0) for i in range(count)]
    reasons = ["not finite" if x.blocks.size == 0 else "" for x in looks]
    if any(x.bad == 0 and not r for x, r in zip(looks, reasons, strict=True)):
        for i, x in enumerate(looks):
            reasons[i] = reasons[i] or ("pixels not finite" if x.bad else "")
    if lit is not None and lit.shape == frames.shape[1:]:
        _find_bright(looks, reasons, block_means(lit))
    notes = left_out(reasons, name)
    kept = np.array(_good(reasons), np.intp)
    if len(kept) == 0:
        return Dark(None, notes, "none of them can be used")
    dark = mean_frame(FrameView(frames, kept))
    odd = np.flatnonzero(~(np.abs(dark.ravel()) < LARGEST))
    if len(odd):  # of a single dark, or of all
        dark.ravel()[odd] = around(dark, odd)
        notes = (*notes, f"{len(odd)} bad pixel(s) of the {name} interpolated")
    if lit is not None and lit.shape == dark.shape and (why := shows_light(dark, lit)):
        return Dark(None, notes, why)
    return Dark(dark, notes)


def shows_light(dark: Image, lit: Image) -> str:
    """Why a mean dark `(h, w)` is none, "" if it is: `lit` `(h, w)` raw counts.

    A pedestal may be brighter than the light that comes on top of it, but is not the beam's image.
    """
    image, light = block_means(dark), block_means(lit)
    above = light - image
    if above.mean() <= AS_BRIGHT * light.mean():
        return "the darks are as bright as the flats"
    if image.std() == 0 or above.std() == 0:
        return ""
    alike = float(np.corrcoef(image.ravel(), above.ravel())[0, 1])
    slope = alike * image.std() / above.std()
    if alike > LIGHT_ALIKE and slope > LIGHT_SHARE:
        share = slope / (1 + slope)
        return f"the darks show the beam, {100 * share:.0f} % of the flats' light (shutter open?)"
    return ""


def _find_bright(looks: Sequence[_Look], reasons: list[str], light: NDArray[np.float64]) -> None:
    """Name single darks that are much brighter than the others, in `reasons`."""
    good = _good(reasons)
    if len(good) < FEWEST:
        return
    levels = np.array([float(np.median(looks[i].blocks)) for i in good])
    middle = float(np.median(levels))
    spread = 1.4826 * float(np.median(np.abs(levels - middle)))
    least = ONE_DARK * max(float(np.median(light)) - middle, 0.0)
    for k in np.flatnonzero(np.abs(levels - middle) > max(least, DARK_SPREAD * spread, 1.0)):
        reasons[good[k]] = "bright" if levels[k] > middle else "darker than the others"


def mean_light(frames: Frames) -> Image:
    """Median of three frames of a stack, `(h, w)` raw counts."""
    places = np.unique(np.linspace(0, frames.shape[0] - 1, 3).round().astype(int))
    stack = np.concatenate([frames.read(i, i + 1) for i in places.tolist()]).astype(np.float32)
    stack[~(np.abs(stack) < LARGEST)] = 0
    return np.asarray(np.median(stack, 0), np.float32)


def lit_image(scan: Scan) -> Image:
    """Raw counts `(h, w)` with light: of the scan's flats where it has any, else of its frames."""
    same = [
        f.frames for f in scan.flats if f.frames.shape[1:] == scan.shape[1:] and f.frames.shape[0]
    ]
    return mean_light(same[-1] if same else scan.projections)


def frames_light(scan: Scan, dark: Image | float) -> float:
    """Usual counts above dark of a scan's frames, where they are brightest."""
    return max(float(np.quantile(mean_light(scan.projections) - dark, 0.9)), 0.0)
