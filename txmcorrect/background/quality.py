"""Trust: bits per frame, what the bits mean, and the one line that ends a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Image = NDArray[np.float32]


class Flag(IntFlag):
    """Why a frame should be looked at."""

    NO_LIGHT = 1
    SATURATED = 2
    NOT_FINITE = 4
    BAD_PIXELS = 8
    LEAK = 16
    UNCERTAIN = 32
    ODD_BACKGROUND = 64
    PARTLY_DARK = 128
    JUMP = 256


# A jump is a remark: the frames on both sides are treated apart, so it costs no trust.
REMARKS = Flag.JUMP | Flag.BAD_PIXELS
# A large spread says "look", not "wrong": it alone never fails a run.
DOUBTS = REMARKS | Flag.UNCERTAIN | Flag.PARTLY_DARK
UNUSABLE = Flag.NO_LIGHT | Flag.SATURATED | Flag.NOT_FINITE
MEANING = {
    Flag.NO_LIGHT: "no light",
    Flag.SATURATED: "saturated",
    Flag.NOT_FINITE: "mostly not finite",
    Flag.BAD_PIXELS: "some pixels not finite",
    Flag.LEAK: "sample leakage into the background",
    Flag.UNCERTAIN: "high uncertainty",
    Flag.ODD_BACKGROUND: "background unlike the scan's others",
    Flag.PARTLY_DARK: "partly without light",
    Flag.JUMP: "illumination jumped",
}
NAMES = tuple(flag.name.lower() for flag in Flag if flag.name)

# Said of every run whose background was found without references, however good it looks.
UNREFERENCED = (
    "no flat field: low-frequency contrast may be underestimated, and anything stationary in all "
    "frames is removed with the background"
)
REMEMBERED = "no flat field was given: those that the model remembers of its training count"
# Said where the fit of the drift knows no cells that a turning sample leaves free.
MISTAKABLE = (
    "the sample turns and no cells without it are known: broad parts of it may be taken for drift"
)

LEAK_LIMIT = 0.15  # slope of the background's own structure on the sample's
# Less is chance: a drift and a sample have some tens of features in the band, a scan has tens of frames.
LEAK_CORRELATION = 0.5
# Rms spread of the log background's shape: what stands out from a single frame's photon noise.
UNCERTAIN_LIMIT, UNCERTAIN_NOISE = 0.05, 3.0
ODD_LIMIT = 6.0  # robust standard deviations from the scan's usual change
ODD_FLOOR = 0.03
DARK_SHARE = 0.05


def band(log_image: Image, narrow: float, wide: float) -> Image:
    """Difference of two Gaussian blurs, widths in pixels: structure between them."""
    return gaussian_filter(log_image, narrow) - gaussian_filter(log_image, wide)


def leak_slope(log_b: Image, usual: Image, log_t: Image, lit: NDArray[np.bool_]) -> float:
    """How much of the sample's structure stands in the background: 0 none, 1 all.

    Parameters
    ----------
    log_b : `(h, w)` this frame's log background; usual : the scan's median one.
    log_t : `(h, w)` corrected log transmission: what the background left of the sample.

    The least-squares slope of the frame's own deviation on the sample, both between a 32nd and a
    quarter of the frame's width; 0 where they correlate no more than by chance. The raw frame does
    not enter: it shares the drift with the background. A sample that went into the background as a
    whole, or that stands still in all frames, is not seen here.
    """
    long = max(log_b.shape)
    own = band(_filled(log_b - usual, lit), long / 32, long / 4)[lit]
    sample = band(_filled(log_t, lit), long / 32, long / 4)[lit]
    power, common = float((sample**2).sum()), float((own * sample).sum())
    if power < lit.sum() * 1e-5:  # 0.3 % rms: no sample to leak
        return 0.0
    if abs(common) < LEAK_CORRELATION * (power * float((own**2).sum())) ** 0.5:
        return 0.0  # what deviates is the drift
    slope = common / power  # on what is left, 1 - leak of the sample
    if slope < -1:
        return 0.0  # more than all of a sample can't be missing
    return slope / max(1 + slope, 0.5)


def _filled(image: Image, lit: NDArray[np.bool_]) -> Image:
    """Mean removed and nothing where there is no light: the rim must not ring."""
    return np.where(lit, image - image[lit].mean(), 0)


def spread_rms(log_std: Image, lit: NDArray[np.bool_]) -> float:
    """Rms of the spread over lit pixels."""
    return float(np.sqrt((log_std[lit] ** 2).mean()))


def odd_ones(distance: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Key frames whose background is far from the median one compared with the others."""
    middle = np.median(distance)
    spread = 1.4826 * np.median(np.abs(distance - middle)) + 1e-6
    return (distance > middle + ODD_LIMIT * spread) & (distance > ODD_FLOOR)


