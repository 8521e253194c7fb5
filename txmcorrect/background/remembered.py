"""The bank that a model remembers from its training on a beamline, for scans that bring none."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, laplace
from scipy.stats import spearmanr

from txmcorrect.background.known import Known, level_with
from txmcorrect.background.light import log_counts, usual_light
from txmcorrect.background.modes import in_common

log = logging.getLogger(__name__)
Image = NDArray[np.float32]

# Rank correlation of what is finest in frames and bank; less is another detector or optic. 24 scans of
# simulated instruments have 0.40 or more with their own bank, and 0.15 or less with 264 of others.
LIKE = 0.25
RIM = 2  # cells


def with_remembered(known: Known, beams: tuple[Image, ...]) -> Known:
    """The scan with one of `beams`, `(k, h, w)` natural log each, as its bank, if it shows that pattern.

    A bank that the scan brings counts first. Levels are those of the scan: a beam remembered says
    nothing of them.
    """
    if known.bank is not None:
        return known
    for beam in beams:
        if beam.shape[1:] != known.frames.shape[1:]:
            continue
        alike = likeness(known, beam)
        if alike > LIKE:
            log.info(
                "no bank was given: that of the model's training counts (likeness %.2f)", alike
            )
            bank = level_with(np.exp(beam), known.before)
            return replace(known, bank=bank, remembered=alike)
        log.warning(
            "the model's training saw another fixed pattern (likeness %.2f, %.2f asked for): its "
            "references were not used",
            alike,
            LIKE,
        )
    return known


def likeness(known: Known, beam: Image) -> float:
    """Rank correlation of a scan's own pattern and that of a bank, of what is finer than a cell or two."""
    chosen, lit = usual_light(known)
    inner = binary_erosion(lit, iterations=RIM)
    if np.count_nonzero(inner) < 3 or len(chosen) < 2:
        return 0.0
    own = in_common(log_counts(known.frames[chosen], lit), lit)
    found = spearmanr(laplace(own)[inner], laplace(beam.mean(0))[inner]).statistic
    return float(np.nan_to_num(found))
