"""What was done to a scan, as stored in `/process/txmcorrect` of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from txmcorrect import __version__
from txmcorrect.ahead import in_order
from txmcorrect.formats.write_slabs import GZIP, ROWS, Slabs
from txmcorrect.scan import Array

GROUP = "process/txmcorrect"
STD_BITS = 9  # a thousandth of a spread
AHEAD = 2  # key images made while one is compressed


class Images(Protocol):
    """Images taken one at a time: an array `(k, h, w)`, or anything that loads `[i]` when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Process:
    """The background that was divided out, and what is known about it.

    The background of frame i is `exp(L_i) * amplitude[i]`, L_i being the log-background linear in
    the frame number between key frames, constant beyond the outer ones, and never interpolated
    across a jump: there it is that of the nearest key frame on the frame's own side.

    Attributes
    ----------
    key_index : `(k,)` frame numbers, rising. log_background, log_std : k images `(h, w)`.
    jump_index : `(j,)` first frames after a jump of the beam.
    amplitude : `(n,)`. flag : `(n,)` bits, bit i named `flag_names[i]`.
    lit : `(h, w)` pixels that were corrected; the others are 1. dark : `(h, w)` counts subtracted.
    scale : where the absolute scale came from, or "relative".
    verdict : TRUSTED, CHECK (...) or FAILED, and why.
    """

    key_index: NDArray[np.integer[Any]]
    log_background: Images
    log_std: Images
    amplitude: NDArray[np.floating[Any]]
    flag: NDArray[np.integer[Any]]
    lit: Array
    dark: Array
    scale: str
    verdict: str
    flag_names: tuple[str, ...] = ()
    jump_index: NDArray[np.integer[Any]] = field(default_factory=lambda: np.zeros(0, np.int64))
    options: Mapping[str, Any] = field(default_factory=dict)
    model_sha256: str = ""
    seed: int = 0

    def check(self, shape: tuple[int, int, int]) -> None:
        """Assert that everything fits a result of this shape."""
        n, h, w = shape
        keys = np.asarray(self.key_index)
        assert len(keys) > 0 and (np.diff(keys) > 0).all() and 0 <= keys[0] and keys[-1] < n
        assert len(self.log_background) == len(self.log_std) == len(keys)
        assert np.shape(self.amplitude) == np.shape(self.flag) == (n,)
        assert np.shape(self.lit) == np.shape(self.dark) == (h, w)

    def attributes(self) -> dict[str, str | int]:
        """Return what is stored as attributes."""
        return {
            "scale": self.scale,
            "verdict": self.verdict,
            "version": __version__,
            "options": json.dumps(dict(self.options), sort_keys=True, default=str),
            "model_sha256": self.model_sha256,
            "seed": self.seed,
        }


def write_process(file: h5py.File, process: Process, pool: Executor) -> None:
    """Store `process` in `/process/txmcorrect`; `pool` compresses images."""
    group = file.create_group(GROUP)
    group.attrs.update(process.attributes())
    group["key_index"] = np.asarray(process.key_index, np.int64)
    group["jump_index"] = np.asarray(process.jump_index, np.int64)
    _write_images(group, "log_background", process.log_background, pool)
    _write_images(group, "log_std", process.log_std, pool, STD_BITS)
    group["amplitude"] = np.asarray(process.amplitude, np.float64)
    group["flag"] = np.asarray(process.flag, np.uint32)
    group["flag"].attrs["bits"] = list(process.flag_names) or h5py.Empty("S1")
    packing = {"compression": "gzip", "shuffle": True}
    group.create_dataset("lit", data=np.asarray(process.lit, np.uint8), **packing)
    group.create_dataset("dark", data=np.asarray(process.dark, np.float32), **packing)
    group["dark"].attrs["units"] = "counts"
    group["log_background"].attrs["description"] = (
        "natural logarithm of counts above dark for transmission 1 and amplitude 1"
    )


def _write_images(
    group: h5py.Group, name: str, images: Images, pool: Executor, bits: int | None = None
) -> None:
    """Write image by image, so that key frames need not lie in memory together.

    `bits` : of the mantissa that are kept; None: all.
    """
    h, w = np.shape(images[0])
    dataset = group.create_dataset(
        name,
        (len(images), h, w),
        "<f4",
        chunks=(1, min(h, ROWS), w),
        compression="gzip",
        compression_opts=GZIP,
        shuffle=True,
    )
    cut = Slabs((1, h, w))

    def make(index: int) -> Array:
        image = np.asarray(images[index], np.float32)
        return image if bits is None else _rounded(image, bits)

    for i, image in enumerate(in_order(pool, make, range(len(images)), AHEAD)):
        for row, chunk in zip(cut.rows(), cut.pack(image[None], pool), strict=True):
            dataset.id.write_direct_chunk((i, row, 0), chunk)


def _rounded(image: Array, bits: int) -> Array:
    """Float32 with so many bits of mantissa, which compresses well: a spread needs no more."""
    drop = 23 - bits
    words = np.ascontiguousarray(image, np.float32).view(np.uint32) + np.uint32(1 << (drop - 1))
    return (words & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)
