"""Large arrays go back to the system as soon as they are freed."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # glibc, malloc.h
LARGE = 4 * 2**20  # bytes


def return_large() -> None:
    """Let glibc map arrays of 4 MiB and more one by one, which it unmaps when they are freed.

    By itself it raises that threshold up to 32 MiB with every large array that is freed, and keeps what
    lies below: of 400 frames of 2048x2048, corrected in blocks, the peak was 1,985 MiB instead of 1,233, of
    1,000 frames 2,647 instead of 1,518. Elsewhere than on glibc nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
