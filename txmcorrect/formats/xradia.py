"""Xradia `.xrm` and `.txrm`: OLE compound files of the vendor's microscopes, versions 3 and 5.

The vendor stores rows bottom first; they are turned so that row 0 is the top of the image as
the vendor's viewer shows it, and stored vertical shifts change sign with them. Angles keep
their sign.
"""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import olefile

from txmcorrect.errors import FormatError
from txmcorrect.formats.source import fill_times, posix_seconds
from txmcorrect.scan import Array, FloatArray, Optics, References, Scan

# The vendor's numbers for pixel types.
DTYPES = {3: "<u1", 4: "<i2", 5: "<u2", 6: "<i4", 7: "<u4", 10: "<f4", 11: "<f8"}
DATE_LENGTH = 40  # bytes a date record takes
DATE = re.compile(rb"(\d\d)/(\d\d)/(\d\d(?:\d\d)?) (\d\d:\d\d:\d\d)")
FREE_SECTOR = 0xFFFFFFFF


class OleFile:
    """An open compound file: streams by case-insensitive name, values by type."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._ole = olefile.OleFileIO(str(path))
        except Exception as error:  # olefile raises IndexError and others on damaged tables
            raise FormatError(
                f"{path}: unreadable Xradia file ({error}); is it complete? copy it again"
            ) from None
        self.close = weakref.finalize(self, self._ole.close)
        if self._is_cut():
            self.close()
            raise FormatError(f"{path}: truncated Xradia file; copy it again")

    def _is_cut(self) -> bool:
        """Whether sectors in use lie beyond the end of the file."""
        used = np.flatnonzero(np.asarray(self._ole.fat, np.uint32) != FREE_SECTOR)
        starts = (used + 1) * self._ole.sectorsize
        missing = any("out of range" in str(what) for _, what in self._ole.parsing_issues)
        return missing or bool(used.size and starts.max() >= self.path.stat().st_size)

    def __contains__(self, name: str) -> bool:
        return bool(self._ole.exists(name))

    def stream(self, name: str) -> bytes:
        """Read a stream; b"" if there is none."""
        if name not in self:
            return b""
        try:
            with self._ole.openstream(name) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise FormatError(
                f"{self.path}: {name} cannot be read ({error}); copy it again"
            ) from None

    def values(self, name: str, dtype: str = "<f4") -> FloatArray:
        """Read a stream as numbers, ignoring a broken last one; empty if there is none."""
        data, size = self.stream(name), np.dtype(dtype).itemsize
        return np.frombuffer(data[: len(data) // size * size], dtype).astype(np.float64)

    def integer(self, *names: str) -> int | None:
        """First integer found under one of these names."""
        for name in names:
            found = self.values(name, "<i4")
            if found.size:
                return int(found[0])
        return None

    def positive(self, *names: str) -> float | None:
        """First sane positive number under one of these names."""
        for name in names:
            found = self.values(name)
            if found.size and 1e-6 < found[0] < 1e12:
                return float(found[0])
        return None

    def series(self, name: str, n: int) -> FloatArray | None:
        """Read the first n numbers of an array that may be longer; None if too short or garbage."""
        found = self.values(name)[:n]
        sane = len(found) == n and np.isfinite(found).all() and bool((np.abs(found) < 1e12).all())
        return found if sane else None


@dataclass(frozen=True)
class XradiaFrames:
    """Images of one file, turned top row first; the file is opened on first use.

    `streams` names one image each. `tiles` (rows, columns) splits a single stitched image into
    its tiles, from the bottom left to the right, then up.
    """

    path: Path
    streams: tuple[str, ...]
    frame: tuple[int, int]
    dtype: np.dtype[Any]
    tiles: tuple[int, int] = (1, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.streams) * self.tiles[0] * self.tiles[1], *self.frame

    def read(self, start: int, stop: int) -> Array:
        per_image = self.tiles[0] * self.tiles[1]
        stop = min(stop, self.shape[0])
        first, last = start // per_image, -(-stop // per_image)
        images = [self._image(name) for name in self.streams[first:last]]
        frames = np.concatenate([np.empty((0, *self.frame), self.dtype), *images])
        return frames[start - first * per_image : stop - first * per_image]

    def _image(self, name: str) -> Array:
        """One stored image as `(tiles, h, w)`, top row first."""
        (rows, columns), (h, w) = self.tiles, self.frame
        data = self._ole.stream(name)
        size = rows * h * columns * w * self.dtype.itemsize
        if len(data) < size:
            raise FormatError(
                f"{self.path}: {name} has {len(data)} bytes, expected {size}; copy the file again"
            )
        image = np.frombuffer(data[:size], self.dtype).reshape(rows, h, columns, w)
        return image.swapaxes(1, 2).reshape(rows * columns, h, w)[:, ::-1]

    @cached_property
    def _ole(self) -> OleFile:
        return OleFile(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when sent to another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_ole"}


def open_xradia(path: Path) -> Scan:
    """Describe an `.xrm` or `.txrm` file.

    Raises
    ------
    FormatError : not a microscope's file, cut short, or without images.
    """
    ole = OleFile(path)
    try:
        return _read_scan(ole)
    finally:
        ole.close()


def _read_scan(ole: OleFile) -> Scan:
    frames, mosaic, notes = _projections(ole)
    n = frames.shape[0]
    images = len(frames.streams)
    dates = _dates(ole.stream("ImageInfo/Date"), images)
    time, note = fill_times(dates)
    theta = ole.series("ImageInfo/Angles", images)
    energy = _energy(ole, images)
    scan = Scan(
        path=ole.path,
        format="xradia",
        projections=frames,
        theta=None if theta is None else np.deg2rad(theta),
        time_s=time,
        exposure_s=_positive_series(ole, ("ImageInfo/ExpTimes", "ImageInfo/ExpTime"), images),
        current_ma=_positive_series(
            ole, ("ImageInfo/IonChamberCurrent", "ImageInfo/Current"), images
        ),
        energy_ev=energy,
        mosaic_shape=mosaic,
        optics=_optics(ole, "ImageInfo", energy),
        corrected_by="the vendor's software"
        if ole.integer("ImageInfo/OriginalDataRefCorrected")
        else "",
        warnings=(*notes, *([note] if note else [])),
    )
    if n > images:  # a stitched mosaic: what holds for the image holds for its tiles
        scan = _spread(scan, n)
    scan = replace(
        scan,
        position_um=_pair(ole, "ImageInfo/YPosition", "ImageInfo/XPosition", n),
        shifts_px=_shifts(ole, n),
    )
    return replace(scan, flats=_embedded_references(ole, frames))


def _projections(ole: OleFile) -> tuple[XradiaFrames, tuple[int, int] | None, list[str]]:
    """The images that were really taken, whatever was planned."""
    h, w = ole.integer("ImageInfo/ImageHeight"), ole.integer("ImageInfo/ImageWidth")
    if not h or not w or h < 0 or w < 0:
        raise FormatError(f"{ole.path}: expected an Xradia image file, found no image size in it")
    planned = ole.integer("ImageInfo/NoOfImages") or 0
    taken = ole.integer("ImageInfo/ImagesTaken")
    stored = _stored_images(ole, max(planned, taken or 0))
    notes = []
    if taken is None or taken <= 0 or taken > len(stored):
        taken = len(stored)
    if taken < planned:
        notes.append(f"{taken} of {planned} planned images were taken: the scan was aborted")
    if taken == 0:
        raise FormatError(f"{ole.path}: expected images, got none (of {planned} planned)")
    dtype = _dtype(ole, stored[0], h * w, "ImageInfo/DataType")
    rows, columns = (
        ole.integer("ImageInfo/MosiacRows") or 0,
        ole.integer("ImageInfo/MosiacColumns") or 0,
    )
    mosaic = (rows, columns) if rows > 0 and columns > 0 and rows * columns > 1 else None
    tiles = (1, 1)
    if mosaic and planned <= 1:
        if h % rows or w % columns:
            notes.append(
                f"the mosaic of {h}x{w} pixels does not divide into {rows}x{columns} tiles"
            )
            mosaic = None
        else:
            tiles = mosaic
    frame = (h // tiles[0], w // tiles[1])
    return XradiaFrames(ole.path, tuple(stored[:taken]), frame, dtype, tiles), mosaic, notes


def _stored_images(ole: OleFile, limit: int) -> list[str]:
    """Names of the image streams from 1 on, without gaps; a hundred to a storage."""
    names: list[str] = []
    for i in range(1, limit + 1):
        name = f"ImageData{(i + 99) // 100}/Image{i}"
        if name not in ole:
            break
        names.append(name)
    return names


def _dtype(ole: OleFile, image: str, pixels: int, *names: str) -> np.dtype[Any]:
    """Pixel type by the vendor's number, or else by the size of an image."""
    code = ole.integer(*names)
    if code in DTYPES:
        return np.dtype(DTYPES[code])
    size = len(ole.stream(image)) // pixels
    if size in (2, 4):
        return np.dtype("<u2" if size == 2 else "<f4")
    raise FormatError(f"{ole.path}: expected uint16 or float32 images, got type {code}")


