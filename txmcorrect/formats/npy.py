"""NumPy `.npy` arrays, mapped rather than loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.formats.source import empty_warning
from txmcorrect.scan import Array, Scan


@dataclass(frozen=True)
class NpyFrames:
    """Frames `(n, h, w)` of a `.npy` file; a single `(h, w)` image counts as one frame."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> Array:
        array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.array(array.reshape(self.shape)[start:stop])


def open_npy(path: Path) -> Scan:
    """Describe a `.npy` file.

    Raises
    ------
    FormatError : cut short, pickled objects, or not frames of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is parsed as Python and fails as that may
        raise FormatError(f"{path}: unreadable NumPy file ({error})") from None
    if array.ndim not in (2, 3) or array.dtype.kind not in "uifb" or array.size == 0:
        raise FormatError(
            f"{path}: expected frames (n, height, width) of numbers, got {array.dtype} {array.shape}"
        )
    n, h, w = array.shape if array.ndim == 3 else (1, *array.shape)
    frames = NpyFrames(path, (n, h, w), array.dtype)
    return Scan(path=path, format="npy", projections=frames, warnings=empty_warning(frames))
