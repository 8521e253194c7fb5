"""Reading scans and references: `open_scan`, `open_references`. The format is told by content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.formats import exchange, hdf5, nxtomo
from txmcorrect.formats.arriving import Arriving, FilesArriving, FramesArriving
from txmcorrect.formats.folder import open_folder, readable_files
from txmcorrect.formats.inputs import open_mat, open_nifti, open_png
from txmcorrect.formats.npy import open_npy
from txmcorrect.formats.source import Where, sniff, unknown_file
from txmcorrect.formats.tiff import open_tiff
from txmcorrect.formats.xradia import open_xradia
from txmcorrect.scan import JoinedFrames, References, Scan

__all__ = [
    "as_references",
    "holds_references_alone",
    "open_arriving",
    "open_references",
    "open_scan",
]


def _open_hdf5(path: Path, where: Where) -> Scan:
    return (
        nxtomo.open_nxtomo(path) if _is_nxtomo(path, where) else exchange.open_exchange(path, where)
    )


def _is_nxtomo(path: Path, where: Where) -> bool:
    if where.data:
        return False
    with hdf5.open_hdf5(path) as file:
        return exchange.DATA not in file and nxtomo.find_entry(file) is not None


READERS: dict[str, Callable[[Path], Scan]] = {
    "xradia": open_xradia,
    "tiff": open_tiff,
    "npy": open_npy,
    "png": open_png,
    "mat": open_mat,
    "nifti": open_nifti,
}


def open_scan(
    path: str | Path,
    *,
    data_path: str | None = None,
    flat_path: str | None = None,
    dark_path: str | None = None,
    angle_path: str | None = None,
    reader: str = "own",
) -> Scan:
    """Open a scan without loading it.

    Parameters
    ----------
    path : HDF5 (Data Exchange, NXtomo, or any layout with the paths given), Xradia xrm/txrm,
        TIFF or NumPy file, or a folder of TIFF or xrm files in natural order.
    data_path, flat_path, dark_path, angle_path : HDF5 datasets to read instead of the usual.
    reader : "own", or "dxchange" to read through that package.

    Raises
    ------
    FormatError : what is there cannot be read; the message says why and the way out.
    """
    path, where = Path(path), Where(data_path, flat_path, dark_path, angle_path)
    return _open_through_dxchange(path) if reader == "dxchange" else _open(path, where)


def _open(path: Path, where: Where) -> Scan:
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder")
    if path.is_dir():
        return open_folder(path, lambda file: _open(file, where))
    kind = sniff(path)
    if kind == "hdf5":
        return _open_hdf5(path, where)
    if kind not in READERS:
        raise unknown_file(path)
    return READERS[kind](path)


def open_references(
    path: str | Path,
    *,
    data_path: str | None = None,
    flat_path: str | None = None,
    dark_path: str | None = None,
    angle_path: str | None = None,
    reader: str = "own",
) -> tuple[References, ...]:
    """Open references (flats) from a folder of TIFF or xrm files, a single file, or HDF5.

    An HDF5 file gives `/exchange/data_white`, or else `/exchange/data`; of a microscope's own
    files the images themselves are the references. Frames that differ in size or optics form
    separate groups.

    Raises
    ------
    FormatError : no reference can be read there.
    """
    path, where = Path(path), Where(data_path, flat_path, dark_path, angle_path)
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder")
    files = readable_files(path) if path.is_dir() else [path]
    return _grouped([group for file in files for group in _references_of(file, where, reader)])


def _references_of(path: Path, where: Where, reader: str) -> tuple[References, ...]:
    """All references of one file."""
    if reader == "own" and sniff(path) == "hdf5":
        if _is_nxtomo(path, where):
            return nxtomo.open_nxtomo_references(path)
        return exchange.open_exchange_references(path, where)
    if reader == "dxchange":
        scan = _open_through_dxchange(path)
        if scan.flats and sniff(path) == "hdf5":
            return scan.flats
    else:
        scan = _open(path, where)
    if scan.corrected_by:
        raise FormatError(
            f"{path}: expected raw references, got frames corrected by {scan.corrected_by}"
        )
    return (as_references(scan),)


def _open_through_dxchange(path: Path) -> Scan:
    """Import the reader only for those who ask for it."""
    from txmcorrect.formats.through_dxchange import open_through_dxchange

    return open_through_dxchange(path)


def open_arriving(path: str | Path, **where: str | None) -> Arriving:
    """A scan that is still growing: a folder that files arrive in, or an HDF5 file that fills up.

    Takes the arguments of `open_scan`.
    """
    path = Path(path)
    reader = where.pop("reader", None) or "own"
    if path.is_dir():
        places = Where(*(where.get(f"{name}_path") for name in ("data", "flat", "dark", "angle")))
        return FilesArriving(path, lambda file: _open(file, places))
    return FramesArriving(path, lambda: open_scan(path, reader=reader, **where))


def holds_references_alone(path: str | Path) -> bool:
    """Whether an HDF5 file has `/exchange/data_white` but no projections."""
    path = Path(path)
    if not path.is_file() or sniff(path) != "hdf5":
        return False
    with hdf5.open_hdf5(path) as file:
        return exchange.FLAT in file and exchange.DATA not in file


def as_references(scan: Scan) -> References:
    """Take the frames of a scan as references."""
    return References(
        frames=scan.projections,
        optics=scan.optics,
        time_s=scan.time_s,
        exposure_s=scan.exposure_s,
        current_ma=scan.current_ma,
        darks=scan.darks,
        origin=scan.path.name,
    )


def _grouped(found: list[References]) -> tuple[References, ...]:
    """Join references of the same size and optics, in the order found."""
    groups: dict[object, list[References]] = defaultdict(list)
    for item in found:
        key = (item.frames.shape[1:], item.optics, id(item.darks), item.energy_number)
        groups[key].append(item)
    return tuple(_joined(items) for items in groups.values())


def _joined(items: list[References]) -> References:
    if len(items) == 1:
        return items[0]

    def together(name: str) -> np.ndarray | None:
        values = [getattr(item, name) for item in items]
        return None if any(v is None for v in values) else np.concatenate(values)

    return replace(
        items[0],
        frames=JoinedFrames(tuple(item.frames for item in items)),
        before=None,
        time_s=together("time_s"),
        exposure_s=together("exposure_s"),
        current_ma=together("current_ma"),
        origin=f"{items[0].origin} and {len(items) - 1} more",
    )
