"""Frames of a scan that are fitted, and the light in them: its logarithm, and where there is enough."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.known import Known
from txmcorrect.background.scale import LEAST

Image = NDArray[np.float32]

MOST_FRAMES = 96  # fitted; others lie between
LEAST_LIGHT = 0.03  # of the bright end; darker cells are not fitted
FLOOR = np.float32(0.02)  # of the bright end; what is darker counts as this much


def usual_light(known: Known) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Frames that are fitted, spread over the scan, and the cells `(h, w)` that are lit in them."""
    chosen = np.flatnonzero(known.usable)
    if len(chosen) > MOST_FRAMES:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MOST_FRAMES).round().astype(int)]
    return chosen, well_lit(known.frames[chosen].mean(0))


def well_lit(mean: Image) -> NDArray[np.bool_]:
    """Cells `(h, w)` that have light enough in a mean frame."""
    return np.asarray(mean > LEAST_LIGHT * np.quantile(mean, 0.95))


def log_counts(counts: Image, lit: NDArray[np.bool_], like: Image | None = None) -> Image:
    """Natural log, floored well below what is lit of `like`, by default these; `(..., h, w)`."""
    bright = (counts if like is None else like)[..., lit]
    floor = FLOOR * np.median(bright) if bright.size else 0.0
    return np.log(np.maximum(counts, max(floor, LEAST))).astype(np.float32)
