"""Every frame of a scan on the working grid, however long the scan is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.team import Pieces

Image = NDArray[np.float32]

IN_MEMORY = 128 * 2**20  # bytes; what is older is read again where it is asked for


class Thumbnails:
    """Frames `(n, h, w)` that lie in pieces of `unit` frames; indexed as an array is, along frames.

    Attributes
    ----------
    shape : (n, h, w). over : `(h, w)` that all frames are divided by, or None.
    """

    def __init__(
        self,
        pieces: Pieces,
        kind: str,
        unit: int,
        shape: tuple[int, int, int],
        over: Image | None = None,
    ) -> None:
        self.shape, self.over = shape, over
        self._pieces, self._kind, self._unit = pieces, kind, unit
        size = unit * shape[1] * shape[2] * 4
        self._piece = lru_cache(max(IN_MEMORY // size, 2))(self._read)

    def divided(self, over: Image) -> Thumbnails:
        """The same frames over `(h, w)`."""
        assert self.over is None
        return Thumbnails(self._pieces, self._kind, self._unit, self.shape, over)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Any) -> Image:
        """One frame `(h, w)` for a number, several `(k, h, w)` for numbers or a mask."""
        if np.ndim(which) == 0:
            piece, row = divmod(int(which), self._unit)
            return self._piece(piece)[row]
        chosen = np.asarray(which)
        if chosen.dtype == np.bool_:
            chosen = np.flatnonzero(chosen)
        found = np.empty((len(chosen), *self.shape[1:]), np.float32)
        for k, i in enumerate(chosen):
            found[k] = self[i]
        return found

    def _read(self, number: int) -> Image:
        found: Image = self._pieces.get(self._kind, number, ("small",))["small"]
        return found if self.over is None else found / self.over


Small = Image | Thumbnails
