"""NXtomo: one stack in which `image_key` tells projections (0), flats (1), darks (2), invalid (3)."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import FormatError
from txmcorrect.formats import hdf5
from txmcorrect.formats.source import empty_warning
from txmcorrect.scan import FloatArray, FrameView, Optics, References, Scan

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
        index = _indices(key, PROJECTION)
        if len(index) == 0:
            raise FormatError(
                f"{path}: expected projections (image_key 0), got none in {len(key)} frames"
            )
        n = len(index)
        projections = FrameView(frames, index)
        values = _FrameValues(entry, detector, len(key))
        theta = values.get(("sample/rotation_angle", "data/rotation_angle"), "degrees")
        exposure = values.get(("count_time",), "s", within=detector)
        current = values.get(("control/data",), "ma")
        time = values.times()
        flat = _indices(key, FLAT)
        darks = FrameView(frames, _indices(key, DARK)) if (key == DARK).any() else None
        optics = _optics(entry, detector)
        flats = References(
            frames=FrameView(frames, flat),
            optics=optics,
            before=np.cumsum(key == PROJECTION)[flat].astype(np.intp),
            time_s=_at(time, flat),
            exposure_s=_at(exposure, flat),
            current_ma=_at(current, flat),
            darks=darks,
            origin=f"{path.name}:image_key 1",
        )
        corrected = "process/txmcorrect" in entry or "/process/txmcorrect" in file
        invalid = int(((key < PROJECTION) | (key > DARK)).sum())
    notes = (f"{invalid} frames are marked invalid and left out",) if invalid else ()
    return Scan(
        path=path,
        format="nxtomo",
        projections=projections,
        flats=(flats,) if len(flat) else (),
        darks=darks,
        theta=_at(theta, index),
        time_s=_at(time, index),
        exposure_s=_at(exposure, index),
        current_ma=_at(current, index),
        energy_ev=None if optics.energy_ev is None else np.full(n, optics.energy_ev),
        optics=optics,
        corrected_by="txmcorrect" if corrected else "",
        warnings=notes + empty_warning(projections),
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


class _FrameValues:
    """Numbers that an entry gives for all frames, of any kind, in order."""

    def __init__(self, entry: h5py.Group, detector: h5py.Group, count: int) -> None:
        self._entry, self._detector, self._count = entry, detector, count

    def get(
        self, names: tuple[str, ...], unit: str, within: h5py.Group | None = None
    ) -> FloatArray | None:
        values = hdf5.first_values(within or self._entry, names, unit)
        if values is not None and len(values) > self._count > 1:
            values = values[: self._count]
        return hdf5.per_frame(values, self._count)

    def times(self) -> FloatArray | None:
        """POSIX seconds: stamps beside the data, counted from `start_time` when they are small."""
        stamps = self.get(("time", "timestamp", "frame_time"), "s", within=self._detector)
        if stamps is None or np.ptp(stamps) == 0:
            return None
        start = hdf5.start_seconds(self._entry, ("start_time",))
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
