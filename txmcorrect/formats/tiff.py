"""TIFF stacks: 8/16/32-bit integers and floats, read page by page or straight from the file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from txmcorrect.errors import FormatError
from txmcorrect.formats.source import check_same_size, empty_warning, posix_seconds
from txmcorrect.scan import Array, Scan

# tifffile reports survivable oddities of a file as log lines; ours are raised instead.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class TiffFrames:
    """Frames of one TIFF file.

    `offset` is where they start if they lie in one piece, uncompressed, as `stored` numbers.
    """

    path: Path
    shape: tuple[int, int, int]
    stored: np.dtype[Any]
    offset: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stored.newbyteorder("=")

    def read(self, start: int, stop: int) -> Array:
        start, stop = max(start, 0), min(stop, self.shape[0])
        try:
            if self.offset is not None:
                return self._read_contiguous(start, stop)
            with tifffile.TiffFile(self.path) as file:
                pages = file.series[0].pages
                frames = [np.squeeze(_page(pages, i).asarray()) for i in range(start, stop)]
        except Exception as error:  # tifffile's decoders raise whatever they meet
            raise FormatError(f"{self.path}: a frame cannot be decoded ({error})") from error
        return np.stack(frames).reshape(-1, *self.shape[1:]).astype(self.dtype, copy=False)

    def _read_contiguous(self, start: int, stop: int) -> Array:
        n, h, w = stop - start, *self.shape[1:]
        at = (self.offset or 0) + start * h * w * self.stored.itemsize
        frames = np.fromfile(self.path, self.stored, n * h * w, offset=at)
        return frames.reshape(n, h, w).astype(self.dtype, copy=False)


def _page(pages: Any, i: int) -> Any:
    """Page of a series; tifffile leaves gaps where a file is damaged."""
    if pages[i] is None:
        raise ValueError(f"page {i} is missing")
    return pages[i]


def tiff_frames(path: Path) -> tuple[TiffFrames, float]:
    """Describe a TIFF file, and read its date in POSIX seconds (NaN without one).

    Raises
    ------
    FormatError : not a TIFF file, cut short, of colour images, or of several sizes.
    """
    try:
        with tifffile.TiffFile(path) as file:
            return _describe(path, file)
    except FormatError:
        raise
    except Exception as error:  # tifffile's parsers raise whatever they meet
        raise FormatError(f"{path}: unreadable TIFF file ({error})") from error


def _describe(path: Path, file: tifffile.TiffFile) -> tuple[TiffFrames, float]:
    if not file.series:
        raise FormatError(f"{path}: expected frames, got a TIFF file without images")
    pages = [series.keyframe for series in file.series]
    check_same_size(path, {(*page.shape[:2],): f"series {i}" for i, page in enumerate(pages)})  # type: ignore[misc]
    page, series = pages[0], file.series[0]
    if len(page.shape) != 2 or page.dtype is None or page.dtype.kind not in "uifb":
        raise FormatError(f"{path}: expected grey frames, got {page.dtype} pages of {page.shape}")
    h, w = page.shape
    n = sum(int(np.prod(s.shape)) // (h * w) for s in file.series)
    offset = series.dataoffset if len(pages) == 1 else None
    stored = page.dtype.newbyteorder(file.byteorder) if offset is not None else page.dtype
    frames = TiffFrames(path, (n, h, w), stored, offset)
    if _is_cut(file) or _end_of_data(file, frames) > path.stat().st_size:
        raise FormatError(f"{path}: truncated TIFF file; copy it again")
    date = posix_seconds(str(page.tags.valueof("DateTime", "")), "%Y:%m:%d %H:%M:%S")
    return frames, date


def _is_cut(file: tifffile.TiffFile) -> bool:
    """Whether the chain of pages leads on from the last page that could be read."""
    after = file.pages.next_page_offset
    if after is None:
        return False
    file.filehandle.seek(after)
    return any(file.filehandle.read(file.tiff.offsetsize))


def _end_of_data(file: tifffile.TiffFile, frames: TiffFrames) -> int:
    """First byte that need not exist after the frames."""
    if frames.offset is not None:
        return frames.offset + int(np.prod(frames.shape)) * frames.stored.itemsize
    last = file.pages[-1]
    return max(a + b for a, b in zip(last.dataoffsets, last.databytecounts, strict=True))


def open_tiff(path: Path) -> Scan:
    """Describe one TIFF stack; beyond its frames it says whether we wrote it."""
    frames, date = tiff_frames(path)
    with tifffile.TiffFile(path) as file:
        ours = str(file.pages.first.tags.valueof("ImageDescription", "")).startswith(
            '{"txmcorrect"'
        )
    return Scan(
        path=path,
        format="tiff",
        projections=frames,
        time_s=np.array([date]) if frames.shape[0] == 1 and np.isfinite(date) else None,
        corrected_by="txmcorrect" if ours else "",
        warnings=empty_warning(frames),
    )
