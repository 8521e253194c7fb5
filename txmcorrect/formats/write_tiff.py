"""Assembly of a result as one BigTIFF stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import tifffile

from txmcorrect.formats.write_hdf5 import Progress, Stored
from txmcorrect.formats.write_process import Process
from txmcorrect.formats.write_slabs import Frames32


def write_tiff(path: Path, stored: Stored, process: Process, progress: Progress) -> None:
    """Write float32 pages; what the format has room for of the process is JSON in the first page."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            _pages(stored, progress),
            shape=stored.slabs.stored_shape,
            dtype="float32",
            photometric="minisblack",
            contiguous=True,
            description=json.dumps({"txmcorrect": process.attributes()}),
            software=False,
            metadata=None,
        )


def _pages(stored: Stored, progress: Progress) -> Iterator[Frames32]:
    slabs = stored.slabs
    for start in slabs.starts():
        yield from stored.frames(start)
        progress(start + slabs.length(start), slabs.shape[0])
