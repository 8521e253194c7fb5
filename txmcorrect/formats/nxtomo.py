"""NXtomo: one stack in which `image_key` tells projections (0), flats (1), darks (2), invalid (3)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import FormatError
from txmcorrect.formats import hdf5
from txmcorrect.formats.source import empty_warning
from txmcorrect.scan import FloatArray, Frames, FrameView, Optics, References, Scan

PROJECTION, FLAT, DARK = 0, 1, 2


def find_entry(file: h5py.File) -> h5py.Group | None:
    """Return the first group that has an image key beside its data, whatever its name."""
    for item in file.values():
        if isinstance(item, h5py.Group) and _detector(item) is not None:
            return item
    return None


def _detector(entry: h5py.Group) -> h5py.Group | None:
    """The detector with `data` and `image_key`; its name varies too."""
    instrument = entry.get("instrument")
    if not isinstance(instrument, h5py.Group):
        return None
    for item in instrument.values():
        if isinstance(item, h5py.Group) and "data" in item and "image_key" in item:
            return item
    return None


def open_nxtomo(path: Path) -> Scan:
    """Describe an NXtomo file.

    Raises
    ------
    FormatError : no projection, or a key that does not fit the stack.
    """
    with hdf5.open_hdf5(path) as file:
        entry, detector, frames, key = _parse(path, file)
        record = _read_record(entry, detector, len(key))
        optics = _optics(entry, detector)
        corrected = "process/txmcorrect" in entry or "/process/txmcorrect" in file
    index = _indices(key, PROJECTION)
    if len(index) == 0:
        raise FormatError(
            f"{path}: expected projections (image_key 0), got none in {len(key)} frames"
        )
    projections = FrameView(frames, index)
    darks = FrameView(frames, _indices(key, DARK)) if (key == DARK).any() else None
    invalid = int(((key < PROJECTION) | (key > DARK)).sum())
    notes = (f"{invalid} frames are marked invalid and left out",) if invalid else ()
    return Scan(
        path=path,
        format="nxtomo",
        projections=projections,
        flats=_flats(path, frames, key, record, optics, darks),
        darks=darks,
        theta=_at(record.theta, index),
        time_s=_at(record.time, index),
        exposure_s=_at(record.exposure, index),
        current_ma=_at(record.current, index),
        energy_ev=None if optics.energy_ev is None else np.full(len(index), optics.energy_ev),
        optics=optics,
        corrected_by="txmcorrect" if corrected else "",
        warnings=notes + empty_warning(projections),
    )


def _flats(
    path: Path,
    frames: Frames,
    key: NDArray[np.int64],
    record: _Record,
    optics: Optics,
    darks: Frames | None,
) -> tuple[References, ...]:
    """The flats, each with the number of projections before it."""
    index = _indices(key, FLAT)
    if len(index) == 0:
        return ()
    return (
        References(
            frames=FrameView(frames, index),
            optics=optics,
            before=np.cumsum(key == PROJECTION)[index].astype(np.intp),
            time_s=_at(record.time, index),
            exposure_s=_at(record.exposure, index),
            current_ma=_at(record.current, index),
            darks=darks,
            origin=f"{path.name}:image_key 1",
        ),
    )


def open_nxtomo_references(path: Path) -> tuple[References, ...]:
    """Read the flats of an NXtomo file, or, where it has none, its projections.

    Raises
    ------
    FormatError : the file has neither.
    """
    scan = open_nxtomo(path)
    return scan.flats or (
        References(
            frames=scan.projections,
            optics=scan.optics,
            time_s=scan.time_s,
            exposure_s=scan.exposure_s,
            current_ma=scan.current_ma,
            darks=scan.darks,
            origin=f"{path.name}:image_key 0",
        ),
    )


def _parse(
    path: Path, file: h5py.File
) -> tuple[h5py.Group, h5py.Group, hdf5.Hdf5Frames, NDArray[np.int64]]:
    entry = find_entry(file)
    detector = None if entry is None else _detector(entry)
    assert entry is not None and detector is not None
    frames = hdf5.frames_of(path, detector["data"])
    key = np.asarray(detector["image_key"][()]).astype(np.int64).ravel()
    if len(key) < frames.shape[0]:
        raise FormatError(
            f"{path}: image_key has {len(key)} entries for {frames.shape[0]} frames; expected one each"
        )
    return entry, detector, frames, key[: frames.shape[0]]


def _indices(key: NDArray[np.int64], kind: int) -> NDArray[np.intp]:
    return np.flatnonzero(key == kind)


def _at(values: FloatArray | None, index: NDArray[np.intp]) -> FloatArray | None:
    return None if values is None else values[index]


class _Record(NamedTuple):
    """Numbers for all frames, of any kind, in order; None where the file does not say."""

    theta: FloatArray | None
    exposure: FloatArray | None
    current: FloatArray | None
    time: FloatArray | None


def _read_record(entry: h5py.Group, detector: h5py.Group, count: int) -> _Record:
    def get(group: h5py.Group, names: tuple[str, ...], unit: str) -> FloatArray | None:
        values = hdf5.first_values(group, names, unit)
        if values is not None and len(values) > count > 1:
            values = values[:count]
        return hdf5.per_frame(values, count)

    stamps = get(detector, ("time", "timestamp", "frame_time"), "s")
    return _Record(
        theta=get(entry, ("sample/rotation_angle", "data/rotation_angle"), "degrees"),
        exposure=get(detector, ("count_time",), "s"),
        current=get(entry, ("control/data",), "ma"),
        time=None if stamps is None else _posix(entry, stamps),
    )


def _posix(entry: h5py.Group, stamps: FloatArray) -> FloatArray | None:
    """Stamps beside the data, counted from `start_time` when they are small."""
    if np.ptp(stamps) == 0:
        return None
    start = hdf5.start_seconds(entry, ("start_time",))
    return stamps + start if stamps.max() < 1e8 and np.isfinite(start) else stamps


def _optics(entry: h5py.Group, detector: h5py.Group) -> Optics:
    def number(names: tuple[str, ...], unit: str, within: h5py.Group = entry) -> float | None:
        values = hdf5.first_values(within, names, unit)
        middle = 0.0 if values is None else float(np.median(values))
        return middle if middle > 0 else None

    energy = number(("instrument/beam/incident_energy", "instrument/beam/energy", "beam/incident_energy",
                     "sample/beam/incident_energy", "instrument/monochromator/energy"), "kev")  # fmt: skip
    size = number(("sample/x_pixel_size", "data/x_pixel_size"), "m") or number(
        ("x_pixel_size",), "m", detector
    )
    y, x = number(("y_binning",), "", detector), number(("x_binning",), "", detector)
    return Optics(
        energy_ev=energy,
        pixel_size_nm=size,
        magnification=number(("magnification",), "", detector),
        binning=(int(y), int(x)) if y and x else None,
    )
