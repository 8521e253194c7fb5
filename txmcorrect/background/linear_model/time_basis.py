"""How weights change through a scan: an offset and a slow walk, as a few functions of time.

The walk is Brownian, seen through its Karhunen-Loeve functions over the scan; what differs from frame to frame
without memory is no function of time and has a variance of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WAVES = 6  # of the walk; half a period each more


def time_basis(time: Array) -> Array:
    """Offset, then cosines of the walk, at times `(n,)` from 0 to 1: `(n, 1 + WAVES)`.

    Weights of independent unit deviation make a walk of about unit deviation between both ends.
    """
    order = np.arange(1, WAVES + 1)
    waves = np.sqrt(2) / (np.pi * order) * np.cos(np.pi * order * np.asarray(time, float)[:, None])
    return np.concatenate([np.ones((len(waves), 1)), waves], 1)
