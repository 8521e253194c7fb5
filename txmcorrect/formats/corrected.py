"""Reading a result back, lazily: transmission, background and, from both, raw counts."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import FormatError
from txmcorrect.formats.hdf5 import read_frames
from txmcorrect.formats.stored_background import key_weights, open_background
from txmcorrect.formats.write_process import GROUP
from txmcorrect.scan import Array, FloatArray

__all__ = ["Corrected", "key_weights", "read_result"]

CACHE = 2**20  # bytes, as HDF5 has it


class DatasetFrames:
    """A stack inside an open HDF5 file, read piece by piece; `offset` frames are passed over."""

    def __init__(self, dataset: h5py.Dataset, count: int) -> None:
        self.dataset = dataset
        self.shape: tuple[int, int, int] = (count, *dataset.shape[-2:])
        self.dtype: np.dtype[Any] = dataset.dtype

    def read(self, start: int, stop: int) -> Array:
        """Return frames `start:stop`."""
        return read_frames(self.dataset, start, min(stop, self.shape[0]))


class Corrected:
    """An open result of `correct`, in Data Exchange or NXtomo layout.

    Attributes
    ----------
    transmission : lazy frames `(n, h, w)`. theta : `(n,)` radians or None.
    key_index, jump_index, amplitude, flag, flag_names, lit, dark, scale, verdict, options,
    model_sha256, seed : see `write_process.Process`. version : program that wrote it.
    """

    def __init__(self, path: Path, cache: int) -> None:
        self.path = path
        self._file = _open(path, cache)
        group = self._group = self._file[GROUP]
        self.amplitude: FloatArray = group["amplitude"][()]
        self.transmission = DatasetFrames(self._find("data"), len(self.amplitude))
        self.shape = self.transmission.shape
        angles = self._find("theta")
        self.theta = None if angles is None else np.deg2rad(angles[: self.shape[0]])
        self.key_index: NDArray[np.int64] = group["key_index"][()]
        self.jump_index: NDArray[np.int64] = group["jump_index"][()]
        self.flag: NDArray[np.uint32] = group["flag"][()]
        bits = group["flag"].attrs["bits"]
        self.flag_names: tuple[str, ...] = () if isinstance(bits, h5py.Empty) else tuple(bits)
        self.lit: NDArray[np.bool_] = group["lit"][()].astype(bool)
        self.dark: NDArray[np.float32] = group["dark"][()]
        self.scale = str(group.attrs["scale"])
        self.verdict = str(group.attrs["verdict"])
        self.version = str(group.attrs["version"])
        self.options: dict[str, Any] = json.loads(group.attrs["options"])
        self.model_sha256 = str(group.attrs["model_sha256"])
        self.seed = int(group.attrs["seed"])
        self._background = open_background(group)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def log_background(self, frame: int) -> NDArray[np.float32]:
        """Return the interpolated log-background `(h, w)` of a frame."""
        return self._background.log(frame)

    def log_std(self, frame: int) -> NDArray[np.float32]:
        """Return the interpolated spread `(h, w)` of a frame's log-background."""
        return self._background.std(frame)

    def background(self, frame: int) -> NDArray[np.float32]:
        """Return the counts above dark `(h, w)` that a frame would have without the sample."""
        counts = np.exp(self.log_background(frame)) * np.float32(self.amplitude[frame])
        return np.asarray(counts, dtype=np.float32)

    def raw(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return raw counts `(m, h, w)`, right within rounding where `lit`, NaN elsewhere."""
        frames = self.transmission.read(start, stop)
        for i, frame in enumerate(frames, start):
            frame *= self.background(i)
            frame += self.dark
            frame[~self.lit] = np.nan
        return frames

    def _find(self, what: str) -> Any:
        """Look up data or theta in whichever layout the file has."""
        places = {
            "data": ("exchange/data", "entry/instrument/detector/data"),
            "theta": ("exchange/theta", "entry/sample/rotation_angle"),
        }[what]
        return next((self._file[place] for place in places if place in self._file), None)


def read_result(path: Path, cache: int = CACHE) -> Corrected:
    """Open a result of `correct` for lazy reading; close it, or use it in a `with`.

    `cache` : bytes of chunks that are kept. A chunk holds several frames: who reads them one by one
    unpacks each chunk as many times, unless those of a slab are kept.

    Raises
    ------
    FormatError : the file is missing, is not HDF5, or was not written by `correct`.
    """
    return Corrected(path, cache)


def _open(path: Path, cache: int) -> h5py.File:
    try:
        file = h5py.File(path, "r", rdcc_nbytes=cache)
    except OSError as error:
        reason = "no such file" if not path.exists() else str(error)
        raise FormatError(f"{path}: expected a result of `txmcorrect correct` ({reason})") from None
    if GROUP not in file:
        file.close()
        raise FormatError(
            f"{path}: expected a result of `txmcorrect correct`, found no /{GROUP} in it; "
            "correct the scan first"
        )
    return file
