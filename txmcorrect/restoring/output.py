"""The restored scan as a file: Data Exchange, with the spread and what was assumed beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from txmcorrect import __version__
from txmcorrect.scan import FloatArray
from txmcorrect.stream import PartFolder, disk_errors

BLANKS = 2  # flats of ones and darks of zeros, so that normalising again changes nothing


def frame_name(index: int) -> str:
    """Name of a frame's shard."""
    return f"frame-{index:06d}"


def assemble(
    part: PartFolder, count: int, theta: FloatArray | None, facts: Mapping[str, Any]
) -> Path:
    """Gather the finished frames into the output file.

    `/exchange/data` `(n, h, w)` float32 transmission; `/process/txmcorrect/restore/std` likewise,
    with `noise_floor` and `noise_gain` `(n,)`: variance = floor + gain * mean; `facts` and the
    version as attributes.

    Raises
    ------
    OutputError : the disk is full; the work stays resumable.
    """
    first = part.load_arrays(frame_name(0))
    path = part.path / "assembled.h5"
    path.unlink(missing_ok=True)
    with disk_errors(part.out, only_full=True), h5py.File(path, "w") as file:
        group = file.create_group("process/txmcorrect/restore")
        image = _stack(file, "exchange/data", count, first["mean"].shape)
        std = _stack(group, "std", count, first["mean"].shape) if "std" in first else None
        noise = np.zeros((2, count))
        for index in range(count):
            frame = part.load_arrays(frame_name(index))
            image[index], noise[:, index] = frame["mean"], frame["noise"]
            if std is not None:
                std[index] = frame["std"]
        group["noise_floor"], group["noise_gain"] = noise
        _describe(file, image.shape[1:], theta, facts)
    part.publish(path)
    return part.out


def _stack(parent: h5py.Group, name: str, count: int, shape: tuple[int, int]) -> h5py.Dataset:
    h, w = shape
    return parent.create_dataset(
        name, (count, h, w), "f4", chunks=(1, h, w), compression="gzip", shuffle=True
    )


def _describe(
    file: h5py.File, shape: tuple[int, int], theta: FloatArray | None, facts: Mapping[str, Any]
) -> None:
    file["implements"] = "exchange"
    exchange, group = file["exchange"], file["process/txmcorrect/restore"]
    exchange["data"].attrs["units"] = "transmission"
    exchange["data"].attrs["axes"] = "theta:y:x"
    exchange["data_white"] = np.ones((BLANKS, *shape), np.float32)
    exchange["data_dark"] = np.zeros((BLANKS, *shape), np.float32)
    if theta is not None:
        exchange["theta"] = np.rad2deg(theta)
        exchange["theta"].attrs["units"] = "degrees"
    group.attrs["version"] = __version__
    for name, value in facts.items():
        group.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)
