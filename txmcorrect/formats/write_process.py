"""What was done to a scan, as stored in `/process/txmcorrect` of a result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
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
AHEAD = 2  # images made while one is compressed
LAYOUT = 2  # of the group; 1 held an image for each key frame


class Images(Protocol):
    """Images taken one at a time: an array `(k, ...)`, or anything that loads `[i]` when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Process:
    """The background that was divided out, and what is known about it.

    The background of frame i is `exp(L_i) * amplitude[i]`. L_i, `(h, w)`, is made of a field, spread out
    bilinearly from the working grid, and fine patterns:
    `L_i = working_grid.spread_out(field_i) + sum_c share_i[c] * detail[c]`. Both `field_i` and `share_i`
    are linear in the frame number between key frames, constant beyond the outer ones, and never
    interpolated across a jump: there they are those of the nearest key frame on the frame's own side.

    Attributes
    ----------
    key_index : `(k,)` frame numbers, rising. field, field_std : `(k, h', w')` natural log of counts above
    dark for transmission 1 and amplitude 1, on the working grid, and its spread. factor : pixels of a cell of
    that grid, along each axis.
    detail : for each part of the scan with patterns of its own (an energy), `(c, h, w)` natural log: what
    stays, then what moves. share : `(k, c)` how much of each is in a key frame. part : `(k,)` which part
    that belongs to, None where there is one. grain : photon noise of the patterns, rms of the log.
    jump_index : `(j,)` first frames after a jump of the beam.
    amplitude : `(n,)`. flag : `(n,)` bits, bit i named `flag_names[i]`.
    lit : `(h, w)` pixels that were corrected; the others are 1. dark : `(h, w)` counts subtracted.
    scale : where the absolute scale came from, or "relative".
    verdict : TRUSTED, CHECK (...) or FAILED, and why.
    """

    key_index: NDArray[np.integer[Any]]
    field: Images
    field_std: Images
    detail: Images
    share: NDArray[np.floating[Any]]
    factor: int
    amplitude: NDArray[np.floating[Any]]
    flag: NDArray[np.integer[Any]]
    lit: Array
    dark: Array
    scale: str
    verdict: str
    part: NDArray[np.integer[Any]] | None = None
    grain: float = 0.0
    flag_names: tuple[str, ...] = ()
    jump_index: NDArray[np.integer[Any]] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int64)
    )
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_sha256: str = ""
    seed: int = 0

    def check(self, shape: tuple[int, int, int]) -> None:
        """Assert that everything fits a result of this shape."""
        n, h, w = shape
        keys = np.asarray(self.key_index)
        assert len(keys) > 0 and (np.diff(keys) > 0).all() and 0 <= keys[0] and keys[-1] < n
        assert len(self.field) == len(self.field_std) == len(self.share) == len(keys)
        assert np.shape(self.field[0]) == np.shape(self.field_std[0])
        assert np.shape(self.field[0]) == (-(-h // self.factor), -(-w // self.factor))
        assert len(self.detail) == (1 if self.part is None else 1 + int(np.max(self.part)))
        assert np.shape(self.amplitude) == np.shape(self.flag) == (n,)
        assert np.shape(self.lit) == np.shape(self.dark) == (h, w)

    def bytes_needed(self) -> int:
        """What the background takes at most."""
        h, w = np.shape(self.lit)
        details = len(self.detail) * self.share.shape[1] * h * w
        return 4 * (2 * len(self.key_index) * int(np.prod(np.shape(self.field[0]))) + details)

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


DESCRIPTIONS = {
    "key_index": "frames with a field of their own; others lie linearly between them, by frame number, are "
    "like the nearest beyond the outer ones, and like the nearest on their own side of a jump next to one",
    "jump_index": "first frames after a jump of the beam; nothing is interpolated across one",
    "field": "log background of key frames on the working grid: natural logarithm of counts above dark for "
    "transmission 1 and amplitude 1. A frame's is log b(y, x) = bilinear(field) + sum_c share[c] * "
    "detail[c] + log(amplitude); pixel y lies at (y + 0.5) / factor - 0.5 of the grid, outer cells go on",
    "field_std": "spread of field, kept to a thousandth; the log background's is "
    "hypot(bilinear(field_std), grain)",
    "detail": "fine log patterns: one that stays, then those that move",
    "share": "how much of each detail a key frame has",
    "factor": "pixels of a cell of the working grid, along each axis",
    "grain": "photon noise of the details, rms of the natural logarithm",
    "amplitude": "brightness of each frame over its interpolated background",
    "flag": "bits of each frame, named by the attribute bits, lowest first",
    "lit": "1 where pixels were corrected; the others are 1 in the data",
    "dark": "counts that were subtracted",
    "part": "which part (an energy) of the scan a key frame belongs to: the first index of detail",
}


def write_process(file: h5py.File, process: Process, pool: Executor) -> None:
    """Store `process` in `/process/txmcorrect`; `pool` compresses images."""
    group = file.create_group(GROUP)
    group.attrs.update(process.attributes())
    group.attrs["layout"] = LAYOUT
    group["key_index"] = np.asarray(process.key_index, np.int64)
    group["jump_index"] = np.asarray(process.jump_index, np.int64)
    for name, images, bits in (
        ("field", process.field, None),
        ("field_std", process.field_std, STD_BITS),
    ):
        stored = _create_images(group, name, (len(images), *np.shape(images[0])))
        _write_images(stored, images, pool, bits=bits)
    _write_details(group, process, pool)
    group["share"] = np.asarray(process.share, np.float64)
    group["factor"], group["grain"] = process.factor, float(process.grain)
    group["amplitude"] = np.asarray(process.amplitude, np.float64)
    group["flag"] = np.asarray(process.flag, np.uint32)
    group["flag"].attrs["bits"] = list(process.flag_names) or h5py.Empty("S1")
    packing = {"compression": "gzip", "shuffle": True}
    group.create_dataset("lit", data=np.asarray(process.lit, np.uint8), **packing)
    group.create_dataset("dark", data=np.asarray(process.dark, np.float32), **packing)
    group["dark"].attrs["units"] = "counts"
    for name, dataset in group.items():
        dataset.attrs["description"] = DESCRIPTIONS[name]


def _write_details(group: h5py.Group, process: Process, pool: Executor) -> None:
    """Fine patterns, `(c, h, w)`, or `(parts, c, h, w)` where there are parts; one of them is in memory.

    Parts with fewer patterns than others leave theirs unwritten, which reads as 0.
    """
    shape = (np.shape(process.share)[1], *np.shape(process.lit))
    if process.part is None:
        _write_images(_create_images(group, "detail", shape), process.detail[0], pool)
        return
    group["part"] = np.asarray(process.part, np.int64)
    stored = _create_images(group, "detail", (len(process.detail), *shape))
    for number in range(len(process.detail)):
        _write_images(stored, process.detail[number], pool, (number,))


def _create_images(group: h5py.Group, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """An empty dataset `(..., h, w)` whose chunks are rows of one image."""
    *outer, h, w = shape
    return group.create_dataset(
        name,
        shape,
        "<f4",
        chunks=(*[1] * len(outer), min(h, ROWS), w),
        compression="gzip",
        compression_opts=GZIP,
        shuffle=True,
    )


def _write_images(
    dataset: h5py.Dataset,
    images: Images,
    pool: Executor,
    place: tuple[int, ...] = (),
    bits: int | None = None,
) -> None:
    """Write image by image at `[*place, i]`, so that they need not lie in memory together.

    `bits` : of the mantissa that are kept; None: all.
    """
    cut = Slabs((1, *dataset.shape[-2:]))

    def make(index: int) -> Array:
        image = np.asarray(images[index], np.float32)
        return image if bits is None else _rounded(image, bits)

    for i, image in enumerate(in_order(pool, make, range(len(images)), AHEAD)):
        for row, chunk in zip(cut.rows(), cut.pack(image[None], pool), strict=True):
            dataset.id.write_direct_chunk((*place, i, row, 0), chunk)


def _rounded(image: Array, bits: int) -> Array:
    """Float32 with so many bits of mantissa, which compresses well: a spread needs no more."""
    drop = 23 - bits
    words = np.ascontiguousarray(image, np.float32).view(np.uint32) + np.uint32(1 << (drop - 1))
    return (words & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)
