"""Scans that are still being taken: what of them is complete at the moment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.formats.folder import open_files, readable_files
from txmcorrect.formats.source import count_written
from txmcorrect.scan import Scan

log = logging.getLogger(__name__)
State = tuple[int, int]  # size and time of change


class Arriving(Protocol):
    """A growing scan."""

    def look(self, last: bool = False) -> Scan | None:
        """Return the frames that are complete, None if there are none yet.

        `last`: nothing more will come, so what has not changed since the last look counts too.
        """
        ...


class FilesArriving:
    """Files that appear in a folder, in natural order of their names.

    A file counts once two looks found it unchanged, and no file before it in order is unfinished.
    """

    def __init__(self, folder: Path, open_file: Callable[[Path], Scan]) -> None:
        self._folder, self._open = folder, open_file
        self._seen: dict[Path, State] = {}
        self._opened: tuple[list[Path], Scan | None] = ([], None)

    def look(self, last: bool = False) -> Scan | None:
        if not self._folder.is_dir():
            raise FormatError(f"{self._folder}: no such folder; create it before the scan begins")
        states = {file: _state(file) for file in self._files()}
        settled = []
        for file, state in states.items():
            if state[0] == 0 or self._seen.get(file) != state:
                break
            settled.append(file)
        self._seen = states
        if settled and settled != self._opened[0]:
            self._opened = self._try(settled, last)
        return self._opened[1]

    def _files(self) -> list[Path]:
        try:
            return readable_files(self._folder)
        except FormatError:  # nothing, or only the beginning of a first file
            return []

    def _try(self, files: list[Path], last: bool) -> tuple[list[Path], Scan | None]:
        """Open the files; a last one that cannot be read yet is left for later, or for good."""
        try:
            return files, open_files(self._folder, files, self._open)
        except FormatError as error:
            if len(files) == 1:
                if last:
                    raise
                return self._opened
            if last:
                log.warning("%s is left out: %s", files[-1].name, error)
            return self._try(files[:-1], last)


class FramesArriving:
    """Frames that fill an HDF5 dataset which was allocated as a whole, or which grows."""

    def __init__(self, path: Path, open_file: Callable[[], Scan]) -> None:
        self._path, self._open = path, open_file

    def look(self, last: bool = False) -> Scan | None:
        if not self._path.exists():
            return None
        try:
            scan = self._open()
        except FormatError:
            if last:
                raise
            return None  # its writer has just begun
        written = count_written(scan.projections)
        ready = written if last else written - 1  # the newest may be half there
        if ready <= 0:
            return None
        return scan.select(np.arange(ready).tolist())


def _state(file: Path) -> State:
    try:
        stat = file.stat()
    except FileNotFoundError:  # renamed meanwhile
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
