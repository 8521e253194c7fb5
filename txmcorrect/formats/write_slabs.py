"""How a result is cut into slabs of frames, and a slab into the chunks its file will hold."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txmcorrect.scan import Array

SLAB = 16  # frames: a compromise between reading projections and reading sinograms
ROWS = 64
GZIP = 4

Frames32 = NDArray[np.float32]


@dataclass(frozen=True)
class Slabs:
    """Cut of a `(n, h, w)` float32 stack into slabs of 16 frames and chunks of `(16, 64, w)`.

    The frames of an energy stack are those of `energies` energies, one after another; each begins
    with a slab of its own.
    A packed chunk is what HDF5 stores for it under shuffle and gzip, so that a file is assembled
    by copying bytes.
    """

    shape: tuple[int, int, int]
    energies: int = 1

    @property
    def per_energy(self) -> int:
        return self.shape[0] // self.energies

    @property
    def chunk(self) -> tuple[int, int, int]:
        _, h, w = self.shape
        return min(SLAB, self.per_energy), min(ROWS, h), w

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in a file: `(n, h, w)`, or `(energies, n, h, w)`."""
        _, h, w = self.shape
        return self.shape if self.energies == 1 else (self.energies, self.per_energy, h, w)

    def place(self, start: int, row: int) -> tuple[int, ...]:
        """Where in a file of `stored_shape` a chunk begins."""
        if self.energies == 1:
            return start, row, 0
        return *divmod(start, self.per_energy), row, 0

    def starts(self) -> list[int]:
        """Return the first frame of every slab."""
        depth, per = self.chunk[0], self.per_energy
        return [e * per + s for e in range(self.energies) for s in range(0, per, depth)]

    def length(self, start: int) -> int:
        """Return how many frames the slab that begins at `start` has."""
        return min(self.chunk[0], self.per_energy - start % self.per_energy)

    def rows(self) -> range:
        """Return the first row of every chunk of a slab."""
        return range(0, self.shape[1], self.chunk[1])

    def pack(self, frames: Array, pool: Executor) -> list[bytes]:
        """Compress a slab `(m <= 16, h, w)`, one piece per chunk, top to bottom."""
        return list(pool.map(_deflate, self._cut(frames)))

    def unpack(self, start: int, chunks: list[bytes]) -> Frames32:
        """Return the slab `(m, h, w)` that `pack` compressed."""
        depth, height, w = self.chunk
        slab = np.concatenate([_inflate(c).reshape(depth, height, w) for c in chunks], axis=1)
        return slab[: self.length(start), : self.shape[1]]

    def _cut(self, frames: Array) -> Iterator[Frames32]:
        for row in self.rows():
            piece = frames[:, row : row + self.chunk[1]]
            if piece.shape == self.chunk:
                yield piece.astype("<f4")
            else:  # HDF5 stores chunks at the edge in full
                padded = np.zeros(self.chunk, "<f4")
                padded[: piece.shape[0], : piece.shape[1]] = piece
                yield padded


def _deflate(chunk: Frames32) -> bytes:
    """HDF5's shuffle (first bytes of all numbers, then second bytes...), then zlib."""
    shuffled = np.ascontiguousarray(chunk.reshape(-1).view(np.uint8).reshape(-1, 4).T)
    return zlib.compress(shuffled.data, GZIP)


def _inflate(data: bytes) -> Frames32:
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(4, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view("<f4")
