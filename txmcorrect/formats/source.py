"""What every reader is asked, and what they share: kinds of files, natural order, error lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.scan import FloatArray, Frames


@dataclass(frozen=True)
class Where:
    """Datasets named by the user, for HDF5 files of any layout; None means "as the format says"."""

    data: str | None = None
    flat: str | None = None
    dark: str | None = None
    angle: str | None = None

    def __bool__(self) -> bool:
        return any((self.data, self.flat, self.dark, self.angle))


# First bytes (at an offset) of the files we read.
SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("xradia", 0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    *(("hdf5", offset, b"\x89HDF\r\n\x1a\n") for offset in (0, 512, 1024, 2048)),
    ("tiff", 0, b"II*\0"),
    ("tiff", 0, b"MM\0*"),
    ("tiff", 0, b"II+\0"),
    ("tiff", 0, b"MM\0+"),
    ("npy", 0, b"\x93NUMPY"),
    ("png", 0, b"\x89PNG"),
    ("mat", 0, b"MATLAB 5.0"),
    ("nifti", 344, b"n+1\0"),
    ("nifti", 344, b"ni1\0"),
)


def sniff(path: Path) -> str:
    """Tell what a file is by its content; "" when it is none of ours.

    Raises
    ------
    FormatError : the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2056)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None
    for kind, offset, magic in SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return kind
    return "nifti" if path.name.endswith(".nii.gz") and head[:2] == b"\x1f\x8b" else ""


def unknown_file(path: Path) -> FormatError:
    """Say what an unreadable file looks like."""
    with path.open("rb") as file:
        head = file.read(24)
    found = "an empty file" if not head else f"a file that begins with {head!r}"
    return FormatError(
        f"{path}: expected HDF5, Xradia xrm/txrm, TIFF or NumPy data, got {found}; is it the right file?"
    )


def natural_key(path: Path) -> tuple[Any, ...]:
    """Sort key under which `tile_2` comes before `tile_10`."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts if p)


def check_same_size(path: Path, sizes: dict[tuple[int, int], str]) -> None:
    """Refuse frames of several sizes; `sizes` names one file for each size met."""
    if len(sizes) > 1:
        listing = ", ".join(f"{h}x{w} ({name})" for (h, w), name in list(sizes.items())[:3])
        raise FormatError(f"{path}: expected frames of one size, got {listing}; separate them")


def posix_seconds(text: str, pattern: str) -> float:
    """Read a date without a zone as if it were UTC (only differences matter); NaN if it is none."""
    try:
        moment = datetime.strptime(text, pattern).replace(tzinfo=UTC)
    except ValueError:
        return float("nan")
    return moment.timestamp() if 1990 <= moment.year <= 2100 else float("nan")


def iso_seconds(text: str) -> float:
    """Read an ISO 8601 date; without a zone it counts as UTC; NaN if it is none."""
    try:
        moment = datetime.fromisoformat(text.strip().rstrip("\0"))
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def fill_times(times: FloatArray) -> tuple[FloatArray | None, str]:
    """Bridge unreadable dates between readable ones; None when fewer than half can be read."""
    good = np.isfinite(times)
    if good.all():
        return times, ""
    if good.sum() * 2 < len(times) or not good.any():
        return None, "the dates cannot be read" if len(times) else ""
    index = np.arange(len(times))
    filled = np.interp(index, index[good], times[good])
    return filled, f"{(~good).sum()} of {len(times)} dates cannot be read and are interpolated"


def empty_warning(frames: Frames) -> tuple[str, ...]:
    """Describe the frames of zeros at the end of a stack: preallocated, or not yet written."""
    first, n = count_written(frames), frames.shape[0]
    if first == n:
        return ()
    return (f"frames {first} to {n - 1} are empty: the scan was aborted or is still being written",)


def count_written(frames: Frames) -> int:
    """Count the frames before the zeros at the end of a stack.

    Reads the last frame, and only when that is empty bisects for the first such one.
    """

    def is_empty(i: int) -> bool:
        return not frames.read(i, i + 1).any()

    first, last = 0, frames.shape[0] - 1
    if last < 0 or not is_empty(last):
        return last + 1
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if is_empty(middle) else (middle + 1, last)
    return first
