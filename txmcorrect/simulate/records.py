"""What a scan's records say about exposures and ring currents: all, nothing, some, or wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXPOSURE_S = 1.0
FULL_MA = 200.0
CURRENT_STEP = 0.04  # of the full current: how some ion chambers are read


@dataclass(frozen=True)
class Records:
    """Exposures in s and currents in mA, one an exposure, as recorded; None: not recorded.

    `times`: whether the file says when its exposures were taken.
    """

    exposure_s: NDArray[np.float64] | None
    current_ma: NDArray[np.float64] | None
    flats_exposure_s: NDArray[np.float64] | None
    flats_current_ma: NDArray[np.float64] | None
    bank_exposure_s: NDArray[np.float64] | None
    bank_current_ma: NDArray[np.float64] | None
    times: bool = True


Values = NDArray[np.float64]
# From true values to recorded ones, for currents; None: not recorded.
CURRENTS: dict[str, Callable[[Values], Values | None]] = {
    "full": lambda current: current,
    "none": lambda current: None,
    "partial": lambda current: None,
    "wrong": lambda current: np.full_like(current, FULL_MA),
    "quantised": lambda current: (
        np.rint(current / (CURRENT_STEP * FULL_MA)) * (CURRENT_STEP * FULL_MA)
    ),
}


def record(kind: str, exposures: Sequence[Values], currents: Sequence[Values]) -> Records:
    """Records of a kind in `CURRENTS`, from what is true of frames, flats and bank.

    `full`: all, truly. `none`: nothing, not even times. `partial`: exposures and times. `wrong`: a constant
    current, whatever the beam does. `quantised`: currents in steps of 4 %.
    """
    known = kind != "none"
    exposure = [e if known else None for e in exposures]
    current = [CURRENTS[kind](c) for c in currents]
    return Records(
        exposure[0], current[0], exposure[1], current[1], exposure[2], current[2], times=known
    )
