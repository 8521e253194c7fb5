"""Writing a reconstruction: transmission first, then slices, in pieces that survive a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from txmcorrect import __version__
from txmcorrect.errors import OutputError
from txmcorrect.formats.stored_background import open_background
from txmcorrect.formats.write_metadata import copy_measurement
from txmcorrect.formats.write_process import GROUP
from txmcorrect.formats.write_slabs import GZIP, Slabs
from txmcorrect.scan import Array, FloatArray
from txmcorrect.stream import PartFolder, disk_errors

DEPTH, SIDE = 4, 256  # chunks of a volume: 1 MiB, HDF5's usual cache
BLANKS = 2
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Description:
    """What a reconstruction says about itself.

    Attributes
    ----------
    theta : `(n,)` radians. units : of the volume. contrast : "absorption" or "phase".
    scale, verdict : of the correction. source, frame, shifts_px : per projection, which input file
    and frame it is and by what `(y, x)` it was moved. options : resolved settings.
    facts : further attributes of the volume, such as its axis.
    """

    theta: FloatArray
    units: str
    contrast: str
    scale: str
    verdict: str
    source: NDArray[np.intp]
    frame: NDArray[np.intp]
    shifts_px: FloatArray
    options: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    measurement: Path | None = None


class VolumeWriter:
    """A reconstruction in the making; the same run resumes it.

    Parameters
    ----------
    out : file to write; `.tif` or `.tiff` gives a stack of the slices alone.
    shape : `(n, h, w)` of the transmission. size : side of a slice in pixels, 0 for no volume.
    signature, overwrite : see `stream.PartFolder`.

    Raises
    ------
    OutputError : see `stream.PartFolder`.
    """

    def __init__(
        self,
        out: Path,
        shape: tuple[int, int, int],
        size: int,
        signature: Mapping[str, str],
        overwrite: bool = False,
    ) -> None:
        self.slabs, self.size = Slabs(shape), size
        self.part = PartFolder(out, signature, overwrite=overwrite)
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 8))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.part.close()
        self._pool.shutdown()

    def missing_frames(self) -> list[int]:
        """Return the first frames of the slabs that are not stored."""
        last = self.slabs.rows()[-1]
        return [s for s in self.slabs.starts() if _piece(s, last) not in self.part.names()]

    def write_frames(self, start: int, frames: Array) -> None:
        """Store one slab of transmission `(m, h, w)`, that begins at frame `start`."""
        chunks = self.slabs.pack(frames, self._pool)
        for row, chunk in zip(self.slabs.rows(), chunks, strict=True):
            self.part.save(_piece(start, row), chunk)

    def rows(self, first: int, stop: int) -> NDArray[np.float32]:
        """Return rows `first:stop` of all stored frames: `(n, rows, w)`."""
        n, h, w = self.slabs.shape
        out = np.empty((n, stop - first, w), np.float32)
        depth, height, _ = self.slabs.chunk
        for row in self.slabs.rows():
            a, b = max(first, row), min(stop, row + height, h)
            if a >= b:
                continue
            strip = Slabs((n, height, w))
            for s in self.slabs.starts():
                chunk = strip.unpack(s, [self.part.load(_piece(s, row))])
                out[s : s + depth, a - first : b - first] = chunk[:, a - row : b - row]
        return out

    def missing_slices(self) -> list[int]:
        """Return the first slices of the groups of `DEPTH` that are not stored."""
        every = range(0, self.slabs.shape[1], DEPTH) if self.size else range(0)
        return [z for z in every if _group(z) not in self.part.names()]

    def write_slices(self, first: int, slices: NDArray[np.float32], kind: str = "slices") -> None:
        """Store slices `(z, size, size)`; `first` and z are multiples of `DEPTH`, but at the end.

        `kind` is "slices", or "std" for the spread of several draws.
        """
        for z in range(0, len(slices), DEPTH):
            self.part.save(_group(first + z, kind), slices[z : z + DEPTH].astype("<f4").tobytes())

    def slices(self, first: int, kind: str = "slices") -> NDArray[np.float32]:
        """Return the stored group of slices that begins at `first`."""
        flat = np.frombuffer(self.part.load(_group(first, kind)), "<f4")
        return flat.reshape(-1, self.size, self.size)

    def finish(self, description: Description, progress: Progress) -> Path:
        """Assemble the file, put it in its place and drop the part folder.

        Raises
        ------
        OutputError : the disk is full; the work stays resumable.
        """
        out = self.part.out
        assembled = self.part.path / f"assembled{out.suffix}"
        assembled.unlink(missing_ok=True)
        self._check_space()
        try:
            with disk_errors(out, only_full=True):
                if out.suffix.lower() in (".tif", ".tiff"):
                    self._write_tiff(assembled, description, progress)
                else:
                    self._write_hdf5(assembled, description, progress)
            self.part.publish(assembled)
        finally:
            assembled.unlink(missing_ok=True)
        return out

    def _write_hdf5(self, path: Path, description: Description, progress: Progress) -> None:
        with h5py.File(path, "w") as file:
            copied = description.measurement and copy_measurement(description.measurement, file)
            self._write_exchange(file, description)
            if self.size:
                self._write_volume(file, description, progress)
            _write_process(file, description)
            parts = ["exchange", "process"]
            parts += ["measurement"] if copied else []
            parts += ["reconstruction"] if self.size else []
            file["implements"] = ":".join(parts)

    def _write_exchange(self, file: h5py.File, description: Description) -> None:
        _, h, w = self.slabs.shape
        data = file.create_dataset(
            "exchange/data",
            self.slabs.shape,
            "<f4",
            chunks=self.slabs.chunk,
            compression="gzip",
            compression_opts=GZIP,
            shuffle=True,
        )
        data.attrs.update(
            axes="theta:y:x", units="dimensionless", description="transmission, no logarithm"
        )
        for start in self.slabs.starts():
            for row in self.slabs.rows():
                data.id.write_direct_chunk((start, row, 0), self.part.load(_piece(start, row)))
        for name, value in (("data_white", 1.0), ("data_dark", 0.0)):
            blank = file.create_dataset(
                f"exchange/{name}", (BLANKS, h, w), "<f4", chunks=(1, h, w), fillvalue=value
            )
            blank.attrs.update(axes=f"{name.replace('data', 'theta')}:y:x", units="dimensionless")
        file["exchange/theta"] = np.rad2deg(description.theta)
        file["exchange/theta"].attrs["units"] = "degrees"

    def _write_volume(self, file: h5py.File, description: Description, progress: Progress) -> None:
        depth, side = self.slabs.shape[1], self.size
        volume = file.create_dataset(
            "reconstruction/volume",
            (depth, side, side),
            "<f4",
            chunks=(min(DEPTH, depth), min(SIDE, side), min(SIDE, side)),
        )
        volume.attrs.update(
            axes="z:y:x",
            units=description.units,
            contrast=description.contrast,
            **description.facts,
        )
        std = None
        if _group(0, "std") in self.part.names():
            std = file.create_dataset_like("reconstruction/std", volume)
            std.attrs.update(axes="z:y:x", units=description.units)
        for z in range(0, depth, DEPTH):
            group = self.slices(z)
            volume[z : z + len(group)] = group
            if std is not None:
                std[z : z + len(group)] = self.slices(z, "std")
            progress(z + len(group), depth)

    def _write_tiff(self, path: Path, description: Description, progress: Progress) -> None:
        depth = self.slabs.shape[1]
        note = {"axes": "ZYX", "units": description.units, "contrast": description.contrast}
        with tifffile.TiffWriter(path, bigtiff=4 * depth * self.size**2 > 2**31) as tiff:
            for z in range(0, depth, DEPTH):
                for image in self.slices(z):
                    tiff.write(image, contiguous=True, metadata=note)
                progress(min(z + DEPTH, depth), depth)

    def _check_space(self) -> None:
        need = sum(f.stat().st_size for f in self.part.path.glob("*.shard")) + 2**20
        free = shutil.disk_usage(self.part.path).free
        if need > free:
            raise OutputError(
                f"{self.part.out}: assembling needs about {need / 2**20:.0f} MiB and the disk has "
                f"{free / 2**20:.0f}; free some space and run the same command again"
            )


@dataclass(frozen=True)
class Correction:
    """What a corrected file says about its correction; `flag` `(n,)` and `counts` if it knows them."""

    scale: str
    verdict: str
    flag: NDArray[np.uint32] | None
    counts: float | None


def read_correction(path: Path) -> Correction:
    """Read how `correct`, or `tomo`, came by the transmission in a file.

    `counts` is the median background: what an empty lit pixel recorded.
    """
    with h5py.File(path, "r") as file:
        group = file[GROUP]
        flag = group["flag"][()] if "flag" in group else None
        counts = None
        if "key_index" in group:
            lit = group["lit"][()].astype(bool)
            first = open_background(group).log(int(group["key_index"][0]))[lit]
            counts = float(np.exp(np.median(first)) * np.median(group["amplitude"][()]))
        return Correction(str(group.attrs["scale"]), str(group.attrs["verdict"]), flag, counts)


def _write_process(file: h5py.File, description: Description) -> None:
    group = file.create_group(f"{GROUP}/tomo")
    file[GROUP].attrs.update(
        version=__version__,
        scale=description.scale,
        verdict=description.verdict,
        options=json.dumps(dict(description.options), sort_keys=True, default=str),
    )
    group["source"], group["frame"] = description.source, description.frame
    group["shifts_px"] = description.shifts_px
    group["shifts_px"].attrs["axes"] = "theta:yx"


def _piece(start: int, row: int) -> str:
    return f"data-{start:07d}-{row:05d}"


def _group(first: int, kind: str = "slices") -> str:
    return f"{kind}-{first:06d}"
