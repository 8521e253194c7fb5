"""Assembly of a result as Data Exchange or NXtomo, from chunks that are compressed already."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from txmcorrect.formats.write_metadata import copy_measurement
from txmcorrect.formats.write_process import Process, write_process
from txmcorrect.formats.write_slabs import GZIP, Frames32, Slabs
from txmcorrect.scan import FloatArray

Progress = Callable[[int, int], None]
NXTOMO_VERSION = 2.1  # of the application definition, as the nxtomo package counts
BLANKS = 2  # frames of ones and of zeros: with a single one dxchange takes values from metadata


class Stored(Protocol):
    """What an assembly needs of the writer."""

    slabs: Slabs
    theta: FloatArray | None
    source: Path | None

    @property
    def pool(self) -> Executor: ...

    def chunks(self, start: int) -> list[bytes]: ...

    def frames(self, start: int) -> Frames32: ...


def write_exchange(path: Path, stored: Stored, process: Process, progress: Progress) -> None:
    """Write Data Exchange: `/exchange`, `/measurement` and `/process/txmcorrect`."""
    with h5py.File(path, "w") as file:
        group = file.create_group("exchange")
        slabs, theta = stored.slabs, stored.theta
        data = _create_stack(group, "data", slabs, slabs.stored_shape)
        _copy_chunks(data, stored, progress)
        first = "theta" if theta is not None else "frame"
        first = first if slabs.energies == 1 else f"energy:{first}"
        data.attrs.update(
            axes=f"{first}:y:x", units="dimensionless", description="transmission, no logarithm"
        )
        if theta is not None:  # the same at all energies
            group["theta"] = np.rad2deg(theta[: slabs.per_energy])
            group["theta"].attrs["units"] = "degrees"
        _write_blanks(group, "data_white", stored.slabs, 1.0)
        _write_blanks(group, "data_dark", stored.slabs, 0.0)
        measured = stored.source is not None and copy_measurement(stored.source, file)
        write_process(file, process, stored.pool)
        file["implements"] = "exchange:measurement:process" if measured else "exchange:process"


def write_nxtomo(path: Path, stored: Stored, process: Process, progress: Progress) -> None:
    """Write NXtomo: projections, then one flat of ones and one dark of zeros.

    The blanks come last, so that chunks of projections keep their places.
    """
    n = stored.slabs.shape[0]
    assert stored.theta is not None
    with h5py.File(path, "w") as file:
        file.attrs.update(NX_class="NXroot", default="entry")
        entry = _nx_group(file, "entry", "NXentry", default="data")
        entry.attrs["version"] = NXTOMO_VERSION
        entry["definition"] = "NXtomo"
        detector = _nx_group(_nx_group(entry, "instrument", "NXinstrument"), "detector")
        data = _create_stack(detector, "data", stored.slabs, (n + 2, *stored.slabs.shape[1:]))
        _copy_chunks(data, stored, progress)
        data[n], data[n + 1] = 1.0, 0.0
        data.attrs["interpretation"] = "image"
        key = np.zeros(n + 2, np.int64)
        key[n:] = 1, 2
        detector["image_key"] = key
        detector["image_key_control"] = key
        sample = _nx_group(entry, "sample", "NXsample")
        degrees = np.rad2deg(stored.theta)
        sample["rotation_angle"] = np.append(degrees, [degrees[-1]] * 2)
        sample["rotation_angle"].attrs["units"] = "degree"
        _link_data(entry)
        write_process(file, process, stored.pool)


def _nx_group(parent: h5py.Group, name: str, kind: str = "NXdetector", **attrs: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs.update(NX_class=kind, **attrs)
    return group


def _link_data(entry: h5py.Group) -> None:
    """Give NeXus viewers the plot they look for."""
    group = _nx_group(entry, "data", "NXdata", signal="data")
    group["data"] = entry["instrument/detector/data"]
    group["image_key"] = entry["instrument/detector/image_key"]
    group["rotation_angle"] = entry["sample/rotation_angle"]


def _create_stack(
    group: h5py.Group, name: str, slabs: Slabs, shape: tuple[int, ...]
) -> h5py.Dataset:
    return group.create_dataset(
        name,
        shape,
        "<f4",
        chunks=(*[1] * (len(shape) - 3), *slabs.chunk),
        compression="gzip",
        compression_opts=GZIP,
        shuffle=True,
    )


def _copy_chunks(data: h5py.Dataset, stored: Stored, progress: Progress) -> None:
    slabs = stored.slabs
    for start in slabs.starts():
        for row, chunk in zip(slabs.rows(), stored.chunks(start), strict=True):
            data.id.write_direct_chunk(slabs.place(start, row), chunk)
        progress(start + slabs.length(start), slabs.shape[0])


def _write_blanks(group: h5py.Group, name: str, slabs: Slabs, value: float) -> None:
    """Frames of one value: never written, only declared as fill value, so they cost nothing."""
    _, h, w = slabs.shape
    blank = group.create_dataset(
        name, (BLANKS, h, w), "<f4", chunks=(1, *slabs.chunk[1:]), fillvalue=value
    )
    axis = name.replace("data", "theta", 1)
    blank.attrs.update(axes=f"{axis}:y:x", units="dimensionless")
