"""APS Data Exchange, and any HDF5 layout whose datasets the user names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import FormatError
from txmcorrect.formats import hdf5
from txmcorrect.formats.source import Where, empty_warning
from txmcorrect.scan import FloatArray, FrameView, Optics, References, Scan

DATA, FLAT, DARK, ANGLE = (
    f"/exchange/{name}" for name in ("data", "data_white", "data_dark", "theta")
)
OURS = "/process/txmcorrect"

_M, _A = "/measurement/instrument", "/process/acquisition"


class Field(NamedTuple):
    """Where a quantity may lie, best first, and its unit where the file does not say."""

    paths: tuple[str, ...]
    unit: str


# Scalars hold for the whole scan; arrays have one value a frame.
FIELDS: dict[str, Field] = {
    "exposure": Field((f"{_M}/detector/exposure_time",), "s"),
    "flat_exposure": Field((f"{_A}/flat_fields/flat_exposure_time",), "s"),
    "current": Field((f"{_M}/source/current",), "ma"),
    "flat_current": Field((f"{_A}/flat_fields/current",), "ma"),
    "energy": Field((f"{_M}/monochromator/energy",), "kev"),
    "pixel_size": Field(
        (f"{_M}/detection_system/objective/resolution", f"{_M}/detector/actual_pixel_size_x"), "um"
    ),
    "magnification": Field(
        (f"{_M}/detection_system/objective/magnification", f"{_M}/magnification"), ""
    ),
    "binning_y": Field((f"{_M}/detector/binning_y",), ""),
    "binning_x": Field((f"{_M}/detector/binning_x",), ""),
    "time": Field(("/exchange/time",), "s"),
    "flat_before": Field((f"{_A}/flat_fields/projections_before",), ""),
    "flat_time": Field(("/exchange/time_white",), "s"),
    "position_y": Field((f"{_M}/sample_motor_stack/setup/y",), "um"),
    "position_x": Field((f"{_M}/sample_motor_stack/setup/x",), "um"),
    "rows": Field((f"{_A}/mosaic/rows",), ""),
    "columns": Field((f"{_A}/mosaic/columns",), ""),
}
# Written for every frame of any kind, in order, by areaDetector; seconds since 1990.
FRAME_KIND, FRAME_TIME, EPICS_EPOCH = (
    "/defaults/HDF5FrameLocation",
    "/defaults/NDArrayTimeStamp",
    631152000.0,
)


def read_field(file: h5py.File, name: str) -> FloatArray | None:
    """Read one of `FIELDS` in our units (eV, nm, s, mA, radians)."""
    return hdf5.first_values(file, *FIELDS[name])


def open_exchange(path: Path, where: Where) -> Scan:
    """Describe a Data Exchange file, or one whose datasets `where` names.

    Raises
    ------
    FormatError : a dataset is missing or is no stack of frames.
    """
    with hdf5.open_hdf5(path) as file:
        data = hdf5.get_dataset(file, where.data or DATA, "--data-path")
        projections = hdf5.frames_of(path, data)
        n, h, w = projections.shape
        energies = data.shape[0] if data.ndim == 4 else 1
        flats = _references(file, path, where, n, energies)
        darks = _optional(file, path, where.dark, DARK, "--dark-path")
        theta, notes = _theta(file, where, n // energies)
        theta = None if theta is None else np.tile(theta, energies)
        time = _time(file, n)

        def spread(name: str) -> FloatArray | None:
            return hdf5.per_energy_or_frame(read_field(file, name), energies, n)

        scan = Scan(
            path=path,
            format="data exchange" if (where.data or DATA) == DATA else "hdf5",
            projections=projections,
            flats=flats,
            darks=darks,
            theta=theta,
            time_s=time,
            exposure_s=spread("exposure"),
            current_ma=spread("current"),
            energy_ev=spread("energy"),
            position_um=_positions(file, n),
            mosaic_shape=_mosaic(file),
            energies=energies,
            optics=_optics(file),
            corrected_by="txmcorrect" if OURS in file and projections.name == DATA else "",
            warnings=notes,
        )
    if darks is not None and darks.shape[1:] != (h, w):
        raise FormatError(
            f"{path}: darks are {darks.shape[1]}x{darks.shape[2]} but frames {h}x{w}; "
            "name other darks with --dark-path"
        )
    return replace(scan, warnings=scan.warnings + empty_warning(projections))


def open_exchange_references(path: Path, where: Where) -> tuple[References, ...]:
    """Read `/exchange/data_white`, or else `/exchange/data`, as references."""
    with hdf5.open_hdf5(path) as file:
        name = where.flat or (FLAT if FLAT in file else where.data or DATA)
        if name == DATA and OURS in file:
            raise FormatError(
                f"{path}: expected raw references, got frames txmcorrect has corrected"
            )
        flats = _references(file, path, Where(where.data, name, where.dark, where.angle), 0, 1)
    assert flats
    return flats


def _optional(
    file: h5py.File, path: Path, given: str | None, usual: str, flag: str
) -> hdf5.Hdf5Frames | None:
    """A dataset that must exist only if the user names it; an empty usual one counts as none."""
    if given is None and (not isinstance(file.get(usual), h5py.Dataset) or not file[usual].size):
        return None
    return hdf5.frames_of(path, hdf5.get_dataset(file, given or usual, flag))


def _references(
    file: h5py.File, path: Path, where: Where, n: int, energies: int
) -> tuple[References, ...]:
    """The flats of a file; exposure and current fall back on those of its projections.

    `n` projections of all energies. Flats `(e, m, h, w)` are a group for each energy, and so are
    flats `(e, h, w)` of an energy stack: one each.
    """
    frames = _optional(file, path, where.flat, FLAT, "--flat-path")
    if frames is None:
        return ()
    m = frames.shape[0]
    data = where.data or DATA
    is_white = frames.name != data and data in file  # else the file is about references alone
    before, time = _flat_order(file, frames.name, n, m) if is_white else (None, _time(file, m))
    flats = References(
        frames=frames,
        optics=_optics(file),
        before=before,
        time_s=time,
        exposure_s=_of_flats(file, "exposure", m, is_white),
        current_ma=_of_flats(file, "current", m, is_white),
        darks=_optional(file, path, where.dark, DARK, "--dark-path"),
        origin=f"{path.name}:{frames.name}",
    )
    groups = file[frames.name].shape[0] if file[frames.name].ndim == 4 else 1
    if groups == 1 and energies > 1 and m == energies:
        groups = energies
    return (flats,) if groups == 1 else _by_energy(file, flats, groups)


def _by_energy(file: h5py.File, flats: References, groups: int) -> tuple[References, ...]:
    """Flats of an energy stack, energy by energy; their order within one is not known."""
    m = flats.frames.shape[0]
    energy = hdf5.per_energy_or_frame(read_field(file, "energy"), groups, m)
    energy = None if energy is None else energy[:: m // groups]

    def some(values: FloatArray | None, chosen: NDArray[np.intp]) -> FloatArray | None:
        return None if values is None else values[chosen]

    found = []
    for number, chosen in enumerate(np.arange(m, dtype=np.intp).reshape(groups, -1)):
        optics = flats.optics
        if energy is not None:
            optics = replace(optics, energy_ev=float(energy[number]))
        found.append(
            replace(
                flats,
                frames=FrameView(flats.frames, chosen),
                optics=optics,
                before=None,
                time_s=some(flats.time_s, chosen),
                exposure_s=some(flats.exposure_s, chosen),
                current_ma=some(flats.current_ma, chosen),
                energy_number=number,
            )
        )
    return tuple(found)


def _of_flats(file: h5py.File, quantity: str, m: int, is_white: bool) -> FloatArray | None:
    """Exposure or current of the flats: their own, or the single value of the whole file."""
    own = read_field(file, f"flat_{quantity}") if is_white else None
    shared = read_field(file, quantity)
    if own is None and shared is not None and is_white and np.ptp(shared) == 0:
        shared = shared[:1]
    elif own is None and is_white:
        shared = None
    return hdf5.per_frame(shared if own is None else own, m)


def _flat_order(
    file: h5py.File, name: str, n: int, m: int
) -> tuple[NDArray[np.intp] | None, FloatArray | None]:
    """Count the projections taken before each flat: as recorded, by areaDetector's log, or by time."""
    kinds = file.get(FRAME_KIND)
    own = hdf5.per_frame(read_field(file, "flat_time"), m)
    recorded = hdf5.per_frame(read_field(file, "flat_before"), m)
    if recorded is not None:
        return recorded.astype(np.intp), own
    if isinstance(kinds, h5py.Dataset):
        labels = np.array([hdf5.text_of(k) for k in kinds[()].ravel()])
        is_flat = labels == name
        if is_flat.sum() == m:
            before = np.cumsum(labels == DATA)[is_flat].astype(np.intp)
            stamps = hdf5.first_values(file, (FRAME_TIME,), "s")
            if own is None and stamps is not None and len(stamps) == len(labels):
                own = stamps[is_flat] + EPICS_EPOCH
            return before, own
    times = _time(file, n)
    if own is None or times is None or len(own) == 1 < m:
        return None, own
    return np.searchsorted(times, own).astype(np.intp), own


