"""Writing a corrected scan: slabs as they come, in any order; one assembly at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from txmcorrect.errors import OutputError
from txmcorrect.formats.write_hdf5 import write_exchange, write_nxtomo
from txmcorrect.formats.write_process import Process
from txmcorrect.formats.write_slabs import Frames32, Slabs
from txmcorrect.formats.write_tiff import write_tiff
from txmcorrect.scan import Array, FloatArray
from txmcorrect.stream import PartFolder, disk_errors

__all__ = ["LAYOUTS", "Process", "ResultWriter"]

LAYOUTS = {"h5": write_exchange, "nxtomo": write_nxtomo, "tiff": write_tiff}
Progress = Callable[[int, int], None]
SLAB_NAME = "slab-"


class ResultWriter:
    """A corrected scan in the making; it resumes where a killed run of the same signature ended.

    Several processes may write: each opens a writer of its own `rank` (0 first) and hands over its
    own slabs; rank 0 alone finishes. Memory does not grow with the number of frames.

    Parameters
    ----------
    out : file to write.
    shape : `(n, h, w)` of the result.
    signature : `stream.run_signature` of the run.
    theta : `(n,)` radians, or None.
    source : the scan that was corrected; where it is HDF5, its `/measurement` is copied.
    layout : a name of `LAYOUTS`.
    overwrite, rank : see `stream.PartFolder`.
    threads : that compress chunks. energies : of an energy stack, see `write_slabs.Slabs`.

    Raises
    ------
    OutputError : see `stream.PartFolder`; NXtomo without angles or of several energies.
    """

    def __init__(
        self,
        out: Path,
        shape: tuple[int, int, int],
        signature: Mapping[str, str],
        *,
        theta: FloatArray | None = None,
        source: Path | None = None,
        layout: str = "h5",
        overwrite: bool = False,
        rank: int = 0,
        threads: int | None = None,
        energies: int = 1,
    ) -> None:
        if layout == "nxtomo" and theta is None:
            raise OutputError(f"{out}: NXtomo needs angles and the scan has none; use --format h5")
        if layout == "nxtomo" and energies > 1:
            raise OutputError(f"{out}: NXtomo holds one energy, got {energies}; use --format h5")
        self.slabs = Slabs(shape, energies)
        self.theta = theta
        self.source = source
        self.layout = layout
        self.part = PartFolder(out, {**signature, "the layout": layout}, rank, overwrite)
        self.pool = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def resize(self, n: int, theta: FloatArray | None) -> None:
        """Say how many frames there are in the end, where that was not known; all else stays."""
        _, h, w = self.slabs.shape
        self.slabs, self.theta = Slabs((n, h, w)), theta

    def names(self) -> set[str]:
        """Return the names of all slabs' shards."""
        return {_name(s) for s in self.slabs.starts()}

    def done(self) -> set[int]:
        """Return the first frames of the slabs that are stored."""
        stored = self.part.names()
        return {int(name.removeprefix(SLAB_NAME)) for name in stored if name.startswith(SLAB_NAME)}

    def write(self, start: int, frames: Array, **values: Sequence[float] | Array) -> None:
        """Store corrected frames for good.

        Parameters
        ----------
        start : their first frame, where a slab begins (every 16th, `write_slabs.SLAB`).
        frames : `(m, h, w)` transmission of whole slabs of one energy.
        values : a number per frame, by name, kept with them: amplitude, flag...

        Raises
        ------
        OutputError : the disk is full; what was stored before stays.
        """
        depth, per = self.slabs.chunk[0], self.slabs.per_energy
        first_in, stop_in = start % per, start % per + len(frames)
        assert first_in % depth == 0 and (stop_in % depth == 0 or stop_in == per)
        assert frames.shape[1:] == self.slabs.shape[1:]
        for first in range(start, start + len(frames), depth):
            some = slice(first - start, first - start + depth)
            chunks = self.slabs.pack(frames[some], self.pool)
            kept = {name: np.asarray(v)[some].tolist() for name, v in values.items()}
            sizes = [len(chunk) for chunk in chunks]
            self.part.save(_name(first), b"".join(chunks), sizes=sizes, values=kept)

    def values(self, name: str) -> FloatArray:
        """Return the `(n,)` numbers handed over under `name`, once all slabs are stored."""
        kept = [self.part.meta(_name(s))["values"][name] for s in self.slabs.starts()]
        return np.concatenate([np.asarray(k, dtype=np.float64) for k in kept])

    def chunks(self, start: int) -> list[bytes]:
        """Return the packed chunks of a stored slab."""
        data, name = self.part.load(_name(start)), _name(start)
        ends = np.cumsum(self.part.meta(name)["sizes"]).tolist()
        return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    def frames(self, start: int) -> Frames32:
        """Return a stored slab, `(m, h, w)`."""
        return self.slabs.unpack(start, self.chunks(start))

    def collect(self) -> None:
        """Learn what the other ranks stored (rank 0, after all have written).

        Raises
        ------
        OutputError : some slabs are missing.
        """
        self.part.refresh()
        missing = sorted(set(self.slabs.starts()) - self.done())
        if missing:
            raise OutputError(
                f"{self.part.out}: frames from {missing[0]} on are missing in {len(missing)} blocks; "
                "run the same command again to do them"
            )

    def finish(self, process: Process, progress: Progress | None = None) -> Path:
        """Assemble the file from its slabs, put it in its place and drop the part folder.

        Raises
        ------
        OutputError : slabs are missing, or the disk is full; the work stays resumable.
        """
        self.collect()
        process.check(self.slabs.shape)
        assembled = self.part.path / f"assembled{self.part.out.suffix}"
        assembled.unlink(missing_ok=True)  # of a run that was killed while assembling
        self._check_space(process)
        try:
            with disk_errors(self.part.out, only_full=True):
                LAYOUTS[self.layout](assembled, self, process, progress or _silent)
            self.part.publish(assembled)
        finally:
            assembled.unlink(missing_ok=True)
        self.close()
        return self.part.out

    def close(self) -> None:
        """Let go of the lock and the threads; what is stored stays."""
        self.part.close()
        self.pool.shutdown()

    def _check_space(self, process: Process) -> None:
        """Refuse to begin what cannot fit: a full disk under an open HDF5 file is no fun."""
        n, h, w = self.slabs.shape
        packed = sum(sum(self.part.meta(_name(s))["sizes"]) for s in self.slabs.starts())
        need = 4 * n * h * w if self.layout == "tiff" else packed + process.bytes_needed()
        need += 2**20
        free = shutil.disk_usage(self.part.path).free
        if need > free:
            raise OutputError(
                f"{self.part.out}: assembling needs about {need / 2**20:.0f} MiB and the disk has "
                f"{free / 2**20:.0f}; free some space and run the same command again"
            )


def _name(start: int) -> str:
    return f"{SLAB_NAME}{start:07d}"


def _silent(done: int, total: int) -> None:
    pass
