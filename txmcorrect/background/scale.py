"""How bright: an amplitude per frame, and the absolute scale where it can be known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.keyframes import Index, interpolate
from txmcorrect.background.noise import Pairs
from txmcorrect.background.survey import Survey, mean_frame
from txmcorrect.matching import MatchedReferences

Fields = NDArray[np.float32]
LEAST = 1e-3


@dataclass(frozen=True)
class Reference:
    """A matching reference, ready to compare with: mean counts above its dark at the scan's exposure.

    `counts` `(h, w)`; `log_exposure` `(n,)`: exposure and current of each frame over the scan's
    median; `absolute`: both sides' exposure and current are recorded. `flats` `(k, h', w')`: the
    single frames on the working grid, scaled alike; `before` `(k,)`: frames taken before each.
    None where only the mean is known, or the order is not. `photons`: detected ones per count of the
    mean, from how the flats differ; None where there are fewer than two. `flat`: single frame number i,
    `(h, w)`, scaled alike.
    """

    counts: NDArray[np.float32]
    log_exposure: NDArray[np.float64]
    absolute: bool
    origin: str
    flats: NDArray[np.float32] | None = None
    before: NDArray[np.intp] | None = None
    photons: float | None = None
    flat: Callable[[int], NDArray[np.float32]] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()  # which flats were left out, and why


def mean_reference(match: MatchedReferences, dark: NDArray[np.float32], factor: int) -> Reference:
    """Mean of the matched flats, each scaled to the scan's exposure and current.

    `factor` is the bin of the working grid, on which the single flats are kept.
    """
    group = match.references
    own = dark if group.darks is None else mean_frame(group.darks)
    total = np.zeros(group.frames.shape[1:], np.float64)

    def flat(i: int) -> NDArray[np.float32]:
        counts = group.frames.read(i, i + 1)[0].astype(np.float64) - own
        return (counts * match.scale[i]).astype(np.float32)

    small = []
    pairs = Pairs()
    for i in range(group.frames.shape[0]):
        counts = flat(i)
        total += counts
        pairs.also(counts)
        small.append(bin_mean(torch.from_numpy(counts[None]), factor)[0].numpy())
    return Reference(
        (total / group.frames.shape[0]).astype(np.float32),
        np.log(match.frame_scale),
        match.absolute,
        group.origin,
        np.array(small, np.float32),
        group.before,
        pairs.of_mean(),
        flat,
    )


def level_of(fields: Fields, lit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean log over lit pixels: `(k, h, w)` -> `(k,)`."""
    return fields[:, lit].mean(1, dtype=np.float64)


def steady_levels(
    fields: Fields, lit: NDArray[np.bool_], expected: NDArray[np.float64] | None
) -> Fields:
    """Make the key frames' brightness follow what is expected of it, but for one constant.

    The shape of a background is generated well, its level less so: a sample that covers much of a
    frame hides it. `expected` `(k,)`, natural log: from recorded exposures and ring current; None leaves
    everything as it is.
    """
    if expected is None:
        return fields
    excess = level_of(fields, lit) - expected
    return fields - (excess - np.median(excess)).astype(np.float32)[:, None, None]


def anchor(
    fields: Fields,
    lit: NDArray[np.bool_],
    log_exposure: NDArray[np.float64],
    reference: Reference,
    factor: int,
) -> Fields:
    """Shift all key frames so that their level is that of a matching reference.

    By the median of what they differ: a corner without light, where a field has its floor and the
    reference next to nothing, must not count.
    """
    small = bin_mean(torch.from_numpy(reference.counts)[None], factor).numpy()
    apart = (np.log(np.maximum(small, LEAST)) - fields)[:, lit]
    shift = np.median(apart, axis=1) + log_exposure
    return fields + shift.astype(np.float32)[:, None, None]


def amplitudes(
    survey: Survey,
    fields: Fields,
    keys: Index,
    jumps: Index,
    lit: NDArray[np.bool_],
    log_exposure: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Brightness `(n,)` of every frame relative to its interpolated background; 1 at key frames.

    From the recorded current where there is one; otherwise from how the median over lit pixels of
    log(frame / background) departs from its course between key frames.
    """
    n = len(survey.small)
    course = (
        log_exposure
        if log_exposure is not None
        else np.array([_residual(survey, fields, keys, jumps, lit, i) for i in range(n)])
    )
    between = np.array([interpolate(course[keys], keys, jumps, i) for i in range(n)])
    departure = np.where(survey.usable, course - between, 0.0)
    return np.exp(departure)


def _residual(
    survey: Survey, fields: Fields, keys: Index, jumps: Index, lit: NDArray[np.bool_], i: int
) -> float:
    background = interpolate(fields, keys, jumps, i)[lit]
    return float(np.median(np.log(np.maximum(survey.small[i][lit], LEAST)) - background))