def _time(file: h5py.File, n: int) -> FloatArray | None:
    """POSIX seconds of the projections, from `/exchange/time` or areaDetector's stamps."""
    own = read_field(file, "time")
    if own is not None and len(own) == n:
        return own
    stamps = hdf5.first_values(file, (FRAME_TIME,), "s")
    kinds = file.get(FRAME_KIND)
    if stamps is None:
        return None
    if isinstance(kinds, h5py.Dataset):
        labels = np.array([hdf5.text_of(k) for k in kinds[()].ravel()])
        stamps = stamps[labels == DATA] if len(labels) == len(stamps) else stamps
    return stamps + EPICS_EPOCH if len(stamps) == n else None


def _theta(file: h5py.File, where: Where, n: int) -> tuple[FloatArray | None, tuple[str, ...]]:
    """Angles in radians, and what was odd about them."""
    if where.angle is None and not isinstance(file.get(ANGLE), h5py.Dataset):
        return None, ()
    data = hdf5.get_dataset(file, where.angle or ANGLE, "--angle-path")
    theta = hdf5.values_of(data, "degrees")
    if theta is None or len(theta) < n or not np.isfinite(theta[:n]).all():
        count = "no numbers" if theta is None else f"{len(theta)} angles"
        return None, (f"{data.name} has {count} for {n} frames and is not used",)
    notes = []
    if len(theta) > n:
        notes.append(f"{data.name} has {len(theta)} angles for {n} frames; the first {n} are used")
    units = hdf5.text_of(data.attrs.get("units", "")).strip().lower()
    if units not in hdf5.UNITS:
        notes.append(
            f"{data.name} has {'no units' if not units else f'units {units!r}'}: degrees assumed"
        )
    return theta[:n], tuple(notes)


def _positions(file: h5py.File, n: int) -> FloatArray | None:
    """Stage (y, x) of each frame in um; None unless every frame has one."""
    y, x = read_field(file, "position_y"), read_field(file, "position_x")
    if y is None or x is None or len(y) != n or len(x) != n:
        return None
    return np.stack([y, x], 1) / hdf5.UNITS["um"]


def _scalar(file: h5py.File, name: str) -> float | None:
    """A positive number that holds for the whole file, else None."""
    values = read_field(file, name)
    middle = 0.0 if values is None else float(np.median(values))
    return middle if middle > 0 else None


def _mosaic(file: h5py.File) -> tuple[int, int] | None:
    rows, columns = _scalar(file, "rows"), _scalar(file, "columns")
    return (int(rows), int(columns)) if rows and columns else None


def _optics(file: h5py.File) -> Optics:
    binning = _scalar(file, "binning_y"), _scalar(file, "binning_x")
    return Optics(
        energy_ev=_scalar(file, "energy"),
        pixel_size_nm=_scalar(file, "pixel_size"),
        magnification=_scalar(file, "magnification"),
        binning=(int(binning[0]), int(binning[1])) if binning[0] and binning[1] else None,
    )
