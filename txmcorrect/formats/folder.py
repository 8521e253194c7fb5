"""A folder of files as one scan: TIFF tiles or projections, or one `.xrm` a frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.formats.source import (
    check_same_size,
    empty_warning,
    fill_times,
    natural_key,
    sniff,
)
from txmcorrect.formats.tiff import tiff_frames
from txmcorrect.scan import FloatArray, JoinedFrames, Scan

# What a folder is taken to be made of, best first; previews (PNG) may lie beside the data.
KINDS = ("xradia", "tiff", "hdf5", "npy", "png", "mat", "nifti")
BY_NAME = {".tif": "tiff", ".tiff": "tiff", ".xrm": "xradia", ".txrm": "xradia"}


def readable_files(folder: Path) -> list[Path]:
    """List the data files of a folder in natural order: one kind, told by content.

    Raises
    ------
    FormatError : the folder cannot be listed, holds no data, or data of several kinds.
    """
    try:
        files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    except OSError as error:
        raise FormatError(f"{folder}: cannot be listed ({error.strerror})") from None
    kinds: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        kinds[sniff(file) or BY_NAME.get(file.suffix.lower(), "")].append(file)
    found = [kind for kind in KINDS if kinds[kind]]
    if not found:
        raise FormatError(
            f"{folder}: expected TIFF, xrm or HDF5 files, found none in it; name the folder that holds them"
        )
    clash = [kind for kind in found if kind in ("xradia", "tiff", "hdf5")]
    if len(clash) > 1:
        listing = " and ".join(f"{len(kinds[kind])} {kind}" for kind in clash)
        raise FormatError(f"{folder}: expected files of one kind, got {listing}; separate them")
    return sorted(kinds[found[0]], key=natural_key)


def open_folder(folder: Path, open_file: Callable[[Path], Scan]) -> Scan:
    """Open the files of a folder as the frames of one scan, in natural order of their names.

    Raises
    ------
    FormatError : nothing to read, frames of several sizes, or several whole scans.
    """
    return open_files(folder, readable_files(folder), open_file)


def open_files(folder: Path, files: list[Path], open_file: Callable[[Path], Scan]) -> Scan:
    """Open some files of a folder as the frames of one scan, in this order.

    Raises
    ------
    FormatError : see `open_folder`.
    """
    if all(sniff(file) == "tiff" for file in files):
        return _open_tiffs(folder, files)
    scans = [open_file(file) for file in files]
    if len(scans) > 1 and any(scan.format in ("data exchange", "nxtomo", "hdf5") for scan in scans):
        raise FormatError(
            f"{folder}: holds {len(scans)} HDF5 scans ({files[0].name}, ...); name the one to open"
        )
    return replace(join_scans(scans), path=folder)


def _open_tiffs(folder: Path, files: list[Path]) -> Scan:
    parts = [tiff_frames(file) for file in files]
    check_same_size(folder, {part.shape[1:]: part.path.name for part, _ in parts})
    dates = np.concatenate([np.full(part.shape[0], date) for part, date in parts])
    frames = JoinedFrames(tuple(part for part, _ in parts))
    time = fill_times(dates)[0] if len(set(dates)) > 1 else None
    names = tuple(part.path.name for part, _ in parts for _ in range(part.shape[0]))
    return Scan(
        path=folder,
        format="tiff folder",
        projections=frames,
        time_s=time,
        warnings=empty_warning(frames),
        names=names,
    )


def join_scans(scans: list[Scan]) -> Scan:
    """Lay scans end to end; what only some of them know is dropped.

    Raises
    ------
    FormatError : frames of several sizes, or taken with different optics.
    """
    first = scans[0]
    check_same_size(first.path.parent, {scan.shape[1:]: scan.path.name for scan in scans})

    def together(name: str) -> FloatArray | None:
        values = [getattr(scan, name) for scan in scans]
        return None if any(v is None for v in values) else np.concatenate(values)

    corrected = {scan.corrected_by for scan in scans}
    if len(corrected) > 1:
        raise FormatError(
            f"{first.path.parent}: some files are corrected and some raw; separate them"
        )
    same_optics = len({scan.optics for scan in scans}) == 1
    notes = tuple(dict.fromkeys(note for scan in scans for note in scan.warnings))
    return replace(
        first,
        format=f"{first.format} folder",
        projections=JoinedFrames(tuple(scan.projections for scan in scans)),
        flats=tuple(flat for scan in scans for flat in scan.flats),
        theta=together("theta"),
        time_s=together("time_s"),
        exposure_s=together("exposure_s"),
        current_ma=together("current_ma"),
        energy_ev=together("energy_ev"),
        position_um=together("position_um"),
        shifts_px=together("shifts_px"),
        mosaic_shape=first.mosaic_shape if len(scans) == 1 else None,
        warnings=notes
        if same_optics
        else (*notes, "the files differ in energy, binning or optics"),
        names=tuple(scan.path.name for scan in scans for _ in range(scan.shape[0])),
    )
