"""First look at a scan: darks, every frame on the working grid, which frames and pixels can be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean, working_bin
from txmcorrect.background.noise import Pairs, usual_photons
from txmcorrect.background.quality import Flag
from txmcorrect.background.thumbnails import Small, Thumbnails
from txmcorrect.errors import FlatFieldError
from txmcorrect.scan import Array, Frames, Scan
from txmcorrect.stream import iter_blocks
from txmcorrect.team import InMemory, Pieces

Image = NDArray[np.float32]
Progress = Callable[[int, int], None]
DARK_FRAMES = 50  # more darks than this change nothing
LEAST_LIGHT = 1.0  # counts above dark; a frame has no light where fewer pixels than
LIGHT_SHARE = 0.1  # of all have as much
LEAST_SHARE = 0.05  # of the scan's usual brightness: a beam dump, where no dark tells
SATURATED_SHARE = 0.01
TOP, TOP_SHARE = (
    3e-4,
    0.2,
)  # of the largest value; of the pixels: noise spreads an honest frame wider
BYTES_PER_PIXEL = 8.0  # a block in its own type; single frames of it become float32
SURVEY, UNIT = "survey", 32  # pieces of work: their kind, and how many frames each looks at
NOISE_FRAMES = 64


@dataclass(frozen=True)
class Survey:
    """What one pass over the frames tells.

    Attributes
    ----------
    dark : `(h, w)` counts; dark_known : darks were given.
    small : `(n, h', w')` counts above dark on the working grid, as asked for; factor : its bin.
    flag : `(n,)` bits of `quality.Flag`; usable : `(n,)` frames that may serve as conditions.
    photons : detected photons per count, from how frames that follow each other differ.
    broken : `(h, w)` pixels that are dead or stuck.
    """

    dark: Image
    dark_known: bool
    small: Small
    factor: int
    flag: NDArray[np.uint32]
    photons: float
    broken: NDArray[np.bool_]

    @property
    def usable(self) -> NDArray[np.bool_]:
        return (self.flag & np.uint32(Flag.NO_LIGHT | Flag.SATURATED | Flag.NOT_FINITE)) == 0


def mean_frame(frames: Frames, limit: int = DARK_FRAMES) -> Image:
    """Mean of up to `limit` frames, `(h, w)`; a median where three or more allow it, against cosmics."""
    count = min(frames.shape[0], limit)
    stack = frames.read(0, count).astype(np.float32)
    return np.asarray(np.median(stack, 0) if 3 <= count < 10 else _clipped_mean(stack), np.float32)


def _clipped_mean(stack: Image) -> Image:
    """Mean without the largest value of each pixel, where there are enough frames for it."""
    if len(stack) < 10:
        return stack.mean(0)
    return (stack.sum(0) - stack.max(0)) / (len(stack) - 1)


def read_counts(frames: Frames, start: int, stop: int, dark: Image) -> Image:
    """Frames as float32 counts above dark; NaN and infinities become NaN."""
    counts = frames.read(start, stop).astype(np.float32)
    counts -= dark
    if frames.dtype.kind == "f":
        counts[~np.isfinite(counts)] = np.nan
    return counts


def scan_dark(scan: Scan) -> Image | None:
    """Mean of a scan's own darks `(h, w)`, None if it has none."""
    if scan.darks is None or scan.darks.shape[0] == 0:
        return None
    return mean_frame(scan.darks)