# What TRUSTED promises, rms of the natural log: shape of frames, levels between frames, absolute level.
PROMISED = {"shape": 0.02, "levels between frames": 0.01, "absolute level": 0.01}
# TRUSTED is said where errors twice as large as expected would still keep the promise.
MARGIN = 0.5


@dataclass(frozen=True)
class Expected:
    """Expected errors, rms of the natural log.

    `shape` `(n,)` of each frame, without its level; `levels` between frames; `absolute` of all frames
    together, None where nothing tells it. `assumed`: what the absolute level rests on, "" if on records or
    visible vacuum.
    """

    shape: NDArray[np.float64]
    levels: float
    absolute: float | None
    assumed: str = ""

    def figures(self) -> dict[str, float]:
        """The errors by name, of the whole scan."""
        shape = float(np.sqrt((self.shape**2).mean())) if len(self.shape) else 0.0
        found = {"shape": shape, "levels between frames": self.levels}
        if self.absolute is not None:
            found["absolute level"] = self.absolute
        return found

    @property
    def keeps(self) -> bool:
        """Whether TRUSTED may be said."""
        return all(value <= MARGIN * PROMISED[name] for name, value in self.figures().items())

    def __str__(self) -> str:
        parts = [f"{name} {100 * value:.2g} %" for name, value in self.figures().items()]
        said = f"expected error: {', '.join(parts)}"
        return f"{said} ({self.assumed})" if self.assumed else said


def joined(parts: Sequence[Expected | None]) -> Expected | None:
    """Of consecutive parts of a scan together; None where one of them does not say."""
    known = [p for p in parts if p is not None]
    if len(known) < len(parts) or not known:
        return None
    absolute = [p.absolute for p in known if p.absolute is not None]
    return Expected(
        np.concatenate([p.shape for p in known]),
        max(p.levels for p in known),
        max(absolute) if len(absolute) == len(known) else None,
        "; ".join(dict.fromkeys(p.assumed for p in known if p.assumed)),
    )


@dataclass(frozen=True)
class Verdict:
    """`TRUSTED`, `CHECK (frames ...)` or `FAILED`, why, and where the scale came from."""

    word: str
    why: str
    scale: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}; scale={self.scale}"


def judge_run(
    flag: NDArray[np.uint32],
    scale: str,
    notes: tuple[str, ...] = (),
    expected: Expected | None = None,
) -> Verdict:
    """Sum up a run. `flag` `(n,)`; `notes` are doubts that hold for all frames; `expected` errors, where
    known.
    """
    serious = (flag & ~np.uint32(REMARKS)) != 0
    n = len(flag)
    reasons = [
        f"{meaning} in {count}"
        for bit, meaning in MEANING.items()
        if bit not in REMARKS and (count := int(((flag & bit) != 0).sum()))
    ]
    said = () if expected is None else (str(expected),)
    doubts = DOUBTS if expected is None else DOUBTS | Flag.LEAK | Flag.ODD_BACKGROUND
    if ((flag & ~np.uint32(doubts)) != 0).mean() > 0.5:
        why = f"{int(serious.sum())} of {n} frames flagged ({'; '.join(reasons)})"
        return Verdict("FAILED", why, scale)
    if serious.any():
        frames = _ranges(np.flatnonzero(serious))
        return Verdict(f"CHECK (frames {frames})", "; ".join([*reasons, *notes, *said]), scale)
    if notes or (expected is not None and not expected.keeps):
        return Verdict("CHECK (all frames)", "; ".join([*notes, *said]), scale)
    return Verdict("TRUSTED", "; ".join([f"no frame of {n} flagged", *said]), scale)


def _ranges(index: NDArray[np.intp], most: int = 8) -> str:
    """`0-3, 7, 9-12`, cut short after `most` runs."""
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    texts = [f"{r[0]}" if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
