"""From Python: load a model, sample backgrounds, correct an array.

from txmcorrect.api import correct_array, load_model

transmission, background = correct_array(frames, dark=dark)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.course import Background, divide_frame
from txmcorrect.background.estimate import Draw
from txmcorrect.background.pipeline import estimate_background
from txmcorrect.background.survey import read_counts
from txmcorrect.scan import ArrayFrames, Scan
from txmcorrect.weights import Model, load_model

__all__ = ["Background", "Draw", "Model", "correct_array", "estimate_array", "load_model"]


def estimate_array(
    frames: NDArray[Any],
    dark: NDArray[Any] | None = None,
    model: Model | None = None,
    draw: Draw | None = None,
    interval: int = 1,
    every: int | None = None,
    settle: int = 15,
    current_ma: NDArray[Any] | None = None,
    theta: NDArray[Any] | None = None,
) -> Background:
    """Generate the background of a stack in memory.

    Parameters
    ----------
    frames : `(n, h, w)` raw counts, n at least 2. dark : `(h, w)` counts, or None for zero.
    model : see `load_model`; the bundled stack model by default. draw : how samples are drawn.
    interval, every, settle : see `CorrectSettings`. current_ma : `(n,)` ring current, theta : `(n,)` angles in
    radians, where known.

    Raises
    ------
    FlatFieldError : fewer than two usable frames.
    """
    current, angles = (
        None if x is None else np.asarray(x, np.float64) for x in (current_ma, theta)
    )
    scan = Scan(Path("array"), "array", ArrayFrames(frames), theta=angles, current_ma=current)
    return estimate_background(
        scan,
        model or load_model("bundled", "stack"),
        draw or Draw(),
        dark=None if dark is None else np.asarray(dark, np.float32),
        interval=interval,
        every=every,
        settle_keys=settle,
    )


def correct_array(
    frames: NDArray[Any], dark: NDArray[Any] | None = None, **options: Any
) -> tuple[NDArray[np.float32], Background]:
    """Divide a stack in memory by its generated background.

    `frames` `(n, h, w)` raw counts; options as in `estimate_array`. Returns the transmission
    `(n, h, w)`, float32, unlit and dead pixels 1, and the background with its flags.
    """
    background = estimate_array(frames, dark, **options)
    scan = ArrayFrames(frames)
    counts = read_counts(scan, 0, len(frames), background.dark)
    for i, frame in enumerate(counts):
        divide_frame(frame, background, i)
    return counts, background