def _positive_series(ole: OleFile, names: tuple[str, ...], n: int) -> FloatArray | None:
    """First of several arrays that holds n positive numbers."""
    for name in names:
        found = ole.series(name, n)
        if found is not None and (found > 1e-6).all():
            return found
    return None


def _energy(ole: OleFile, n: int) -> FloatArray | None:
    """Photon energies; when only the first is set it holds for all. None if absurd."""
    found = ole.values("ImageInfo/Energy")
    if not found.size or not 10 < found[0] < 1e6:
        return None
    energies = found[:n]
    fixed = len(energies) < n or not ((energies > 10) & (energies < 1e6)).all()
    return np.full(n, found[0]) if fixed else energies


def _dates(records: bytes, n: int) -> FloatArray:
    """POSIX seconds by record of 40 bytes, NaN for garbage. The year has two digits or four."""
    times = np.full(n, np.nan)
    for i in range(min(n, -(-len(records) // DATE_LENGTH))):
        found = DATE.search(records, i * DATE_LENGTH, (i + 1) * DATE_LENGTH)
        if found:
            month, day, year, clock = (part.decode() for part in found.groups())
            pattern = "%Y" if len(year) == 4 else "%y"
            times[i] = posix_seconds(f"{year} {month} {day} {clock}", f"{pattern} %m %d %H:%M:%S")
    return times


def _optics(ole: OleFile, storage: str, energy: FloatArray | None) -> Optics:
    pixel_um = ole.positive(f"{storage}/PixelSize")
    y, x = ole.integer(f"{storage}/VerticalalBin"), ole.integer(f"{storage}/HorizontalBin")
    return Optics(
        energy_ev=None if energy is None else float(np.median(energy)),
        pixel_size_nm=None if pixel_um is None else pixel_um * 1e3,
        magnification=ole.positive(f"{storage}/XrayMagnification"),
        binning=(y, x) if y and x and y > 0 and x > 0 else None,
    )


def _pair(ole: OleFile, y: str, x: str, n: int) -> FloatArray | None:
    """Two arrays as `(n, 2)` (y, x)."""
    ys, xs = ole.series(y, n), ole.series(x, n)
    return None if ys is None or xs is None else np.stack([ys, xs], 1)


def _shifts(ole: OleFile, n: int) -> FloatArray | None:
    """Stored alignment in pixels of our orientation; None when nothing was aligned."""
    shifts = _pair(ole, "Alignment/Y-Shifts", "Alignment/X-Shifts", n)
    return None if shifts is None or not shifts.any() else shifts * [-1.0, 1.0]


def _spread(scan: Scan, n: int) -> Scan:
    """Give every tile of a stitched mosaic the values of its image."""

    def repeat(values: FloatArray | None) -> FloatArray | None:
        return None if values is None else np.repeat(values, n // len(values))

    return replace(
        scan,
        theta=repeat(scan.theta),
        time_s=None,
        exposure_s=repeat(scan.exposure_s),
        current_ma=repeat(scan.current_ma),
        energy_ev=repeat(scan.energy_ev),
    )


def _embedded_references(ole: OleFile, frames: XradiaFrames) -> tuple[References, ...]:
    """The reference a user stored in the file (version 3 or 5), or the several of lab systems."""
    names = ["ReferenceData/Image"] if "ReferenceData/Image" in ole else []
    while f"MultiReferenceData/Image{len(names) + 1}" in ole and names[:1] != [
        "ReferenceData/Image"
    ]:
        names.append(f"MultiReferenceData/Image{len(names) + 1}")
    if not names:
        return ()
    info = "ReferenceData/ImageInfo"
    h, w = frames.frame
    h, w = ole.integer(f"{info}/ImageHeight") or h, ole.integer(f"{info}/ImageWidth") or w
    dtype = _dtype(ole, names[0], h * w, "ReferenceData/DataType", f"{info}/DataType")
    stack = XradiaFrames(ole.path, tuple(names), (h, w), dtype)
    optics = _optics(ole, info, _energy_of_reference(ole, info))
    binning = ole.integer("ReferenceData/Binning")
    if optics.binning is None and binning:
        optics = replace(optics, binning=(binning, binning))
    time, _ = fill_times(_dates(ole.stream(f"{info}/Date"), len(names)))
    return (
        References(
            frames=stack,
            optics=optics,
            time_s=time,
            exposure_s=_once(
                ole, ("ReferenceData/ExpTime", f"{info}/ExpTimes", f"{info}/ExpTime"), len(names)
            ),
            current_ma=_once(
                ole,
                ("ReferenceData/IonCurrent", f"{info}/IonChamberCurrent", f"{info}/Current"),
                len(names),
            ),
            origin=f"{ole.path.name}:{names[0].split('/')[0]}",
        ),
    )


def _energy_of_reference(ole: OleFile, info: str) -> FloatArray | None:
    energy = ole.positive(f"{info}/Energy")
    return None if energy is None or energy < 10 else np.array([energy])


def _once(ole: OleFile, names: tuple[str, ...], n: int) -> FloatArray | None:
    """A positive number that holds for all embedded references."""
    value = ole.positive(*names)
    return None if value is None else np.full(n, value)
