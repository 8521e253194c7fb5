"""The background inside a result: one image a key frame (layout 1), or what these are made of (layout 2)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import FormatError
from txmcorrect.formats.write_process import LAYOUT
from txmcorrect.working_grid import with_detail, with_grain

Image = NDArray[np.float32]


class StoredBackground(Protocol):
    """Log backgrounds without amplitudes, `(h, w)`, and their spread, made when asked for."""

    def log(self, frame: int) -> Image: ...

    def std(self, frame: int) -> Image: ...


def key_weights(
    key_index: NDArray[np.integer[Any]], jump_index: NDArray[np.integer[Any]], frame: int
) -> tuple[int, int, float]:
    """Between which key frames a frame lies, and how far.

    Parameters
    ----------
    key_index : `(k,)` rising frame numbers.
    jump_index : first frames after each jump, rising; nothing is interpolated across one.

    Returns
    -------
    left, right, t : the frame's log-background is `(1 - t) * key[left] + t * key[right]`.
    """
    right = int(np.searchsorted(key_index, frame, side="right"))
    left = right - 1
    if left < 0 or right == len(key_index):
        nearest = max(left, 0)
        return nearest, nearest, 0.0
    a, b = int(key_index[left]), int(key_index[right])
    first, after_last = np.searchsorted(jump_index, (a, b), side="right").tolist()
    if first < after_last:  # a side without a key frame of its own takes the nearer one's
        before, after = frame < jump_index[first], frame >= jump_index[after_last - 1]
        nearest = left if before or (not after and frame - a <= b - frame) else right
        return nearest, nearest, 0.0
    return left, right, (frame - a) / (b - a)


def open_background(group: h5py.Group) -> StoredBackground:
    """The background that a process group holds.

    Raises
    ------
    FormatError : a later version wrote it.
    """
    layout = int(group.attrs.get("layout", 1))
    if layout > LAYOUT:
        raise FormatError(
            f"{group.file.filename}: expected a background of layout {LAYOUT} or older, got {layout}, "
            f"written by version {group.attrs.get('version')}; read it with that one"
        )
    return _Images(group) if layout == 1 else _Fields(group)


class _Keys:
    """Values at key frames, read one key at a time, few of them kept."""

    def __init__(self, group: h5py.Group) -> None:
        self.group = group
        self.key_index: NDArray[np.int64] = group["key_index"][()]
        self.jump_index: NDArray[np.int64] = group["jump_index"][()]
        self._key = lru_cache(maxsize=4)(self._read)

    def at(self, name: str, frame: int) -> Image:
        """Values of a dataset `(k, ...)` at a frame, linear between key frames."""
        left, right, t = key_weights(self.key_index, self.jump_index, frame)
        if left == right:
            return self._key(name, left)
        return mixed(self._key(name, left), self._key(name, right), t)

    def _read(self, name: str, key: int) -> Image:
        image: Image = self.group[name][key]
        image.setflags(write=False)
        return image


def mixed(left: NDArray[Any], right: NDArray[Any], t: float) -> Image:
    """Float32 values at a fraction `t` of the way from one key frame to the next."""
    return np.asarray((1 - t) * left + t * right, np.float32)


class _Images:
    """Layout 1: `log_background` and `log_std` `(k, h, w)`."""

    def __init__(self, group: h5py.Group) -> None:
        self._keys = _Keys(group)

    def log(self, frame: int) -> Image:
        return self._keys.at("log_background", frame)

    def std(self, frame: int) -> Image:
        return self._keys.at("log_std", frame)


class _Fields:
    """Layout 2: see `write_process.Process`; the fine patterns of one part are kept."""

    def __init__(self, group: h5py.Group) -> None:
        self._keys, self._group = _Keys(group), group
        self._factor, self._grain = int(group["factor"][()]), float(group["grain"][()])
        self._share: NDArray[np.float64] = group["share"][()]
        self._part: NDArray[np.int64] | None = group["part"][()] if "part" in group else None
        self._shape: tuple[int, int] = group["detail"].shape[-2:]
        self._details = lru_cache(maxsize=1)(self._read_details)

    def log(self, frame: int) -> Image:
        left, right, t = key_weights(self._keys.key_index, self._keys.jump_index, frame)
        share = (1 - t) * self._share[left] + t * self._share[right]
        part = 0 if self._part is None else int(self._part[left])
        return with_detail(self._keys.at("field", frame), self._details(part), share, self._factor)

    def std(self, frame: int) -> Image:
        return with_grain(self._keys.at("field_std", frame), self._grain, self._factor, self._shape)

    def _read_details(self, part: int) -> Image:
        stored = self._group["detail"]
        return np.asarray(stored[()] if self._part is None else stored[part], np.float32)