def survey_scan(
    scan: Scan,
    dark: Image | None,
    size: int,
    memory: int,
    progress: Progress,
    pieces: Pieces | None = None,
    least: int = 2,
) -> Survey:
    """Look at every frame once.

    Parameters
    ----------
    dark : `(h, w)` counts, or None where none are known: zero then stands for no light.
    size : long side of the working grid. memory : bytes. pieces : where what was seen is kept.
    least : usable frames that are needed; with references one is enough.

    Raises
    ------
    FlatFieldError : fewer than `least` frames can be used.
    """
    n, h, w = scan.shape
    if n < least:
        raise FlatFieldError(
            f"{scan.path}: expected at least two frames, got {n}; "
            "one alone cannot tell background from sample: add frames that share its background, "
            "or flats by --refs"
        )
    level = np.zeros((h, w), np.float32) if dark is None else dark
    if level.shape != (h, w):
        raise FlatFieldError(
            f"darks are {level.shape} but frames are {(h, w)}; give others by --dark"
        )
    factor = working_bin((h, w), size)
    told = noise_frames(n)

    def look(number: int) -> Mapping[str, Array]:
        start = number * UNIT
        return _look(scan.projections, start, min(start + UNIT, n), level, factor, told, memory)

    pieces = pieces or InMemory()
    grid = (0, 0)
    flag = np.zeros(n, np.uint32)
    bright = np.zeros(n)
    gains = []
    still = Still((h, w))
    parts = pieces.each(SURVEY, -(-n // UNIT), look, progress)
    for number, part in enumerate(parts):
        grid = part["small"].shape[1:]
        rows = slice(number * UNIT, number * UNIT + len(part["small"]))
        flag[rows] = part["flag"]
        bright[rows] = np.quantile(part["small"], 0.9, axis=(1, 2))
        gains.append(part["photons"])
        still.also(part["still"], part["value"])
    flag[bright < LEAST_SHARE * np.median(bright)] |= np.uint32(Flag.NO_LIGHT)
    gain = usual_photons(np.concatenate(gains)) or 1.0
    broken = still.broken(n)
    small = Thumbnails(pieces, SURVEY, UNIT, (n, *grid))
    seen = Survey(level, dark is not None, small, factor, flag, gain, broken)
    if seen.usable.sum() < least:
        raise FlatFieldError(_nothing_left(scan, seen, least))
    return seen


def noise_frames(n: int) -> set[int]:
    """The frames that tell, beside the one before each, how much noise there is, whatever the blocks."""
    return set(np.linspace(0, n - 1, min(n, NOISE_FRAMES)).round().astype(int).tolist())


def _look(
    frames: Frames, start: int, stop: int, dark: Image, factor: int, told: set[int], memory: int
) -> Mapping[str, Array]:
    """What `stop - start` frames show, one by one; together, which pixels never change."""
    h, w = dark.shape
    small, flag, pairs = [], [], Pairs()
    first, same = None, np.ones((h, w), np.bool_)
    for a, b in iter_blocks(stop - start, h, w, memory // 2, BYTES_PER_PIXEL):
        for i, raw in enumerate(frames.read(start + a, start + b), start + a):
            first = raw if first is None else first
            same &= raw == first
            counts = raw.astype(np.float32) - dark
            flag.append(judge_frame(raw, counts))
            if raw.dtype.kind == "f":
                counts[~np.isfinite(counts)] = 0
            small.append(bin_mean(torch.from_numpy(counts[None]), factor)[0].numpy())
            if i in told or i + 1 in told:
                pairs.also(counts, i in told)
    assert first is not None
    still = np.flatnonzero(same)
    return {
        "small": np.stack(small),
        "flag": np.array(flag, np.uint32),
        "photons": np.array(pairs.photons, np.float64),
        "still": still,
        "value": first.ravel()[still],
    }


def judge_frame(raw: Array, counts: Image) -> int:
    """Bits of `quality.Flag` of a single frame: `raw` `(h, w)`, and `counts` above dark."""
    bits = 0
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        bits |= Flag.BAD_PIXELS
        if np.isfinite(raw).mean() < 0.5:
            return bits | Flag.NOT_FINITE
        counts = counts[np.isfinite(counts)]
    some = counts[..., ::4]
    if np.count_nonzero(some >= LEAST_LIGHT) < LIGHT_SHARE * some.size:
        return bits | Flag.NO_LIGHT
    full = raw.dtype.kind == "u" and (raw == np.iinfo(raw.dtype).max).mean() > SATURATED_SHARE
    if full or _clipped(some):
        bits |= Flag.SATURATED
    return bits


def _clipped(counts: Image) -> bool:
    """Whether many pixels share the largest value: a detector that is full below its type's maximum."""
    top = float(np.quantile(counts, 0.99))
    return top > 0 and float((np.abs(counts - top) < TOP * top).mean()) > TOP_SHARE


class Still:
    """Pixels that had one value in all frames so far, from pieces of a scan one after another.

    Where light changes, noise alone makes an honest pixel differ: those are dead or stuck.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._known: tuple[Array, Array] | None = None

    def also(self, still: Array, value: Array) -> None:
        """See more frames: `still` `(k,)` flat indices of pixels with one `value` `(k,)` in all of them."""
        if self._known is not None:
            before, values = self._known
            still, ours, theirs = np.intersect1d(
                before, still, assume_unique=True, return_indices=True
            )
            equal = values[ours] == value[theirs]
            still, value = still[equal], values[ours][equal]
        self._known = still, value

    def broken(self, n: int) -> NDArray[np.bool_]:
        """Pixels `(h, w)` that stood still in `n` frames: three equal values are no chance."""
        same = np.zeros(self.shape, np.bool_)
        if n < 3 or self._known is None:
            return same
        same.flat[self._known[0]] = True
        return same if same.mean() < 0.5 else np.zeros_like(same)


def _nothing_left(scan: Scan, seen: Survey, least: int) -> str:
    n = scan.shape[0]
    names = {
        "no light": Flag.NO_LIGHT,
        "saturated": Flag.SATURATED,
        "mostly not finite": Flag.NOT_FINITE,
    }
    found = [f"{int(((seen.flag & bit) != 0).sum())} {name}" for name, bit in names.items()]
    wanted = "one usable frame" if least == 1 else "two usable frames"
    return (
        f"{scan.path}: expected at least {wanted} of {n}, got {int(seen.usable.sum())} "
        f"({', '.join(found)}); check the shutter, the dark and the exposure"
    )
