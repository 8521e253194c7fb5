"""Scan: what every format is read into. Lazy frames, references, geometry, exposure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import TxmError

Array = NDArray[Any]
FloatArray = NDArray[np.float64]
LEAST_TURN = 0.5  # radians


class Frames(Protocol):
    """A stack that is read piece by piece.

    `shape` is `(n, h, w)`; `read(start, stop)` returns `(stop - start, h, w)` in the file's own
    dtype and never loads more than that.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, start: int, stop: int) -> Array: ...


@dataclass(frozen=True)
class ArrayFrames:
    """Frames that already lie in memory, or in a memory map: `(n, h, w)`."""

    array: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        n, h, w = self.array.shape
        return n, h, w

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, start: int, stop: int) -> Array:
        return np.asarray(self.array[start:stop])


@dataclass(frozen=True)
class FrameView:
    """Some frames of another stack, cropped and binned: what `--frames`, `--roi` and `--bin` ask for.

    `index` names the frames, `roi` is `(y0, y1, x0, x1)` in unbinned pixels, `bin` sums squares of
    `bin` x `bin` pixels (counts add, so Poisson statistics stay true); sums are float32.
    """

    source: Frames
    index: NDArray[np.intp]
    roi: tuple[int, int, int, int] | None = None
    bin: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        _, h, w = self.source.shape
        y0, y1, x0, x1 = self.roi or (0, h, 0, w)
        return len(self.index), (y1 - y0) // self.bin, (x1 - x0) // self.bin

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype if self.bin == 1 else np.dtype(np.float32)

    def read(self, start: int, stop: int) -> Array:
        """Read contiguous runs of the wanted frames in one go each."""
        wanted = self.index[start:stop]
        if len(wanted) == 0:
            return np.empty((0, *self.shape[1:]), self.dtype)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        return np.concatenate(
            [self._crop(self.source.read(int(r[0]), int(r[-1]) + 1)) for r in runs]
        )

    def _crop(self, frames: Array) -> Array:
        if self.roi is not None:
            y0, y1, x0, x1 = self.roi
            frames = frames[:, y0:y1, x0:x1]
        if self.bin == 1:
            return frames
        n, h, w = frames.shape
        b = self.bin
        frames = frames[:, : h // b * b, : w // b * b].astype(np.float32)
        return np.asarray(frames.reshape(n, h // b, b, w // b, b).sum((2, 4)))


@dataclass(frozen=True)
class JoinedFrames:
    """Stacks laid end to end: a folder of files, or several scans merged."""

    parts: tuple[Frames, ...] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*{part.dtype for part in self.parts})

    def read(self, start: int, stop: int) -> Array:
        """Read from each part what lies inside `start:stop`."""
        ends = self._ends
        blocks = [np.empty((0, *self.shape[1:]), self.dtype)]
        first = int(np.searchsorted(ends, start, side="right"))
        for part, end in zip(self.parts[first:], ends[first:], strict=True):
            begin = int(end) - part.shape[0]
            if begin >= stop:
                break
            blocks.append(part.read(max(start - begin, 0), min(stop, int(end)) - begin))
        return np.concatenate(blocks).astype(self.dtype, copy=False)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([part.shape[0] for part in self.parts], dtype=np.int64)


@dataclass(frozen=True)
class Optics:
    """What must agree before a reference may be used with a scan; `None` where a file does not say."""

    energy_ev: float | None = None
    pixel_size_nm: float | None = None
    magnification: float | None = None
    binning: tuple[int, int] | None = None  # (y, x)


@dataclass(frozen=True)
class References:
    """Flats taken without the sample.

    `before` counts the projections taken before each flat, so 0 is "before the scan" and n is
    "after"; `time_s` is POSIX seconds; `exposure_s` and `current_ma` (ring current, or a beam
    monitor that follows it) are per flat. `darks` are those of the file the flats came from.
    `None` where the file does not say.
    """

    frames: Frames
    optics: Optics = Optics()
    before: NDArray[np.intp] | None = None
    time_s: FloatArray | None = None
    exposure_s: FloatArray | None = None
    current_ma: FloatArray | None = None
    darks: Frames | None = None
    origin: str = ""
    energy_number: int | None = None  # of an energy stack: which energy they belong to


@dataclass(frozen=True)
class Scan:
    """One scan, in raw detector counts, in the order of acquisition.

    Convention: row 0 is the top of the image as the beamline's viewer shows it, theta grows
    as the file's own convention says; angle sign and flip together set handedness.

    Attributes
    ----------
    projections : `(n, h, w)` lazy raw counts.
    flats : reference groups; darks : `(m, h, w)` lazy counts or None.
    theta : `(n,)` radians. time_s : `(n,)` POSIX seconds. exposure_s, current_ma, energy_ev : `(n,)`.
    position_um : `(n, 2)` stage (y, x), whose axes may point either way. corner_px : `(n, 2)` corners of
    a mosaic's frames (y, x), however roughly known. shifts_px : `(n, 2)` stored alignment (y, x).
    mosaic_shape : (rows, columns).
    energies : the frames are those of so many energies, one energy after another, equally many each.
    corrected_by : name of the program that already divided by a reference, or "".
    warnings : what was odd in the file but survivable.
    """

    path: Path
    format: str
    projections: Frames
    flats: tuple[References, ...] = ()
    darks: Frames | None = None
    theta: FloatArray | None = None
    time_s: FloatArray | None = None
    exposure_s: FloatArray | None = None
    current_ma: FloatArray | None = None
    energy_ev: FloatArray | None = None
    position_um: FloatArray | None = None
    corner_px: FloatArray | None = None
    shifts_px: FloatArray | None = None
    mosaic_shape: tuple[int, int] | None = None
    energies: int = 1
    optics: Optics = Optics()
    corrected_by: str = ""
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)  # a name per frame, for folders of files

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.projections.shape

    @property
    def turns(self) -> bool:
        """Whether the sample turns, by a good part of a circle."""
        return self.theta is not None and float(np.ptp(self.theta)) > LEAST_TURN

    def select(
        self,
        frames: slice | Sequence[int] | None = None,
        roi: tuple[int, int, int, int] | None = None,
        bin: int = 1,
    ) -> Scan:
        """Return the same scan restricted to some frames and a region, and binned.

        Of an energy stack, `frames` are chosen within each energy.

        Raises
        ------
        TxmError : nothing would be left, or the region does not fit the frame.
        """
        n, h, w = self.shape
        every = np.arange(n, dtype=np.intp).reshape(self.energies, -1)
        index = (every if frames is None else every[:, frames]).ravel()
        y0, y1, x0, x1 = roi or (0, h, 0, w)
        if not (0 <= y0 < y1 <= h and 0 <= x0 < x1 <= w):
            raise TxmError(f"--roi {y0}:{y1},{x0}:{x1} does not fit frames of {h}x{w}")
        if len(index) == 0 or (y1 - y0) < bin or (x1 - x0) < bin:
            raise TxmError(
                f"no pixels left of {n} frames of {h}x{w} after --frames, --roi and --bin"
            )
        return self._take(index, roi, bin)

    def at_energy(self, number: int) -> Scan:
        """Return the frames of one energy of an energy stack, with the flats that belong to it."""
        count = self.shape[0] // self.energies
        index = np.arange(number * count, (number + 1) * count, dtype=np.intp)
        return replace(self._take(index, None, 1), energies=1)

    def _take(
        self, index: NDArray[np.intp], roi: tuple[int, int, int, int] | None, bin: int
    ) -> Scan:
        def crop(source: Frames, chosen: NDArray[np.intp]) -> Frames:
            return FrameView(source, chosen, roi, bin)

        def some(values: FloatArray | None) -> FloatArray | None:
            return None if values is None else values[index]

        def whole(source: Frames) -> Frames:
            return crop(source, np.arange(source.shape[0], dtype=np.intp))

        flats = tuple(
            replace(
                f,
                frames=whole(f.frames),
                darks=None if f.darks is None else whole(f.darks),
                before=None if f.before is None else np.searchsorted(index, f.before),
            )
            for f in self.flats
        )
        names = tuple(self.names[i] for i in index) if self.names else ()
        return replace(
            self,
            projections=crop(self.projections, index),
            flats=flats,
            darks=None if self.darks is None else whole(self.darks),
            theta=some(self.theta),
            time_s=some(self.time_s),
            exposure_s=some(self.exposure_s),
            current_ma=some(self.current_ma),
            energy_ev=some(self.energy_ev),
            position_um=some(self.position_um),
            corner_px=None if self.corner_px is None else self.corner_px[index] / bin,
            shifts_px=some(self.shifts_px),
            names=names,
        )
