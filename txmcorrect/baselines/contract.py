"""What a method under test is given and what it must say; peers and our own pipelines alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import TxmError

Image = NDArray[np.float32]
Scale = Literal["absolute", "relative"]
Array = NDArray[Any]

LEAST_COUNTS = 0.5  # below this the logarithm of a count says nothing


class NotApplicableError(TxmError):
    """A method needs something that this scan, or this machine, does not have."""


class MissingPackageError(NotApplicableError):
    """A method needs a package that this machine does not have, yet."""


@dataclass(frozen=True)
class Flats:
    """References of one moment, or a bank: `counts` `(m, h, w)`, dark included; ring current `(m,)`."""

    counts: Image
    current_ma: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Problem:
    """All that a method may look at.

    Attributes
    ----------
    frames : `(n, h, w)` float32 raw counts. dark : `(h, w)` mean dark counts.
    lit : `(h, w)` pixels that receive light and work.
    current_ma : `(n,)`; None where it was not recorded.
    stale, before, after : references of one moment; bank : references of many moments.
    position_px : `(n, 2)` tile corners (y, x); theta : `(n,)` radians.
    """

    frames: Image
    dark: Image
    lit: NDArray[np.bool_]
    current_ma: NDArray[np.float64] | None = None
    stale: Flats | None = None
    before: Flats | None = None
    after: Flats | None = None
    bank: Flats | None = None
    position_px: NDArray[np.float64] | None = None
    theta: NDArray[np.float64] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(n, h, w)`."""
        n, h, w = self.frames.shape
        return n, h, w

    @property
    def nearest(self) -> Flats:
        """The one reference that a user without any method would divide by."""
        for flats in (self.stale, self.before, self.after):
            if flats is not None:
                return flats
        raise NotApplicableError(
            "expected a reference of this scan, got none: use a bank or no reference"
        )

    def without(self, *names: str) -> Problem:
        """The same problem without some of its references."""
        absent: dict[str, Any] = dict.fromkeys(names)
        return replace(self, **absent)


@dataclass(frozen=True)
class Estimate:
    """What a method says.

    Attributes
    ----------
    log_background : `(n, h, w)` float32, natural log of the counts of an empty frame, dark excluded.
    scale : `absolute` where the method vouches for the level, else `relative`.
    flags : `(n,)` frames the method itself distrusts.
    sampler : draws `(k, n, h, w)` of the posterior when asked for k of them, or None; std : `(n, h, w)`
    spread, or None.
    additive : `(h, w)` light that does not scale with transmission; subtracted before the division.
    """

    log_background: Image
    scale: Scale = "relative"
    flags: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    sampler: Callable[[int], Image] | None = field(default=None, repr=False)
    std: Image | None = None
    additive: Image | None = None

    def __post_init__(self) -> None:
        if len(self.flags) == 0:
            object.__setattr__(self, "flags", np.zeros(len(self.log_background), np.bool_))


Method = Callable[[Problem], Estimate]


def correct(problem: Problem, estimate: Estimate) -> Image:
    """Transmission `(n, h, w)` that the estimate stands for; unlit pixels are 1, nothing is clipped."""
    additive = 0 if estimate.additive is None else estimate.additive
    light = problem.frames - problem.dark - additive
    corrected = light / np.exp(estimate.log_background)
    return np.where(problem.lit, corrected, np.float32(1)).astype(np.float32)


def log_light(counts: Array, dark: Array) -> Image:
    """Log of what exceeds the dark, floored at half a count."""
    return np.log(np.maximum(counts - dark, LEAST_COUNTS)).astype(np.float32)


def log_flat(flats: Flats, dark: Image) -> tuple[Image, float | None]:
    """Log of the mean reference `(h, w)` and the ring current it was taken at, where known."""
    mean = flats.counts.mean(0, dtype=np.float64)
    current = None if flats.current_ma is None else float(np.mean(flats.current_ma))
    return log_light(mean, dark), current


def scale_to_current(problem: Problem, log_image: Image, current_ma: float | None) -> Estimate:
    """Repeat a reference for every frame, scaled by ring current; `relative` where one is unknown."""
    n = len(problem.frames)
    if current_ma is None or problem.current_ma is None:
        return Estimate(np.broadcast_to(log_image, (n, *log_image.shape)).copy(), "relative")
    gain = np.log(problem.current_ma / current_ma).astype(np.float32)[:, None, None]
    return Estimate(log_image + gain, "absolute")


def brightness(problem: Problem) -> NDArray[np.float64]:
    """Log brightness per frame `(n,)`: the ring current, or else the median of the lit pixels."""
    if problem.current_ma is not None:
        return np.asarray(np.log(problem.current_ma))
    light = (problem.frames - problem.dark)[:, problem.lit]
    return np.asarray(np.log(np.maximum(np.median(light, axis=1), LEAST_COUNTS)))
