"""The training set: one HDF5 group per split and frame shape, written frame by frame."""

from __future__ import annotations

import h5py
import numpy as np
from numpy.typing import NDArray

from txmcorrect.scan import Array

Image = NDArray[np.float32]
UNLIT_SHARE = 0.08  # of the median open beam; darker pixels say little about the sample


def area_weights(count: int, size: int) -> Image:
    """Matrix `(size, count)` that averages `count` pixels over `size` equal stretches of them."""
    edges = np.linspace(0, count, size + 1)
    pixel = np.arange(count)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) * size / count).astype(np.float32)


def binned_shape(h: int, w: int, size: int) -> tuple[int, int]:
    """Shape whose long side is `size`, in the same proportion; small frames stay as they are."""
    long = max(h, w)
    return (
        (h, w) if long <= size else (max(1, round(h * size / long)), max(1, round(w * size / long)))
    )


def bin_frame(frame: Array, size: int) -> Image:
    """Average a frame `(h, w)` down so that its long side is `size`: nothing is cropped."""
    shape = binned_shape(frame.shape[0], frame.shape[1], size)
    small = np.asarray(frame, np.float32)
    if shape == frame.shape:
        return small
    rows, columns = (area_weights(a, b) for a, b in zip(frame.shape, shape, strict=True))
    return np.asarray(rows @ small @ columns.T, np.float32)


def transmission(counts: Image, open_beam: Image) -> Image:
    """Divide dark-corrected counts by the open beam; unlit pixels are 1."""
    lit = open_beam > UNLIT_SHARE * max(float(np.median(open_beam)), 1e-12)
    return np.divide(counts, open_beam, out=np.ones_like(counts), where=lit)


class TrainingSet:
    """Appends frames to `split/HxW/kind` datasets `(n, h, w)` float32, one chunk a frame."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.counts: dict[str, int] = {}

    def append(
        self, split: str, kind: str, image: Image, factor: float | None = None
    ) -> tuple[str, int]:
        """Store a frame; `factor` (what counts were divided by) goes beside it. Returns its place."""
        h, w = image.shape
        name = f"{split}/{h}x{w}/{kind}"
        index = self.counts.get(name, 0)
        self._row(name, image, index)
        if factor is not None:
            self._row(f"{name}_factor", np.asarray(factor, np.float32), index)
        self.counts[name] = index + 1
        return name, index

    def _row(self, name: str, value: Image, index: int) -> None:
        if name not in self._file:
            packing = (
                {"compression": "gzip", "compression_opts": 4, "shuffle": True}
                if value.ndim
                else {}
            )
            chunks = (1, *value.shape) if value.ndim else (1024,)
            self._file.create_dataset(
                name,
                (0, *value.shape),
                "f4",
                maxshape=(None, *value.shape),
                chunks=chunks,
                **packing,
            )
        data = self._file[name]
        data.resize(index + 1, 0)
        data[index] = value
