"""HDF5 files of any layout: opened read-only for each block, found by path or by convention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.formats.source import iso_seconds
from txmcorrect.scan import Array, FloatArray

COLOURS = 4  # a last axis this short is no width
LIBRARY_MESSAGES = ("Unable to", "Can't", "Object visitation failed", "Link iteration failed")


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, without locks, also while a SWMR writer appends to it.

    Raises
    ------
    FormatError : the file is truncated or damaged, was not closed by its writer, or is not HDF5.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        file = _open_while_written(path, str(error))
    with file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            # The library reports damage as any of these; the messages are its own.
            if not str(error).strip("'\"").startswith(LIBRARY_MESSAGES):
                raise
            reason = str(error).strip("'\"").splitlines()[0][:120]
            raise FormatError(f"{path}: damaged HDF5 file ({reason}); copy it again") from None


def _open_while_written(path: Path, reason: str) -> h5py.File:
    """Try again as a reader of a file that is being written; else explain."""
    if "SWMR" in reason or "already open" in reason:
        try:
            return h5py.File(path, "r", swmr=True, locking=False)
        except OSError:
            raise FormatError(
                f"{path}: still open for writing, or its writer was killed; wait until it is closed, "
                "or run `h5clear -s` on a copy"
            ) from None
    if "truncated" in reason:
        raise FormatError(f"{path}: truncated HDF5 file; copy it again, it is shorter than it says")
    raise FormatError(f"{path}: unreadable HDF5 file ({reason.splitlines()[0][:120]})")


@dataclass(frozen=True)
class Hdf5Frames:
    """A dataset `(n, h, w)`, one frame `(h, w)`, or `(e, n, h, w)` taken as e x n frames.

    It is read block by block; no handle stays open.
    """

    path: Path
    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> Array:
        with open_hdf5(self.path) as file:
            data = file[self.name]
            try:
                block = read_frames(data, start, min(stop, self.shape[0]))
            except OSError as error:
                raise FormatError(
                    f"{self.path}: frames {start} to {stop - 1} of {self.name} cannot be read ({error})"
                ) from None
        return np.asarray(block)


def read_frames(data: h5py.Dataset, start: int, stop: int) -> Array:
    """Frames of a dataset of two to four axes, counted through all but the last two."""
    if data.ndim == 2:
        return np.asarray(data[()][np.newaxis][start:stop])
    if data.ndim == 3:
        return np.asarray(data[start:stop])
    count = data.shape[1]
    blocks = [np.empty((0, *data.shape[2:]), data.dtype)]
    while start < stop:
        group, first = divmod(start, count)
        last = min(first + stop - start, count)
        blocks.append(data[group, first:last])
        start += last - first
    return np.concatenate(blocks)


def frames_of(path: Path, data: h5py.Dataset) -> Hdf5Frames:
    """Describe a dataset as frames.

    Raises
    ------
    FormatError : it is not a stack of grey frames, or is empty.
    """
    shape = (1, *data.shape) if data.ndim == 2 else data.shape
    if len(shape) == 4 and shape[3] > COLOURS:
        shape = (shape[0] * shape[1], *shape[2:])
    if len(shape) != 3 or data.dtype.kind not in "uifb":
        raise FormatError(
            f"{path}: expected frames (n, height, width), or (energies, n, height, width), "
            f"of numbers at {data.name}, "
            f"got {data.dtype} {data.shape}; name another dataset with --data-path"
        )
    if 0 in shape:
        raise FormatError(f"{path}: {data.name} holds no frames (its shape is {data.shape})")
    n, h, w = shape
    return Hdf5Frames(path, data.name, (n, h, w), data.dtype)


def get_dataset(file: h5py.File, name: str, flag: str) -> h5py.Dataset:
    """Return a dataset the user or the format names.

    Raises
    ------
    FormatError : there is none; the message lists those there are.
    """
    found = file.get(name)
    if isinstance(found, h5py.Dataset):
        return found
    raise FormatError(
        f"{file.filename}: no dataset {name}; it holds {list_stacks(file)}; name one with {flag}"
    )


def list_stacks(file: h5py.File) -> str:
    """Name the datasets that could hold frames, or else some of any kind."""
    names: dict[bool, list[str]] = {True: [], False: []}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names[item.ndim in (2, 3, 4)].append(f"/{name} {item.shape}")

    file.visititems(visit)
    listed = names[True] or names[False]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") if listed else "no datasets"


# Factors to our units, by the lower-case text of a `units` attribute.
UNITS: dict[str, float] = {
    "ev": 1.0, "kev": 1e3,
    "nm": 1.0, "um": 1e3, "µm": 1e3, "micron": 1e3, "microns": 1e3, "mm": 1e6, "m": 1e9,
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6,
    "ma": 1.0, "a": 1e3,
    "deg": np.pi / 180, "degree": np.pi / 180, "degrees": np.pi / 180,
    "rad": 1.0, "radian": 1.0, "radians": 1.0,
}  # fmt: skip


def text_of(value: Any) -> str:
    """Text of an attribute or scalar dataset, whichever way HDF5 stores it."""
    value = value[()] if isinstance(value, h5py.Dataset) else value
    value = value.flat[0] if isinstance(value, np.ndarray) and value.size else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def values_of(data: h5py.Dataset, unit: str) -> FloatArray | None:
    """Read numbers in our units; `unit` is assumed where the file does not say. None if no numbers."""
    if data.dtype.kind not in "uif" or data.ndim > 1:
        return None
    given = text_of(data.attrs.get("units", unit)).strip().lower()
    factor = UNITS.get(given, UNITS.get(unit, 1.0))
    return np.atleast_1d(np.asarray(data[()], np.float64)) * factor


def first_values(file: h5py.Group, names: tuple[str, ...], unit: str) -> FloatArray | None:
    """Read the first of several datasets that exists and holds finite numbers."""
    for name in names:
        data = file.get(name)
        values = values_of(data, unit) if isinstance(data, h5py.Dataset) else None
        if values is not None and values.size and np.isfinite(values).all():
            return values
    return None


def per_frame(values: FloatArray | None, n: int) -> FloatArray | None:
    """Spread a single number over n frames; None where the count fits neither."""
    if values is None or len(values) not in (1, n):
        return None
    return np.broadcast_to(values, n).copy()


def per_energy_or_frame(values: FloatArray | None, energies: int, n: int) -> FloatArray | None:
    """Spread numbers over n frames of an energy stack: one for all, or an energy, or a frame.

    `n` counts the frames of all energies. None where the count fits nothing.
    """
    if values is not None and energies > 1 and len(values) == energies:
        return np.repeat(values, n // energies)
    if values is not None and energies > 1 and len(values) == n // energies:
        return np.tile(values, energies)
    return per_frame(values, n)


def start_seconds(file: h5py.Group, names: tuple[str, ...]) -> float:
    """Read the first ISO date that can be read; NaN if none."""
    for name in names:
        data = file.get(name)
        if isinstance(data, h5py.Dataset) and data.size == 1:
            seconds = iso_seconds(text_of(data))
            if np.isfinite(seconds):
                return seconds
    return float("nan")
